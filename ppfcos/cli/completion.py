"""`ppfcos completion`: print a completion script for bash, zsh or tcsh."""

from __future__ import annotations

import argparse
import functools

from ppfcos import console
from ppfcos.cli import command
from ppfcos.errors import PPFCOSError

SHELLS = ("bash", "zsh", "tcsh")
# Metavars of options that are folders, and files.
FOLDER_METAVARS = ("FOLDER", "BUNDLE")
FILE_METAVARS = ("FILE", "PATH", "SOURCE", "CHECKPOINT", "OUT")
DESCRIPTION = "Print a script with which a shell completes commands, options and file names of ppfcos."
EXAMPLE = """
eval "$(ppfcos completion bash)"    # in ~/.bashrc
eval "$(ppfcos completion zsh)"     # in ~/.zshrc, below compinit
ppfcos completion tcsh > ~/.ppfcos.completion    # and in ~/.tcshrc: source ~/.ppfcos.completion
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def complete(options: argparse.Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise PPFCOSError("completion needs the package shtab: pip install shtab") from error
    script = shtab.complete(_whole_parser(shtab), options.shell)
    # For repeated arguments, such as bundles, shtab makes zsh complete the first one only.
    console.show(script.replace('"(*):', '"*:') if options.shell == "zsh" else script)


def _whole_parser(shtab) -> argparse.ArgumentParser:
    """All commands in one parser."""
    from ppfcos.cli.main import COMMANDS, parser_of

    parser = argparse.ArgumentParser(prog=command.PROGRAM)
    commands = parser.add_subparsers()
    for name, each in COMMANDS.items():
        # conflict_handler: both the parser and its parent have --help
        child = commands.add_parser(
            name, help=each.summary, parents=[parser_of(name)], conflict_handler="resolve"
        )
        for action in child._actions:
            metavar = str(action.metavar or "").upper()
            if metavar.startswith(FOLDER_METAVARS):
                action.complete = shtab.DIRECTORY
            elif metavar.startswith(FILE_METAVARS):
                action.complete = shtab.FILE
    return parser


main = functools.partial(command.run, complete, build_parser)
