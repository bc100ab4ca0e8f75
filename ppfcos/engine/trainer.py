"""Trains a model: epochs of steps, checkpoints and evaluations."""

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

from ppfcos.config.show import config_text, resolved_config
from ppfcos.data.classes import check_same_classes, set_num_classes
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import TrainLoader
from ppfcos.data.records import DetectionData
from ppfcos.data.rng import seed_of
from ppfcos.engine import checkpoint, distributed, run_record, summary
from ppfcos.engine.amp import Precision
from ppfcos.engine.checkpoint import Plan, TrainingState
from ppfcos.engine.checkpoint_files import finish_interrupted, next_start
from ppfcos.engine.ema import build_ema, ema_weights, restart_ema_cycle
from ppfcos.engine.evaluator import Validation
from ppfcos.engine.loggers import MetricLoggers, build_loggers, select_hparams
from ppfcos.engine.model import build_model, compile_network, has_sync_bn_backbone
from ppfcos.engine.nonfinite import NonFiniteSteps
from ppfcos.engine.optim import build_optimizer, build_schedule, more_epochs
from ppfcos.engine.prefetcher import Prefetcher
from ppfcos.engine.profiling import BACKWARD, COMMUNICATION, FORWARD, OPTIMIZER, NoProfiler, StepProfiler
from ppfcos.engine.progress import Progress
from ppfcos.engine.run_folder import (
    FolderLock,
    checkpoint_name,
    find_latest,
    lock_folder,
    position_in_plan,
    remove_old_checkpoints,
    remove_unfinished,
    run_folder,
    warn_of_other_runs,
)
from ppfcos.engine.weights import load_pretrained
from ppfcos.errors import ConfigError
from ppfcos.fileio import require_writable
from ppfcos.modeling.losses import global_normalizers
from ppfcos.signals import StopRequest

logger = logging.getLogger(__name__)

AUTO = "auto"  # resume from the latest checkpoint


class StepResult(NamedTuple):
    """Result of a step, the same on all ranks.

    Attributes:
        losses: of the global batch, by name.
        gradient_norm: L2 norm of the gradient of all weights together.
        learning_rate: of the step.
        stop_signal: number of a signal that a rank received; 0 if none.
        checkpoint_is_due: whether `snapshot_minutes` have passed.
    """

    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float
    stop_signal: int
    checkpoint_is_due: bool


