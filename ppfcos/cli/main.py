"""`ppfcos`: all commands under one name. Each is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import ppfcos
from ppfcos import console
from ppfcos.cli.command import PROGRAM, help_width
from ppfcos.errors import OutputError, PPFCOSError, hint


class Command(NamedTuple):
    """One of the commands.

    Attributes:
        module: in ppfcos.cli; its `main` takes the arguments, its `build_parser` describes them.
        summary: what the command does, a few words.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Command("train", "train the model of a configuration"),
    "eval": Command("eval", "measure a model by COCO's figures"),
    "infer": Command("infer", "find objects in pictures"),
    "export": Command("export_model", "turn a trained model into a bundle that runs anywhere"),
    "model-info": Command("model_info", "look into an exported network, layer by layer"),
    "benchmark": Command("benchmark", "how long bundles take, stage by stage and side by side"),
    "convert-weights": Command("convert_weights", "bring the weights of other FCOS projects here"),
    "convert-config": Command("convert_config", "convert a configuration of PaddleDetection's FCOS"),
    "convert-data": Command("convert_data", "COCO, Pascal VOC and YOLO annotations into one another"),
    "check-data": Command("check_data", "find what is wrong with a data set"),
    "show-batch": Command("show_batch", "draw what the network is fed with"),
    "environment": Command("environment", "versions, devices and problems, for a bug report"),
    "completion": Command("completion", "what lets a shell complete the words of this program"),
}


def usage() -> str:
    """What `ppfcos --help` prints."""
    width, column = help_width(), max(map(len, COMMANDS)) + 5
    listed = (
        textwrap.fill(f"{'  ' + name:<{column}}{command.summary}", width, subsequent_indent=" " * column)
        for name, command in COMMANDS.items()
    )
    what = "FCOS, the anchor-free object detector, trained on PaddlePaddle in PaddleDetection's style."
    more = f"`{PROGRAM} COMMAND --help` tells the options of each; `{PROGRAM} --version` the version."
    return "\n\n".join(
        (
            f"usage: {PROGRAM} COMMAND [OPTIONS]",
            textwrap.fill(what, width),
            "commands:\n" + "\n".join(listed),
            textwrap.fill(more, width),
        )
    )


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        name: of the command.

    Returns:
        What its module builds.
    """
    return _module(name).build_parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code.
    """
    console.prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        return _print(usage())
    if words[0] == "--version":
        return _print(f"{PROGRAM} {ppfcos.__version__}")
    if words[0] not in COMMANDS:
        what = "option" if words[0].startswith("-") else "command"
        near = hint(words[0], COMMANDS) if what == "command" else f"; {PROGRAM} COMMAND comes first"
        console.complain(f"error: there is no {what} {words[0]}{near}")
        return PPFCOSError.exit_code
    return _module(words[0]).main(words[1:])


def _print(text: str) -> int:
    try:
        console.show(text)
    except OutputError as error:
        console.complain(f"error: {error}")
        return error.exit_code
    return 0


def _module(name: str):
    return importlib.import_module(f"ppfcos.cli.{COMMANDS[name].module}")
