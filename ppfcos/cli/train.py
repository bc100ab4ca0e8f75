"""`tools/train.py`: train a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ppfcos import environment
from ppfcos.cli import command

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
    return parser


def train(options: argparse.Namespace) -> None:
    """Train as the command line says.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
        Stopped: a signal ended it.
    """
    environment.prepare()
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.engine import distributed
        from ppfcos.engine.device import select_device
        from ppfcos.engine.interruption import StopRequest
        from ppfcos.engine.trainer import Trainer

    switches = command.overrides(options, "amp", "to_static", "use_vdl", "vdl_log_dir")
    cfg = load_config(options.config, switches)
    device = select_device(cfg)
    distributed.start()
    with StopRequest().listening() as stop:
        Trainer(cfg, device, options.eval, options.resume, stop).train()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(train, build_parser(), argv)