class Trainer:
    """Trains the model of a configuration.

    Select the device and join the process group before. `setup` reads the data and builds the model; `train`
    calls it if the caller did not.

    Args:
        cfg: from `load_config`.
        device: as Paddle names it.
        with_evaluation: evaluate after every checkpoint at the end of an epoch, and keep the best one.
        resume: path of a checkpoint to resume from; `auto`: the latest undamaged one of the run.
        stop: receives signals; the caller listens.
        with_profile: profile some of the first steps.

    Attributes:
        folder: of the run.
        validation: evaluations of this run, and the best checkpoint.
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
        self.loggers = MetricLoggers([])  # of rank 0
        self._options = with_evaluation, resume, with_profile
        self._is_set_up = False
        self._lock: FolderLock | None = None  # of rank 0
        self._start: int | None = None  # number of this training in the folder
        self._resumed: Path | None = None  # checkpoint
        self._not_evaluated: Path | None = None  # checkpoint
        self._is_checkpoint_due = False  # at the end of this epoch

    # Setup --------------------------------------------------------------------------------------------------

    def setup(self) -> Trainer:
        """Lock the run folder, read the data, build the model, and load weights. All ranks must call it.

        Nothing is written but the lock.

        Raises:
            PPFCOSError: the folder, the configuration, the data or the weights are unusable; on all ranks.
        """
        with_evaluation, resume, with_profile = self._options
        try:
            with distributed.collective_error_check():
                self._lock_folder()
            with distributed.collective_error_check():
                self._read_data(with_evaluation)
            # Before anything is built: PaddleDetection removes names from the configuration.
            self._resolved = resolved_config(self.cfg)
            with distributed.collective_error_check():
                self._build()
            self._load_weights(resume)
        except BaseException:
            self._unlock()
            raise
        self.progress = Progress(
            self.cfg["epoch"], len(self.prefetcher), self.cfg["log_iter"], self.plan.total_batch_size
        )
        self.nonfinite = NonFiniteSteps(self.cfg, self.folder, self.model, self.train_data.records)
        self.parallel_model = paddle.DataParallel(self.model) if distributed.world_size() > 1 else self.model
        with_profile = with_profile and distributed.is_main()
        steps = len(self.prefetcher) - self.state.step
        self.profiler = StepProfiler(self.folder / "profile", steps) if with_profile else NoProfiler()
        self._last_saved = time.monotonic()
        self._is_set_up = True
        return self

    def _lock_folder(self) -> None:
        if distributed.is_main():
            require_writable(self.folder)
            self._lock = lock_folder(self.folder)
            finish_interrupted(self.folder)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _read_data(self, with_evaluation: bool) -> None:
        cfg, place = self.cfg, (distributed.world_size(), distributed.rank())
        self.train_data = build_dataset(cfg, "TrainDataset")
        set_num_classes(cfg, self.train_data.class_names, self.train_data.source)
        self.prefetcher = Prefetcher(TrainLoader(cfg, self.train_data, *place), cfg["max_bad_images"])
        eval_data = None
        if with_evaluation:
            eval_data = build_dataset(cfg, "EvalDataset", self.train_data.class_names)
        if eval_data is not None:
            check_same_classes(*_classes(self.train_data), *_classes(eval_data))
        self.validation = Validation(cfg, eval_data, self.folder)
        batch_size = cfg["TrainReader"]["total_batch_size"]
        self.plan = Plan(cfg["epoch"], len(self.prefetcher), batch_size, place[0])

    def _build(self) -> None:
        cfg = self.cfg
        self.schedule = build_schedule(cfg, len(self.prefetcher))
        self.precision = Precision(cfg, self.device)
        self._seed()
        self.model = build_model(cfg)
        if has_sync_bn_backbone(cfg) and distributed.world_size() > 1:
            if self.device == "cpu":
                logger.warning(
                    "norm_type sync_bn: not supported on a CPU; batch norm uses per-process statistics"
                )
            else:
                distributed.convert_sync_batchnorm(self.model.backbone)
        if cfg["to_static"]:
            compile_network(self.model)
        self.optimizer = build_optimizer(cfg, self.model, self.schedule)
        self.ema = build_ema(cfg, self.model)

    def _seed(self, *key: int) -> None:
        """Seed weights and steps by the configured seed and a key, so that a resumed run repeats them."""
        number = seed_of(self.cfg.get("seed") or 0, *key)
        random.seed(number)
        np.random.seed(number)
        paddle.seed(number)

    def _load_weights(self, resume: str | None) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        run = distributed.broadcast_object(now)
        self.state = TrainingState(0, run=run, plan=self.plan, class_names=self.train_data.class_names)
        path: Path | str | None = self._find_latest() if resume == AUTO else resume
        pretrained = self.cfg.get("pretrain_weights")
        with distributed.collective_error_check():
            if path:
                self._resume(path, may_be_finished=resume == AUTO)
            elif pretrained:
                load_pretrained(self.model, pretrained)

    def _find_latest(self) -> Path | None:
        path = None
        with distributed.collective_error_check():
            if distributed.is_main():
                path = find_latest(self.folder)
        path = distributed.broadcast_object(path)
        if path is None:
            logger.info("%s holds no checkpoint to resume from: starting from the beginning", self.folder)
        return path

    def _resume(self, path: Path | str, may_be_finished: bool) -> None:
        saved = checkpoint.resume(self.model, self.optimizer, path, self.ema, self.precision)
        if saved.class_names is not None:
            check_same_classes(saved.class_names, str(path), *_classes(self.train_data))
        epochs, step = position_in_plan(saved, self.plan)
        if epochs >= self.cfg["epoch"] and not may_be_finished:
            raise ConfigError(
                f"{path} has finished all {epochs} epochs: train more of them with -o "
                f"{more_epochs(self.cfg, epochs + 1)}"
            )
        self.state = self.state._replace(epochs=epochs, step=step, run=saved.run or self.state.run)
        self._resumed = checkpoint.checkpoint_prefix(path)
        if saved.run and not saved.step and saved.ap is None and self._is_evaluated(epochs):
            self._not_evaluated = Path(path)
        logger.info("resumed from %s, after epoch %d%s", path, epochs, f" and {step} steps" if step else "")
        # The schedule of the configuration, not of the checkpoint, so that a change takes effect.
        rate_before = self.optimizer.get_lr()
        self.schedule = build_schedule(self.cfg, len(self.prefetcher), self._finished_steps())
        self.optimizer.set_lr_scheduler(self.schedule)
        rate = self.optimizer.get_lr()  # get_lr() of some schedules computes that of the next step
        if rate_before != rate:
            logger.warning(
                "the learning rate was %.6g in the checkpoint and goes on, as it is configured now, at %.6g",
                rate_before,
                rate,
            )

    def _is_evaluated(self, epochs: int) -> bool:
        """Whether the training evaluates after so many epochs."""
        return epochs >= self.cfg["epoch"] or epochs % self.cfg["snapshot_epoch"] == 0

    def _finished_steps(self) -> int:
        return self.state.epochs * len(self.prefetcher) + self.state.step

    # Training -----------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last epoch.

        Raises:
            PPFCOSError: the training cannot continue; the same on all ranks.
            Stopped: a signal came. During a step, the step was finished and a checkpoint written.
        """
        if not self._is_set_up:
            self.setup()
        try:
            self.before_train()
            bar = self.progress.bar(self._finished_steps())
            with contextlib.closing(self.prefetcher), bar, self.profiler, self.stop.deferred():
                if self._not_evaluated is not None:
                    self.evaluate(self._not_evaluated)
                for epoch in range(self.state.epochs, self.cfg["epoch"]):
                    self.train_one_epoch(epoch)
                    path = self.after_epoch()
                    if path is not None:
                        self.evaluate(path)
        finally:
            self.loggers.call("close")
            self._unlock()

    def before_train(self) -> None:
        """Write the record of the run, begin its loggers, and log a summary."""
        record = run_record.describe_run(self.device)
        self.validation.begin(self.state.run, self.state.epochs)
        with distributed.collective_error_check():
            if distributed.is_main():
                self._prepare_folder(record)
        if self.state.epochs >= self.cfg["epoch"]:
            logger.info(
                "nothing is left to train: %s has finished all %d epochs; train more with -o %s",
                self._resumed,
                self.state.epochs,
                more_epochs(self.cfg, self.state.epochs + 1),
            )
            return
        data = [data for data in (self.train_data, self.validation.data) if data is not None]
        lines = summary.describe_training(
            self.cfg, self.model, data, record["devices"], self.plan, self._finished_steps(), self.folder
        )
        for line in lines:
            logger.info("%s", line)

    def _prepare_folder(self, record: dict[str, Any]) -> None:
        cfg = self.cfg
        remove_unfinished(self.folder, self._lock)
        warn_of_other_runs(self.folder, self.state.run)
        self._start = next_start(self.folder)
        if self._resumed is not None:  # if the run was killed before it removed them
            remove_old_checkpoints(self.folder, self.state.run, cfg["keep_checkpoints"], self._resumed)
        run_record.write_record(self.folder, record, self._resolved)
        self.loggers = build_loggers(cfg, self.folder, self._finished_steps(), self.state.epochs)
        self.loggers.call("add_hparams", select_hparams(self._resolved))
        self.loggers.call("add_text", "config", config_text(self._resolved), self.state.epochs)

    def train_one_epoch(self, epoch: int) -> None:
        """Train the remaining steps of an epoch, counted from 0."""
        if not self.state.step:
            restart_ema_cycle(self.ema, epoch)
        self.model.train()
        self.progress.start_epoch()
        self.prefetcher.start_epoch(epoch, self.state.step)
        for step in range(self.state.step + 1, len(self.prefetcher) + 1):
            self._seed(epoch, step, distributed.rank())
            result = self.train_one_step(f"epoch {epoch + 1}, step {step}")
            self.after_step(epoch, step, result)

    def train_one_step(self, name: str) -> StepResult:
        """Run forward and backward for each micro-batch, then update; `name` is for error messages."""
        batches = self.prefetcher.current
        learning_rate = self.optimizer.get_lr()
        totals = self.accumulate_gradients(batches)
        names = list(totals)
        norm = self.precision.gradient_norm(self.model.parameters())
        own = paddle.stack([value.astype("float32") for value in (*totals.values(), norm)])
        flags = paddle.to_tensor([self.stop.signal, self._checkpoint_is_due()], "float32")
        with self.profiler.phase(COMMUNICATION):
            rows = self.prefetcher.advance(paddle.concat([own, flags]), self.profiler)
        losses = dict(zip(names, rows[:, : len(names)].mean(axis=0)))
        result = StepResult(
            losses, float(rows[0, -3]), learning_rate, int(rows[:, -2].max()), bool(rows[0, -1])
        )
        self._update(name, result, dict(zip(names, own.tolist())), batches)
        return result

    def accumulate_gradients(self, batches: list[dict]) -> dict[str, Tensor]:
        """Run forward and backward for each micro-batch of this rank.

        Returns:
            The losses by name, summed over the micro-batches; their mean over the ranks is that of the global
            batch.
        """
        targets = [self.model.assign(batch) for batch in batches]
        normalizers = global_normalizers(targets)
        totals: dict[str, Tensor] = {}
        for number, (batch, own_targets) in enumerate(zip(batches, targets), start=1):
            inputs = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
            inputs.update(targets=own_targets, normalizers=normalizers)
            # Gradients are exchanged in the backward pass of the last micro-batch.
            is_local = self.parallel_model is not self.model and number < len(batches)
            with self.parallel_model.no_sync() if is_local else contextlib.nullcontext():
                with self.profiler.phase(FORWARD), self.precision.autocast():
                    losses = self.parallel_model(inputs)
                with self.profiler.phase(BACKWARD):
                    self.precision.backward(losses["loss"])
            for key, value in losses.items():
                totals[key] = totals[key] + value.detach() if key in totals else value.detach()
        return totals

    def _update(self, name: str, result: StepResult, own: dict[str, float], batches: list[dict]) -> None:
        """Update the weights unless the loss is not finite."""
        is_finite = np.isfinite(list(result.losses.values())).all()
        has_overflow = not np.isfinite(result.gradient_norm)
        if is_finite and (not has_overflow or self.precision.handles_overflow):
            self.nonfinite.remember()
            before = self.precision.state_dict() if has_overflow else {}
            with self.profiler.phase(OPTIMIZER):
                self.precision.update(self.optimizer)
                if self.ema is not None:
                    self.ema.update()
            self.nonfinite.count_overflows(name, before, self.precision.state_dict() if has_overflow else {})
        else:
            values = {"learning rate": result.learning_rate, "gradient norm": result.gradient_norm}
            self.nonfinite.add(name, own, batches, values)
            self.optimizer.clear_grad(set_to_zero=False)
        self.schedule.step()

    def _checkpoint_is_due(self) -> bool:
        minutes = self.cfg["snapshot_minutes"]
        return minutes is not None and time.monotonic() - self._last_saved >= 60 * minutes

    def after_step(self, epoch: int, step: int, result: StepResult) -> None:
        """Report progress, and write a checkpoint if one is due.

        Raises:
            Stopped: a rank received a signal.
        """
        self.state = self.state._replace(epochs=epoch, step=step)
        self.progress.add(result.losses, self.prefetcher.take_seconds_waited())
        self.progress.move_bar(epoch, step)
        self.profiler.step()
        if self.progress.is_due(step):
            report = self.progress.report(epoch, step, result.learning_rate, result.gradient_norm)
            self.progress.log(report)
            self.loggers.add_step(report)
        every = self.cfg.get("snapshot_steps")
        is_due = result.checkpoint_is_due or (every is not None and self._finished_steps() % every == 0)
        if step == len(self.prefetcher):
            self._is_checkpoint_due = is_due  # after_epoch writes it
        elif is_due or result.stop_signal:
            path = self.save()
            if result.stop_signal:
                raise self._stopped(result.stop_signal, path)

    def after_epoch(self) -> Path | None:
        """Write a checkpoint if one is due, and return its path if it is to be evaluated.

        Raises:
            Stopped: a rank received a signal.
        """
        self.state = self.state._replace(epochs=self.state.epochs + 1, step=0)
        self.prefetcher.report_changes()
        stop_signal = max(distributed.all_gather_object(self.stop.signal))
        is_evaluated = self._is_evaluated(self.state.epochs)
        if not (is_evaluated or self._is_checkpoint_due or stop_signal):
            return None
        path = self.save()
        if stop_signal:
            raise self._stopped(stop_signal, path)
        return path if is_evaluated else None

    def _stopped(self, number: int, path: Path) -> Exception:
        return self.stop.agree_to_stop(
            number,
            f"stopped by {signal.Signals(number).name} after epoch {self.state.epochs} and {self.state.step} "
            f"steps; checkpoint: {path}; go on with -r auto",
        )

    def evaluate(self, path: Path) -> None:
        """Evaluate the model, whose checkpoint is at `path`, and keep the checkpoint if it is the best."""
        if self.validation.data is None:
            return
        with ema_weights(self.model, self.ema), self.stop.immediate():
            metrics = self.validation.evaluate(self.model, self.precision, self.state.epochs, self.loggers)
        self.validation.keep_if_best(path, metrics.ap)

    def save(self) -> Path:
        """Write a checkpoint, remove those that `keep_checkpoints` does not keep, and return its path."""
        distributed.broadcast_buffers(self.model)
        name = checkpoint_name(self.state, self.cfg["epoch"])
        with ema_weights(self.model, self.ema) as raw, distributed.collective_error_check():
            if distributed.is_main():
                path = checkpoint.save_checkpoint(
                    self.folder,
                    name,
                    self.model.state_dict(),
                    self.optimizer,
                    self.state,
                    raw,
                    self.ema,
                    self.precision.state_dict(),
                    self._start,
                )
                remove_old_checkpoints(self.folder, self.state.run, self.cfg["keep_checkpoints"])
                logger.info("checkpoint: %s", path)
        self._last_saved = time.monotonic()
        return self.folder / f"{name}.pdparams"


def _classes(data: DetectionData) -> tuple[list[str], str]:
    return data.class_names, data.source
