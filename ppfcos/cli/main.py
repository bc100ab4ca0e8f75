"""`ppfcos`: all commands in one program. A command is imported when it is run."""

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
    """A module of ppfcos.cli with `main` and `build_parser`, and what it does in a few words."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("train", "train a model"),
    "eval": Command("eval", "evaluate a model with COCO's metrics"),
    "infer": Command("infer", "detect objects in images or a video"),
    "export": Command("export_model", "export a trained model for deployment"),
    "model-info": Command("model_info", "show an exported network layer by layer"),
    "benchmark": Command("benchmark", "measure the latency and throughput of exported models"),
    "convert-weights": Command("convert_weights", "convert weights of other FCOS projects"),
    "convert-config": Command("convert_config", "convert a configuration of PaddleDetection's FCOS"),
    "convert-data": Command("convert_data", "convert a data set between COCO, Pascal VOC and YOLO"),
    "check-data": Command("check_data", "find errors in a data set"),
    "show-batch": Command("show_batch", "draw training batches with their targets"),
    "configs": Command("configs", "list the configurations that come with this package"),
    "environment": Command("environment", "print versions, devices and problems, for a bug report"),
    "completion": Command("completion", "print a completion script for a shell"),
}


def usage() -> str:
    """Return the text of `ppfcos --help`."""
    width, column = help_width(), max(map(len, COMMANDS)) + 5
    commands = (
        textwrap.fill(f"{'  ' + name:<{column}}{command.summary}", width, subsequent_indent=" " * column)
        for name, command in COMMANDS.items()
    )
    description = "FCOS, the anchor-free object detector, trained on PaddlePaddle in PaddleDetection's style."
    more = f"`{PROGRAM} COMMAND --help` shows the options of a command, `{PROGRAM} --version` the version."
    paragraphs = (textwrap.fill(description, width), "commands:\n" + "\n".join(commands))
    return "\n\n".join((f"usage: {PROGRAM} COMMAND [OPTIONS]", *paragraphs, textwrap.fill(more, width)))


def parser_of(name: str) -> argparse.ArgumentParser:
    """Build the parser of a command."""
    return _module(name).build_parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit code."""
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
