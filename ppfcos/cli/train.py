"""`tools/train.py`: train a model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppfcos import environment
from ppfcos.cli import command

if TYPE_CHECKING:  # Paddle is not imported before it is needed
    from ppfcos.engine.trainer import Trainer

logger = logging.getLogger(__name__)

EXAMPLE = """
python tools/train.py -c configs/fcos_r50_fpn_1x_coco.yml --eval
python -m paddle.distributed.launch --gpus 0,1 tools/train.py -c configs/fcos_r50_fpn_1x_coco.yml --eval
python tools/train.py -c configs/fcos_r50_fpn_1x_coco.yml -r auto --eval
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line.

    Returns:
        Its parser.
    """
    parser = command.option_parser(
        "Train the model of a configuration. Checkpoints go to save_dir/NAME/, NAME being the\n"
        "configuration's: one after every snapshot_epoch epochs and every snapshot_minutes minutes,\n"
        "model_final, and with --eval best_model. Ctrl-C and SIGTERM finish the step and write one too.",
        EXAMPLE,
    )
    parser.add_argument(
        "-r",
        "--resume",
        metavar="CHECKPOINT",
        help="go on from a checkpoint, such as output/fcos_r50_fpn_1x_coco/3; auto: from the newest whole "
        "one, or from the beginning where there is none",
    )
    parser.add_argument(
        "--eval",
        action="store_true",
        help="evaluate after every snapshot_epoch epochs and at the end, and keep the best checkpoint",
    )
    command.add_switch(parser, "--amp", "mixed precision, for GPUs: convolutions and the like in 16 bits")
    command.add_switch(parser, "--to_static", "compile the network into a static graph before it is trained")
    command.add_switch(
        parser, "--use_vdl", "write curves for VisualDL; `visualdl --logdir FOLDER` shows them in a browser"
    )
    parser.add_argument(
        "--vdl_log_dir",
        metavar="FOLDER",
        help="where to write them, such as logs/first (default: vdl_log beside the checkpoints)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="trace a few of the first steps, say where their time went, and write the trace to the run's "
        "folder profile/",
    )
    return parser


def train(options: argparse.Namespace) -> None:
    """Train as the command line says.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
        Stopped: a signal ended it.
    """
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.engine import distributed, run_record
        from ppfcos.engine.device import select_device
        from ppfcos.engine.hooks import StopRequest
        from ppfcos.engine.run_record import RunLog
        from ppfcos.engine.trainer import Trainer

    switches = command.overrides(options, "amp", "to_static", "use_vdl", "vdl_log_dir")
    with RunLog() as log, StopRequest().listening() as stop:
        cfg = load_config(options.config, switches)
        device = select_device(cfg)
        with distributed.process_group():
            trainer = Trainer(cfg, device, options.eval, options.resume, stop, options.profile)
            with distributed.collective_error_check():
                if distributed.is_main():
                    log.open(trainer.folder, run_record.command_line())
            trainer.train()
            _say_what_came_of_it(trainer)


def _say_what_came_of_it(trainer: Trainer) -> None:
    from ppfcos.engine import run_record, summary
    from ppfcos.engine.run_folder import FINAL

    last = trainer.folder / f"{FINAL}.pdparams"
    arguments = ["-c", trainer.folder / run_record.CONFIG_FILE, "-o"]
    best = trainer.validation.best
    if best is None:
        following = command.command_line("eval", *arguments, f"weights={last}")
    else:
        following = command.command_line("export_model", *arguments, f"weights={best[0]}")
    if trainer.writer is not None:
        logger.info("curves: visualdl --language en --logdir %s", trainer.writer.folder)
    for line in summary.describe_results(trainer.validation.made, best, last, following):
        logger.info("%s", line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(train, build_parser(), argv)
