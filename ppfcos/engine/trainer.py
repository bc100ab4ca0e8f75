"""The training: epochs of steps, a checkpoint and an evaluation after some of them."""

from __future__ import annotations

import contextlib
import datetime
import logging
import random
import signal
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from ppfcos.config.show import resolved_config
from ppfcos.data.classes import check_same_classes, set_num_classes
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import TrainLoader
from ppfcos.data.records import DetectionData
from ppfcos.data.rng import seed_of
from ppfcos.engine import checkpoint, distributed, run_record, summary
from ppfcos.engine.amp import Precision
from ppfcos.engine.checkpoint import Plan, TrainingState
from ppfcos.engine.checkpoint_files import finish_interrupted, next_start
from ppfcos.engine.ema import ema_weights, restart_ema_cycle, build_ema
from ppfcos.engine.evaluator import Validation
from ppfcos.engine.hooks import NonFiniteSteps, StopRequest
from ppfcos.engine.model import build_model, compile_network, has_sync_bn_backbone
from ppfcos.engine.optim import build_optimizer, build_schedule
from ppfcos.engine.prefetcher import Prefetcher
from ppfcos.engine.profiling import BACKWARD, COMMUNICATION, FORWARD, OPTIMIZER, NoProfiler, StepProfiler
from ppfcos.engine.progress import Progress
from ppfcos.engine.run_folder import (
    FolderLock,
    checkpoint_name,
    lock_folder,
    find_latest,
    position_in_plan,
    remove_old_checkpoints,
    remove_unfinished,
    run_folder,
)
from ppfcos.engine.weights import load_pretrained
from ppfcos.engine.writer import VisualDLWriter, select_hparams
from ppfcos.errors import ConfigError
from ppfcos.fileio import require_writable
from ppfcos.modeling.losses import global_normalizers

logger = logging.getLogger(__name__)

AUTO = "auto"  # resume from whatever is there


class StepResult(NamedTuple):
    """What a step leaves behind, the same in all processes.

    Attributes:
        losses: of the global batch, by name.
        gradient_norm: L2 norm of the gradient of all weights together.
        learning_rate: of the step.
        stop_signal: number of the signal by which a process was told to stop; 0 if none was.
        checkpoint_is_due: whether so much time has passed that one should be written.
    """

    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float
    stop_signal: int
    checkpoint_is_due: bool


