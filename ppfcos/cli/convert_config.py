"""`tools/convert_config.py`: convert a configuration of PaddleDetection's FCOS."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ppfcos import environment
from ppfcos.cli import command

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Convert a configuration of PaddleDetection's FCOS, with its base files, into one file for PPFCOS, and "
    "list what is changed and what is left out. Convert checkpoints with convert-weights."
)
EXAMPLE = """
    python tools/convert_config.py PaddleDetection/configs/fcos/fcos_r50_fpn_1x_coco.yml -o configs/mine.yml
    python tools/convert_config.py theirs.yml -o ours.yml --devices 8
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add("source", metavar="FILE", type=Path, help="the configuration of PaddleDetection")
    add("-o", "--output", metavar="OUT.yml", type=Path, required=True, help="the configuration to write")
    add(
        "--devices",
        type=command.positive,
        default=1,
        metavar="N",
        help="devices that trained with it: PaddleDetection's batch_size counts on each (default: 1)",
    )
    return parser


def convert(options: argparse.Namespace) -> int:
    """Convert the configuration and list the changes; 1 if the result has errors."""
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.convert.paddledet_config import convert_config

    changes, errors = convert_config(options.source, options.output, options.devices)
    for change in changes:
        logger.info("%s", change)
    for error in errors:
        logger.warning("correct by hand: %s", error)
    logger.info("configuration written to %s", options.output)
    logger.info("train with: %s", command.command_line("train", "-c", options.output))
    return 1 if errors else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return command.run(convert, build_parser(), argv)
