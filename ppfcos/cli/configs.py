"""`ppfcos configs`: list the configurations that come with this package."""

from __future__ import annotations

import argparse
import functools

from ppfcos import console
from ppfcos.cli import command
from ppfcos.config.files import shipped_folder

DESCRIPTION = """
List the configurations that come with this package, for `-c NAME`. A file of your own builds on one with
`_BASE_: NAME.yml`.
"""
EXAMPLE = """
ppfcos configs
ppfcos train -c fcos_r50_fpn_1x_coco
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    return command.plain_parser(DESCRIPTION, EXAMPLE)


def show(options: argparse.Namespace) -> None:
    """Print the names, and the folder of the files on the standard error."""
    folder = shipped_folder()
    names = sorted(file.stem for file in folder.glob("fcos_*.yml"))
    console.show("\n".join(names))
    console.complain(f"{len(names)} configurations in {folder}")


main = functools.partial(command.run, show, build_parser)