class Trainer:
    """Trains the model of a configuration. The device must be selected, and the processes joined, before.

    Args:
        cfg: the configuration, from load_config.
        device: as Paddle names it.
        with_evaluation: evaluate after every checkpoint at the end of an epoch, and keep the best one.
        resume: the checkpoint to go on from, if any; `auto` takes the run's newest that is whole.
        stop: whether the run was told to stop; whoever starts it listens.
        with_profile: trace some of the first steps, and say where their time went.

    Attributes:
        folder: of the run.
        evaluations: those of this run, and the best checkpoint.

    Raises:
        PPFCOSError: the output folder, the configuration, the data or the weights do not do. Nothing is
            written.
    """

    def __init__(
        self,
        cfg: MutableMapping[str, Any],
        device: str,
        with_evaluation: bool = False,
        resume: str | None = None,
        stop: StopRequest | None = None,
        with_profile: bool = False,
    ):
        self.cfg = cfg
        self.device = device
        self.stop = stop or StopRequest()
        self.folder = run_folder(cfg)
        self.curves: VisualDLWriter | None = None
        self._lock: FolderLock | None = None  # of the main process
        self._start: int | None = None
        try:
            self._prepare(with_evaluation, resume, with_profile)
        except BaseException:
            self._unlock()
            raise

    def _prepare(self, with_evaluation: bool, resume: str | None, with_profile: bool) -> None:
        cfg = self.cfg
        with distributed.collective_error_check():
            if distributed.is_main():
                require_writable(self.folder)
                self._lock = lock_folder(self.folder)
                finish_interrupted(self.folder)
        with distributed.collective_error_check():
            self._read_data(with_evaluation)
        # Before anything is built of it: PaddleDetection takes names out of it.
        self._resolved, self._settings = resolved_config(cfg), select_hparams(cfg)
        with distributed.collective_error_check():
            self._build_model()
        self._load_weights(resume)
        self.progress = Progress(cfg["epoch"], len(self.feed), cfg["log_iter"], self.plan.total_batch_size)
        self.nonfinite = NonFiniteSteps(cfg, self.folder, self.model, self.train_data.records)
        self.parallel_model = paddle.DataParallel(self.model) if distributed.world_size() > 1 else self.model
        traces = with_profile and distributed.is_main()  # of several processes, all would write one file
        steps = len(self.feed) - self.state.step
        self.profiler = StepProfiler(self.folder / "profile", steps) if traces else NoProfiler()
        self._last_saved = time.monotonic()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _read_data(self, with_evaluation: bool) -> None:
        cfg, place = self.cfg, (distributed.world_size(), distributed.rank())
        self.train_data = build_dataset(cfg, "TrainDataset")
        set_num_classes(cfg, self.train_data.class_names, self.train_data.source)
        self.feed = Prefetcher(TrainLoader(cfg, self.train_data, *place), cfg["max_bad_images"])
        eval_data = build_dataset(cfg, "EvalDataset") if with_evaluation else None
        if eval_data is not None:
            check_same_classes(*_classes(self.train_data), *_classes(eval_data))
        self.evaluations = Validation(cfg, eval_data, self.folder)
        self.plan = Plan(cfg["epoch"], len(self.feed), cfg["TrainReader"]["total_batch_size"], place[0])

    def _build_model(self) -> None:
        cfg = self.cfg
        self.schedule = build_schedule(cfg, len(self.feed))
        self.precision = Precision(cfg, self.device)
        self._seed()
        self.model = build_model(cfg)
        if has_sync_bn_backbone(cfg) and distributed.world_size() > 1:
            if self.device == "cpu":
                logger.warning("norm_type sync_bn: Paddle has none on a CPU; each process norms alone")
            else:
                distributed.convert_sync_batchnorm(self.model.backbone)
        if cfg["to_static"]:
            compile_network(self.model)
        self.optimizer = build_optimizer(self.model, self.schedule)
        self.average = build_ema(cfg, self.model)

    def _seed(self, *key: int) -> None:
        """Weights and whatever a step draws depend on the seed and the key alone, however often a run was
        resumed."""
        number = seed_of(self.cfg.get("seed") or 0, *key)
        random.seed(number)
        np.random.seed(number)
        paddle.seed(number)

    def _load_weights(self, resume: str | None) -> None:
        run = distributed.broadcast_object(datetime.datetime.now().astimezone().isoformat(timespec="milliseconds"))
        self.state = TrainingState(0, run=run, plan=self.plan, class_names=self.train_data.class_names)
        self._not_evaluated: Path | None = None
        self._resumed: Path | None = None
        pretrained = self.cfg.get("pretrain_weights")
        path = self._newest_checkpoint() if resume == AUTO else resume
        with distributed.collective_error_check():
            if path:
                self._resume(path, may_be_finished=resume == AUTO)
            elif pretrained:
                load_pretrained(self.model, pretrained)

    def _newest_checkpoint(self) -> Path | None:
        path = None
        with distributed.collective_error_check():
            if distributed.is_main():
                path = find_latest(self.folder)
        path = distributed.broadcast_object(path)
        if path is None:
            logger.info("%s holds no checkpoint to go on from: starting anew", self.folder)
        return path

    def _resume(self, path: Path | str, may_be_finished: bool) -> None:
        saved = checkpoint.resume(self.model, self.optimizer, path, self.average, self.precision)
        if saved.class_names is not None:
            check_same_classes(saved.class_names, str(path), *_classes(self.train_data))
        epochs, step = position_in_plan(saved, self.plan)
        if epochs >= self.cfg["epoch"] and not may_be_finished:
            raise ConfigError(
                f"{path} has finished all {epochs} epochs: train more of them with -o epoch={epochs + 1}"
            )
        self.state = self.state._replace(epochs=epochs, step=step, run=saved.run or self.state.run)
        self._resumed = checkpoint.checkpoint_prefix(path)
        if saved.run and not saved.step and saved.ap is None:
            self._not_evaluated = Path(path)
        logger.info("resumed from %s, after epoch %d%s", path, epochs, f" and {step} steps" if step else "")
        self._go_on_with_schedule(epochs * len(self.feed) + step)

    def _go_on_with_schedule(self, finished_steps: int) -> None:
        """The configuration's schedule, not the checkpoint's, so that a changed one takes effect."""
        rate_there = self.optimizer.get_lr()
        self.schedule = build_schedule(self.cfg, len(self.feed), finished_steps)
        self.optimizer.set_lr_scheduler(self.schedule)
        rate = self.optimizer.get_lr()  # some schedules' own get_lr() computes that of the step after it
        if rate_there != rate:
            logger.warning(
                "the learning rate was %.6g in the checkpoint and goes on, as it is configured now, at %.6g",
                rate_there,
                rate,
            )

    def train(self) -> None:
        """Train to the last epoch.

        Raises:
            PPFCOSError: the training cannot go on; all processes raise the same.
            Stopped: a signal came. If it came during a step, that was finished and a checkpoint written.
        """
        try:
            self._train()
        finally:
            self._unlock()

    def _train(self) -> None:
        self.before_train()
        bar = self.progress.bar(self._finished_steps())
        with contextlib.closing(self.feed), bar, self.profiler, self.stop.deferred():
            if self._not_evaluated is not None:
                self.evaluate_and_keep_best(self._not_evaluated)
            for epoch in range(self.state.epochs, self.cfg["epoch"]):
                self.train_in_epoch(epoch)
                path = self.after_epoch()
                if path is not None:
                    self.evaluate_and_keep_best(path)

    def _finished_steps(self) -> int:
        return self.state.epochs * len(self.feed) + self.state.step

    def before_train(self) -> None:
        """Say what is about to happen, write it down, and open the log of the curves."""
        cfg = self.cfg
        record = run_record.describe_run(self.device)
        if self._resumed is not None:
            self.evaluations.find_best(self.state.run)
        with distributed.collective_error_check():
            if distributed.is_main():
                remove_unfinished(self.folder, self._lock)
                self._start = next_start(self.folder)
                if self._resumed is not None:  # where the run was killed before it removed them
                    remove_old_checkpoints(self.folder, self.state.run, cfg["keep_checkpoints"], self._resumed)
                run_record.write_record(self.folder, record, self._resolved)
                if cfg["use_vdl"]:
                    self.curves = VisualDLWriter(
                        cfg.get("vdl_log_dir") or self.folder / "vdl_log",
                        self._settings,
                        self._finished_steps(),
                        self.state.epochs,
                    )
        data = [data for data in (self.train_data, self.evaluations.data) if data is not None]
        lines = summary.opening_of(
            cfg, self.model, data, record["devices"], self.plan, self._finished_steps(), self.folder
        )
        for line in lines:
            logger.info("%s", line)

    def train_in_epoch(self, epoch: int) -> None:
        """The steps of an epoch that are not done yet.

        Args:
            epoch: from 0.
        """
        if not self.state.step:
            restart_ema_cycle(self.average, epoch)
        self.model.train()
        self.progress.start_epoch()
        self.feed.start_epoch(epoch, self.state.step)
        for step in range(self.state.step + 1, len(self.feed) + 1):
            self._seed(epoch, step, distributed.rank())
            result = self.train_one_step(f"epoch {epoch + 1}, step {step}")
            self.after_step(epoch, step, result)

    def train_one_step(self, name: str) -> StepResult:
        """Forward and backward for each part of the batch, then one update.

        Args:
            name: of the step, for an error.

        Returns:
            What came out.
        """
        batches = self.feed.current
        learning_rate = self.optimizer.get_lr()
        totals = self.accumulate_gradients(batches)
        names = list(totals)
        norm = self.precision.gradient_norm(self.model.parameters())
        own = paddle.stack([value.astype("float32") for value in (*totals.values(), norm)])
        flags = paddle.to_tensor([self.stop.signal, self._checkpoint_is_due()], "float32")
        with self.profiler.phase(COMMUNICATION):
            rows = self.feed.advance(paddle.concat([own, flags]), self.profiler)
        losses = dict(zip(names, rows[:, : len(names)].mean(axis=0)))
        result = StepResult(
            losses, float(rows[0, -3]), learning_rate, int(rows[:, -2].max()), bool(rows[0, -1])
        )
        self._update(name, result, dict(zip(names, own.tolist())), batches)
        return result

    def accumulate_gradients(self, batches: list[dict]) -> dict[str, Tensor]:
        """Forward and backward.

        Args:
            batches: this process's parts of the global batch.

        Returns:
            The losses, summed over the parts. Their mean over the processes is the global batch's.
        """
        targets = [self.model.assign(batch) for batch in batches]
        normalizers = global_normalizers(targets)
        totals: dict[str, Tensor] = {}
        for number, (batch, own_targets) in enumerate(zip(batches, targets), start=1):
            inputs = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
            inputs.update(targets=own_targets, normalizers=normalizers)
            with self._gradients_stay_here() if number < len(batches) else contextlib.nullcontext():
                with self.profiler.phase(FORWARD), self.precision.autocast():
                    losses = self.parallel_model(inputs)
                with self.profiler.phase(BACKWARD):
                    self.precision.backward(losses["loss"])
            for key, value in losses.items():
                totals[key] = totals[key] + value.detach() if key in totals else value.detach()
        return totals

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager:
        """Within it, the backward pass does not send gradients to other processes: the last part's does."""
        return (
            contextlib.nullcontext() if self.parallel_model is self.model else self.parallel_model.no_sync()
        )

    def _update(self, name: str, result: StepResult, own: dict[str, float], batches: list[dict]) -> None:
        """Move the weights, unless the loss is not finite."""
        finite = np.isfinite(list(result.losses.values())).all()
        if finite and (np.isfinite(result.gradient_norm) or self.precision.handles_overflow):
            self.nonfinite.remember()
            with self.profiler.phase(OPTIMIZER):
                self.precision.update(self.optimizer)
                if self.average is not None:
                    self.average.update()
        else:
            facts = {"learning rate": result.learning_rate, "gradient norm": result.gradient_norm}
            self.nonfinite.add(name, own, batches, facts)
            self.optimizer.clear_grad(set_to_zero=False)
        self.schedule.step()

    def _checkpoint_is_due(self) -> bool:
        minutes = self.cfg["snapshot_minutes"]
        return minutes is not None and time.monotonic() - self._last_saved >= 60 * minutes

    def after_step(self, epoch: int, step: int, result: StepResult) -> None:
        """Note the losses, report every few steps, and write a checkpoint if one is due.

        Args:
            epoch: from 0.
            step: from 1.
            result: of the step.

        Raises:
            Stopped: a process was told to stop.
        """
        self.state = self.state._replace(epochs=epoch, step=step)
        self.progress.add(result.losses, self.feed.take_seconds_waited())
        self.progress.move_bar(epoch, step)
        self.profiler.step()
        if self.progress.is_due(step):
            report = self.progress.report(epoch, step, result.learning_rate, result.gradient_norm)
            self.progress.log(report)
            if self.curves is not None:
                self.curves.add_step(report)
        if step == len(self.feed):
            return  # after_epoch sees to the rest
        every = self.cfg["snapshot_steps"]
        is_due = every is not None and (epoch * len(self.feed) + step) % every == 0
        if is_due or result.checkpoint_is_due or result.stop_signal:
            path = self.save()
        if result.stop_signal:
            self._stopped(result.stop_signal, path)

    def after_epoch(self) -> Path | None:
        """Write a checkpoint if it is time to.

        Returns:
            Path of the checkpoint, to be evaluated; None if none was written.

        Raises:
            Stopped: a process was told to stop.
        """
        self.state = self.state._replace(epochs=self.state.epochs + 1, step=0)
        self.feed.report_changes()
        stop_signal = max(distributed.all_gather_object(self.stop.signal))
        is_last = self.state.epochs == self.cfg["epoch"]
        if self.state.epochs % self.cfg["snapshot_epoch"] and not is_last and not stop_signal:
            return None
        path = self.save()
        if stop_signal:
            self._stopped(stop_signal, path)
        return path

    def _stopped(self, number: int, path: Path) -> None:
        raise self.stop.stopped(
            number,
            f"stopped by {signal.Signals(number).name} after epoch {self.state.epochs} and {self.state.step} "
            f"steps; checkpoint: {path}; go on with -r auto",
        )

    def evaluate_and_keep_best(self, path: Path) -> None:
        """Evaluate, if the run is to do that, the checkpoint that was just written or resumed from.

        Args:
            path: of the checkpoint.
        """
        if self.evaluations.data is None:
            return
        with ema_weights(self.model, self.average), self.stop.at_once():
            figures = self.evaluations.evaluate(self.model, self.precision, self.state.epochs, self.curves)
        self.evaluations.keep_if_best(path, figures.ap)

    def save(self) -> Path:
        """Write a checkpoint, and remove those that it makes superfluous.

        Returns:
            Path of its weights.

        Raises:
            OutputError: it cannot be written; the older ones are untouched.
        """
        distributed.broadcast_buffers(self.model)
        name = checkpoint_name(self.state, self.cfg["epoch"])
        with ema_weights(self.model, self.average) as own, distributed.collective_error_check():
            if distributed.is_main():
                path = checkpoint.save_checkpoint(
                    self.folder,
                    name,
                    self.model.state_dict(),
                    self.optimizer,
                    self.state,
                    own,
                    self.average,
                    self.precision.state_dict(),
                    self._start,
                )
                remove_old_checkpoints(self.folder, self.state.run, self.cfg["keep_checkpoints"])
                logger.info("checkpoint: %s", path)
        self._last_saved = time.monotonic()
        return self.folder / f"{name}.pdparams"


def _classes(data: DetectionData) -> tuple[list[str], str]:
    return data.class_names, data.source
