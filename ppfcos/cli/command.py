"""Parsers, option types, messages and exit codes of all commands. Nothing here imports Paddle."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import shlex
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn

from ppfcos import console, environment
from ppfcos.errors import ConfigError, OutputError, PPFCOSError, ResourceError, Stopped, hint, resource_error

INTERRUPTED = 130  # 128 + SIGINT, as shells count
OPEN_FILES = 1024  # limit of the process, if it is lower
PROGRAM = "ppfcos"
BUNDLE_DEFAULTS = {"runtime": "auto", "precision": "fp32", "device": "auto"}
SUBCOMMANDS = {"export_model": "export"}  # of files in tools/ that have another name


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and name the most similar option."""

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """Parse the arguments; an error ends the process with exit code 2."""
        options, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            name = word.partition("=")[0]
            if name.startswith("-"):
                known = [option for option in self._option_string_actions if option.startswith("--")]
                self.error(f"there is no option {name}{hint(name, known)}")
        if unknown:
            self.error(f"unexpected argument {shlex.quote(unknown[0])}")
        return options

    def error(self, message: str) -> NoReturn:
        """Print the error and end the process with exit code 2."""
        console.complain(f"error: {' '.join(message.split())} (see {self.prog} --help)")
        self.exit(PPFCOSError.exit_code)


def plain_parser(description: str, example: str) -> Parser:
    """A parser with the option --debug.

    Args:
        description: what the command does; wrapped to the width of the terminal.
        example: command lines, shown as they are below the options.
    """
    parser = Parser(
        prog=shlex.join(own_name()),
        description=textwrap.fill(" ".join(description.split()), help_width()),
        epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def help_width() -> int:
    """Columns of the help text, as argparse counts them."""
    return max(shutil.get_terminal_size().columns - 2, 20)


def option_parser(description: str, example: str, config_required: bool = True) -> Parser:
    """A parser with the options of commands that take a configuration: -c, -o, --show-config and --debug."""
    parser = plain_parser(description, example)
    parser.add_argument(
        "-c",
        "--config",
        required=config_required,
        metavar="FILE",
        help="configuration file (YAML), or a name that `ppfcos configs` lists",
    )
    parser.add_argument(
        "-o",
        "--opt",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change keys of the configuration, such as -o epoch=24 LearningRate.base_lr=0.02 use_gpu=false",
    )
    parser.add_argument(
        "--show_config",
        "--show-config",
        action="store_true",
        help="print the configuration, each value with the file and the line that it comes from, and stop",
    )
    return parser


def boolean(text: str) -> bool:
    """The value of an option such as `--use_vdl=true`."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def whole_number(text: str, least: int = 0) -> int:
    """The value of an option that is a whole number of at least `least`."""
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return int(text)


def positive(text: str) -> int:
    """The value of an option that is a whole number from 1."""
    return whole_number(text, least=1)


def list_of(read: Callable[[str], Any]) -> Callable[[str], tuple]:
    """The type of an option that is a list such as `1,2,3`; a value that is repeated counts once."""
    return lambda text: tuple(dict.fromkeys(read(word) for word in text.split(",")))


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    """The type of an option that is one of several words."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not known{hint(text, choices)}")
        return text

    return read


