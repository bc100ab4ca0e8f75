"""`tools/train.py`: train a model."""

from __future__ import annotations

import argparse
import functools
import logging
from typing import TYPE_CHECKING

from ppfcos import environment
from ppfcos.cli import command

if TYPE_CHECKING:  # Paddle is imported when a training starts
    from ppfcos.engine.trainer import Trainer

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Train the model of a configuration. Checkpoints are written to save_dir/NAME/, where NAME is the name "
    "of the configuration: one after every snapshot_epoch epochs and snapshot_minutes minutes, model_final, "
    "and with --eval best_model. Ctrl-C, SIGTERM and SIGHUP stop it after the step, with a checkpoint."
)
EXAMPLE = """
python tools/train.py -c configs/fcos_r50_fpn_1x_coco.yml --eval
python -m paddle.distributed.launch --gpus 0,1 tools/train.py -c configs/fcos_r50_fpn_1x_coco.yml --eval
python tools/train.py -c configs/fcos_r50_fpn_1x_coco.yml -r auto --eval
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add(
        "-r",
        "--resume",
        metavar="CHECKPOINT",
        help="resume from a checkpoint, such as output/fcos_r50_fpn_1x_coco/3; auto: from the newest "
        "complete one, or from the beginning if there is none",
    )
    add(
        "--eval",
        action="store_true",
        help="evaluate after every snapshot_epoch epochs and at the end, and keep the best checkpoint",
    )
    command.add_switch(parser, "--amp", "mixed precision, for GPUs: most operators compute in 16 bits")
    command.add_switch(parser, "--to_static", "compile the network into a static graph before training")
    command.add_switch(
        parser, "--use_vdl", "write a VisualDL log; `visualdl --logdir FOLDER` shows it in a browser"
    )
    add(
        "--vdl_log_dir",
        metavar="FOLDER",
        help="folder of the VisualDL log, such as logs/first (default: vdl_log beside the checkpoints)",
    )
    add(
        "--profile",
        action="store_true",
        help="profile some of the first steps, print a summary, and write the trace to profile/ in the run's "
        "folder",
    )
    return parser


def train(options: argparse.Namespace) -> None:
    """Train as the command line says."""
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.engine import distributed, run_record
        from ppfcos.engine.device import select_device
        from ppfcos.engine.run_record import RunLog
        from ppfcos.engine.trainer import Trainer
        from ppfcos.signals import StopRequest

    switches = command.overrides(options, "amp", "to_static", "use_vdl", "vdl_log_dir")
    with RunLog() as log, StopRequest().listening() as stop:
        cfg = load_config(options.config, switches)
        device = select_device(cfg)
        with distributed.process_group(stop_with_launcher=True):
            trainer = Trainer(cfg, device, options.eval, options.resume, stop, options.profile).setup()
            with distributed.collective_error_check():
                if distributed.is_main():
                    log.open(trainer.folder, run_record.command_line())
            trainer.train()
            _log_results(trainer)


def _log_results(trainer: Trainer) -> None:
    from ppfcos.engine import run_record, summary
    from ppfcos.engine.run_folder import FINAL

    last = trainer.folder / f"{FINAL}.pdparams"
    arguments = ["-c", trainer.folder / run_record.CONFIG_FILE, "-o"]
    best = trainer.validation.best
    if best is None:
        following = command.command_line("eval", *arguments, f"weights={last}")
    else:
        following = command.command_line("export_model", *arguments, f"weights={best[0]}")
    for line in filter(None, (each.summary() for each in trainer.loggers.loggers)):
        logger.info("%s", line)
    for line in summary.describe_results(trainer.validation.results, best, last, following):
        logger.info("%s", line)


main = functools.partial(command.run, train, build_parser)
