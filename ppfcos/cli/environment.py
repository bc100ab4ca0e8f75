"""`ppfcos environment`: versions, devices and problems, to be pasted into a bug report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ppfcos import console
from ppfcos.cli import command

DESCRIPTION = (
    "Print what is installed, what this machine has, and what will not work. Nothing of your data is in it."
)
EXAMPLE = """
ppfcos environment
python -m ppfcos environment
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line.

    Returns:
        Its parser.
    """
    return command.plain_parser(DESCRIPTION, EXAMPLE)


def show(options: argparse.Namespace) -> None:
    """Print the report.

    Args:
        options: of `build_parser`.
    """
    from ppfcos.diagnosis import report

    console.show("\n".join(report()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(show, build_parser(), argv)