def finite(text: str, most: float = math.inf) -> float:
    """The value of an option that is a number from 0 to `most`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most or value == math.inf:
        limits = "from 0" if most == math.inf else f"from 0 to {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {limits}")
    return value


def image_size(text: str) -> tuple[int, int]:
    """The value of an option such as `800,1344`: height and width."""
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and a width, such as 800,1344")
    return int(sides[0]), int(sides[1])


def add_switch(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add an option that is written `--name`, `--name=true` or `--name false`; None if it is not given."""
    parser.add_argument(
        name, nargs="?", const=True, default=None, type=boolean, metavar="true|false", help=text
    )


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a bundle is run."""
    from ppfcos.deploy.bundle import PRECISIONS
    from ppfcos.deploy.runtimes.choice import RUNTIMES

    add = parser.add_argument
    add("--runtime", choices=RUNTIMES, help="for --bundle (default: the first installed)")
    add("--precision", choices=PRECISIONS, help="for --bundle (default: fp32)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    add("--device", help="for --bundle: auto, cpu, gpu or a device name of the runtime (default: auto)")
    parser.set_defaults(**BUNDLE_DEFAULTS)


def require_bundle(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that only a bundle has, if there is none.

    Args:
        options: the parsed command line.
        names: further options of bundles, besides those of `add_bundle_options`; None if not given.

    Raises:
        ConfigError: one is given without --bundle.
    """
    if options.bundle:
        return
    for name, default in {**BUNDLE_DEFAULTS, **dict.fromkeys(names)}.items():
        if getattr(options, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')} is for bundles: add --bundle FOLDER, or remove it")


def overrides(options: argparse.Namespace, *names: str) -> list[str]:
    """Return the `-o` overrides, followed by the options `names` that are given, as `KEY=VALUE` in JSON."""
    given = [(name, getattr(options, name)) for name in names if getattr(options, name) is not None]
    return options.opt + [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given]


def command_line(tool: str, *arguments: object) -> str:
    """Return another command for a shell, in the form in which this one was started.

    Args:
        tool: name of a file in tools/, such as `eval`.
        arguments: of the command.
    """
    started = Path(sys.argv[0])
    if started.suffix == ".py" and not _is_package():
        words = ["python", started.with_name(f"{tool}.py")]
    else:
        words = [*_program(), SUBCOMMANDS.get(tool, tool)]
    return shlex.join(str(word) for word in (*words, *arguments))


def own_name() -> list[str]:
    """Name of the running command, such as ["train.py"] or ["ppfcos", "train"]."""
    has_subcommands = _is_package() or Path(sys.argv[0]).name == PROGRAM
    return [*_program(), *sys.argv[1:2]] if has_subcommands else [Path(sys.argv[0]).name]


def _program() -> list[str]:
    return ["python", "-m", "ppfcos"] if _is_package() else [Path(sys.argv[0]).name]


def _is_package() -> bool:
    return Path(sys.argv[0]).parts[-2:] == (PROGRAM, "__main__.py")


def run(
    command: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser | Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run the command, and turn its errors into one line each and an exit code.

    Args:
        command: takes the parsed options; returns an exit code, or None for 0.
        parser: of the command line, or the function that builds it.
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    console.prepare_streams()
    _raise_limit_of_open_files()
    try:
        options = (parser() if callable(parser) else parser).parse_args(argv)
    except SystemExit as end:  # after --help, or an error in the command line
        raise SystemExit(_flushed(end.code)) from None
    with messages_on_stdout() as handler, warnings.catch_warnings():
        if not options.debug:
            warnings.filterwarnings("ignore", module="paddle")  # about its own operators
        try:
            environment.require_usable_opencv()
            shows_config = getattr(options, "show_config", False)
            code = (_show_config if shows_config else command)(options) or 0
            if handler.failure is not None:
                raise OutputError(
                    f"the standard output cannot be written: {handler.failure.strerror}; "
                    "the command is complete otherwise"
                )
        except Stopped as stopped:
            console.complain(stopped)
            code = stopped.exit_code
        except KeyboardInterrupt:
            console.complain("interrupted")
            code = INTERRUPTED
        except Exception as error:
            known = error if isinstance(error, PPFCOSError) else resource_error(error)
            if known is None:
                raise
            if isinstance(known, ResourceError) and not options.debug:
                sys.unraisablehook = lambda _: None  # objects that are half built complain when deleted
            if options.debug:
                console.complain(traceback.format_exc(), keep="\n")
            for message in getattr(known, "messages", None) or [str(known)]:
                console.complain("error: " + " ".join(message.split()))
            code = known.exit_code
        return _flushed(code)


def _flushed(code: int) -> int:
    """Flush the standard output; returns the exit code."""
    try:
        console.flush()
    except OutputError as error:
        console.complain(f"error: {error}")
        return code or error.exit_code
    return code


def _raise_limit_of_open_files() -> None:
    """Raise the limit to OPEN_FILES, as far as the hard limit allows."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _show_config(options: argparse.Namespace) -> int:
    if options.config is None:
        raise ConfigError("--show_config shows a configuration: name it with -c FILE")
    from ppfcos.config.show import annotated_config

    console.show(annotated_config(options.config, options.opt))
    return 0


@contextlib.contextmanager
def messages_on_stdout() -> Iterator[console.ScreenHandler]:
    """Print the log messages of ppfcos; all processes but the first print warnings only."""
    handler = console.ScreenHandler()
    logger = logging.getLogger("ppfcos")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # a handler of the root logger would print every line twice
    logger.setLevel(logging.INFO if console.is_main_process() else logging.WARNING)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
