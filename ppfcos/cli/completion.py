"""`ppfcos completion`: a script by which bash, zsh or tcsh completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ppfcos import console
from ppfcos.cli import command
from ppfcos.errors import PPFCOSError

SHELLS = ("bash", "zsh", "tcsh")
# How the help calls what names folders, and files.
FOLDER_PLACES = ("FOLDER", "BUNDLE")
FILE_PLACES = ("FILE", "PATH", "SOURCE", "CHECKPOINT", "OUT")
DESCRIPTION = "Print a script that lets a shell complete the words of this program."
EXAMPLE = """
eval "$(ppfcos completion bash)"    # in ~/.bashrc
eval "$(ppfcos completion zsh)"     # in ~/.zshrc, below compinit
ppfcos completion tcsh > ~/.ppfcos.completion    # and in ~/.tcshrc: source ~/.ppfcos.completion
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line.

    Returns:
        Its parser.
    """
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def complete(options: argparse.Namespace) -> None:
    """Print the script.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: the library that writes it is missing.
    """
    try:
        import shtab
    except ImportError as error:
        raise PPFCOSError("completion needs the package shtab: pip install shtab") from error
    script = shtab.complete(_whole_parser(shtab), options.shell)
    # Of several words, such as bundles, shtab lets zsh complete only the first.
    console.show(script.replace('"(*):', '"*:') if options.shell == "zsh" else script)


def _whole_parser(shtab) -> argparse.ArgumentParser:
    """All commands in one parser."""
    from ppfcos.cli.main import COMMANDS, parser_of

    parser = argparse.ArgumentParser(prog=command.PROGRAM)
    commands = parser.add_subparsers()
    for name, each in COMMANDS.items():
        # the parent's --help and the child's are the same
        child = commands.add_parser(
            name, help=each.summary, parents=[parser_of(name)], conflict_handler="resolve"
        )
        for action in child._actions:
            place = str(action.metavar or "").upper()
            if place.startswith(FOLDER_PLACES):
                action.complete = shtab.DIRECTORY
            elif place.startswith(FILE_PLACES):
                action.complete = shtab.FILE
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(complete, build_parser(), argv)
