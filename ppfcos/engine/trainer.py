"""The training: epochs of steps, a checkpoint and an evaluation after some of them."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import EvalLoader, TrainLoader
from ppfcos.engine import checkpoint, distributed
from ppfcos.engine.averaging import averaged_weights, build_average
from ppfcos.engine.checkpoint import TrainingState
from ppfcos.engine.coco_metrics import CocoFigures
from ppfcos.engine.evaluator import evaluate
from ppfcos.engine.feed import BatchFeed
from ppfcos.engine.files import require_writable
from ppfcos.engine.model import build_model, compile_network, has_synchronized_backbone
from ppfcos.engine.precision import Precision
from ppfcos.engine.progress import Progress
from ppfcos.engine.schedule import build_optimizer, build_schedule
from ppfcos.engine.visualdl_log import VisualDLLog
from ppfcos.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)

BEST, FINAL = "best_model", "model_final"  # PaddleDetection's names
NAMED_IMAGES = 16  # most images that an error names


def run_folder(cfg: Mapping[str, Any]) -> Path:
    """Where a run keeps its checkpoints.

    Args:
        cfg: the configuration.

    Returns:
        `{save_dir}/{filename}`.
    """
    return Path(cfg["save_dir"]) / cfg["filename"]


class Trainer:
    """Trains the model of a configuration. The device must be selected, and the processes joined, before.

    Args:
        cfg: the configuration, from load_config.
        device: as Paddle names it.
        with_evaluation: evaluate wherever a checkpoint is written, and keep the best one.
        resume: the checkpoint to go on from, if any.

    Raises:
        PPFCOSError: the output folder, the configuration, the data or the weights do not do. Nothing is
            written.
    """

    def __init__(
        self, cfg: Mapping[str, Any], device: str, with_evaluation: bool = False, resume: str | None = None
    ):
        self.cfg = cfg
        self.device = device
        self.folder = run_folder(cfg)
        self.state = TrainingState(epochs=0)
        self.best_ap: float | None = None
        self.figures: CocoFigures | None = None
        self.curves: VisualDLLog | None = None
        with distributed.together():
            if distributed.is_main():
                require_writable(self.folder)
        with distributed.together():
            self._read_data(with_evaluation)
        with distributed.together():
            self._build_model()
        self._load_weights(resume)
        self.progress = Progress(cfg["epoch"], len(self.feed), cfg["log_iter"], self.batch_size)
        self.parallel_model = paddle.DataParallel(self.model) if distributed.world_size() > 1 else self.model

    def _read_data(self, with_evaluation: bool) -> None:
        cfg, place = self.cfg, (distributed.world_size(), distributed.rank())
        self.batch_size = cfg["TrainReader"]["total_batch_size"]
        self.train_data = build_dataset(cfg, "TrainDataset")
        self.feed = BatchFeed(TrainLoader(cfg, self.train_data, *place), cfg["max_bad_images"])
        self.eval_data = build_dataset(cfg, "EvalDataset") if with_evaluation else None
        self.eval_loader = EvalLoader(cfg, self.eval_data, "EvalReader", *place) if with_evaluation else None

    def _build_model(self) -> None:
        cfg = self.cfg
        self.schedule = build_schedule(cfg, len(self.feed))
        self.precision = Precision(cfg, self.device)
        _seed(cfg.get("seed") or 0)
        self.model = build_model(cfg)
        if has_synchronized_backbone(cfg) and distributed.world_size() > 1 and self.device != "cpu":
            distributed.synchronize_norms(self.model.backbone)
        if cfg["to_static"]:
            compile_network(self.model)
        self.optimizer = build_optimizer(self.model, self.schedule)
        self.average = build_average(cfg, self.model)

    def _load_weights(self, resume: str | None) -> None:
        pretrained = self.cfg.get("pretrain_weights")
        with distributed.together():
            if resume:
                self.state = checkpoint.resume(self.model, self.optimizer, resume, self.average)
                self.best_ap = checkpoint.saved_ap(self.folder / BEST)
                if self.state.epochs >= self.cfg["epoch"]:
                    raise ConfigError(
                        f"{resume} has finished all {self.state.epochs} epochs: train more of them with "
                        f"-o epoch={self.state.epochs + 1}"
                    )
                logger.info("resumed from %s, after epoch %d", resume, self.state.epochs)
            elif pretrained:
                checkpoint.load_pretrained(self.model, pretrained)

    def train(self) -> CocoFigures | None:
        """Train to the last epoch.

        Returns:
            The last evaluation's figures; None without evaluations.

        Raises:
            PPFCOSError: the training cannot go on; all processes raise the same.
        """
        self.before_train()
        try:
            for epoch in range(self.state.epochs, self.cfg["epoch"]):
                self.train_in_epoch(epoch)
                self.after_epoch(epoch)
        finally:
            if self.curves is not None:
                self.curves.close()
        self.after_train()
        return self.figures

    def before_train(self) -> None:
        """Say what is about to happen, and open the log of the curves."""
        with distributed.together():
            if distributed.is_main() and self.cfg["use_vdl"]:
                self.curves = VisualDLLog(self.cfg.get("vdl_log_dir") or self.folder / "vdl_log")
        logger.info(
            "epochs %d to %d, each %d steps of %d images; %d process%s on %s; checkpoints in %s",
            self.state.epochs + 1,
            self.cfg["epoch"],
            len(self.feed),
            self.batch_size,
            distributed.world_size(),
            "" if distributed.world_size() == 1 else "es",
            self.device.split(":")[0],
            self.folder,
        )

    def train_in_epoch(self, epoch: int) -> None:
        """All steps of an epoch.

        Args:
            epoch: from 0.
        """
        self.model.train()
        self.progress.start_epoch()
        self.feed.start_epoch(epoch)
        for step in range(1, len(self.feed) + 1):
            learning_rate = self.optimizer.get_lr()
            losses = self.train_one_step(f"epoch {epoch + 1}, step {step}")
            self.after_step(epoch, step, losses, learning_rate)

    def train_one_step(self, name: str) -> dict[str, float]:
        """Forward, backward, update.

        Args:
            name: of the step, for an error.

        Returns:
            The losses, means over all processes.
        """
        batch = self.feed.current
        with self.precision.autocast():
            losses = self.parallel_model({key: batch[key] for key in batch if key != "bad_images"})
        self.precision.backward(losses["loss"])
        values = paddle.stack([value.astype("float32") for value in losses.values()])
        means = dict(zip(losses, self.feed.advance(values)))
        if not np.isfinite(list(means.values())).all():
            self.stop_not_finite(losses, batch, name)
        self.precision.update(self.optimizer)
        self.schedule.step()
        if self.average is not None:
            self.average.update(self.model)
        return means

    def after_step(self, epoch: int, step: int, losses: dict[str, float], learning_rate: float) -> None:
        """Note the losses, and report every few steps.

        Args:
            epoch: from 0.
            step: from 1.
            losses: of the step.
            learning_rate: of the step.
        """
        self.progress.add(losses, self.feed.take_seconds_waited())
        if self.progress.is_due(step):
            report = self.progress.report(epoch, step, learning_rate)
            logger.info("%s", report.line())
            if self.curves is not None:
                self.curves.add_step(report)

    def after_epoch(self, epoch: int) -> None:
        """Write a checkpoint and evaluate it, if it is time to.

        Args:
            epoch: from 0.
        """
        self.state = TrainingState(epochs=epoch + 1)
        is_last = self.state.epochs == self.cfg["epoch"]
        if self.state.epochs % self.cfg["snapshot_epoch"] and not is_last:
            return
        distributed.share_statistics(self.model)
        with averaged_weights(self.model, self.average) as own:
            self.save(FINAL if is_last else str(epoch), own)
            if self.eval_loader is not None:
                self.evaluate_and_keep_best(own)

    def evaluate_and_keep_best(self, own: dict[str, Tensor] | None) -> None:
        """Evaluate the weights that the model has now.

        Args:
            own: the model's own weights, while it has the averaged ones.
        """
        self.figures = evaluate(
            self.model, self.eval_loader, self.eval_data, self.precision, self.cfg["coco_eval"]
        )
        logger.info("after epoch %d:\n%s", self.state.epochs, self.figures.table())
        if self.curves is not None:
            self.curves.add_figures(self.figures, self.state.epochs)
        if self.best_ap is None or self.figures.ap > self.best_ap:
            self.best_ap = self.figures.ap
            self.state = self.state._replace(ap=self.best_ap)
            self.save(BEST, own)

    def save(self, name: str, own: dict[str, Tensor] | None) -> None:
        """Write a checkpoint of the weights that the model has now.

        Args:
            name: of the checkpoint.
            own: the model's own weights, while it has the averaged ones.
        """
        weights = self.model.state_dict()
        with distributed.together():
            if distributed.is_main():
                path = checkpoint.save_checkpoint(
                    self.folder, name, weights, self.optimizer, self.state, own, self.average
                )
                logger.info("checkpoint: %s", path)

    def after_train(self) -> None:
        """Say what came out."""
        if self.curves is not None:
            logger.info("curves: visualdl --logdir %s", self.curves.folder)
        if self.best_ap is not None:
            logger.info("best checkpoint: %s, box AP %.3f", self.folder / f"{BEST}.pdparams", self.best_ap)
        logger.info("training is done; last checkpoint: %s", self.folder / f"{FINAL}.pdparams")

    def stop_not_finite(self, losses: dict[str, Tensor], batch: dict, name: str) -> None:
        """Stop before a loss that is not finite spoils the weights.

        Args:
            losses: of this process.
            batch: of this process.
            name: of the step.

        Raises:
            TrainingError: always, the same in all processes.
        """
        files = {int(record["im_id"][0]): record["im_file"] for record in self.train_data.records}
        values = {key: float(value) for key, value in losses.items()}
        images = [files[int(number)] for number in batch["im_id"].numpy().reshape(-1)]
        everywhere = distributed.gather((values, images))
        broken = [part for part in everywhere if not np.isfinite(list(part[0].values())).all()]
        shown = " and ".join(
            ", ".join(f"{key} {value:.4g}" for key, value in part[0].items()) for part in broken
        )
        culprits = [image for part in broken for image in part[1]]
        more = f" and {len(culprits) - NAMED_IMAGES} more" if len(culprits) > NAMED_IMAGES else ""
        raise TrainingError(
            f"the loss is not finite at {name} ({shown}), learning rate {self.optimizer.get_lr():.6g}, "
            f"images {', '.join(culprits[:NAMED_IMAGES])}{more}: lower LearningRate.base_lr, "
            "or look at their annotations"
        )


def _seed(seed: int) -> None:
    """Random weights are the same in every run and process."""
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
