"""What all commands share: their common options, what they print, and how they end.

Nothing here imports Paddle, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn, TypeVar

from ppfcos import console, environment
from ppfcos.errors import ConfigError, OutputError, PPFCOSError, ResourceError, Stopped, hint, resource_error

T = TypeVar("T")


def count() -> int:
    """The number of processes; 1 without a launcher."""
    text = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    return max(1, int(text)) if text.isdigit() else 1


def rank() -> int:
    """The number of this process; 0 without a launcher."""
    return 0 if count() == 1 else int(os.environ["PADDLE_TRAINER_ID"])


def share(things: Sequence[T]) -> Sequence[T]:
    """This process's part: every n-th of n processes, for neighbours are often alike."""
    if count() == 1:
        return things
    return things[rank() :: count()]


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes: if one fails or dies, all end. The device must be selected before."""
    from ppfcos.engine import watchdog

    with watchdog.exit_with_launcher():
        if count() == 1:
            yield
            return
        with environment.quiet_imports():
            from ppfcos.engine import distributed
        with distributed.process_group():
            yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let what fails inside in one process fail in all. They must be joined."""
    if count() == 1:
        yield
        return
    from ppfcos.engine import distributed

    with distributed.collective_error_check():
        yield


def gather(value: Any) -> list:
    """What each process has, in all of them. They must be joined."""
    if count() == 1:
        return [value]
    from ppfcos.engine import distributed

    return distributed.all_gather_object(value)


INTERRUPTED = 130  # 128 + SIGINT, as shells count
OPEN_FILES = 1024  # to which the limit is raised where it is lower and may be
PROGRAM = "ppfcos"
BUNDLE_DEFAULTS = {"runtime": "auto", "precision": "fp32", "device": "auto"}
WORDS = {"export_model": "export"}  # the program's words for the files in tools/ that are named otherwise


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, which names the nearest option."""

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """As argparse's; ends the process with exit code 2 where the line makes no sense."""
        options, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            name = word.partition("=")[0]
            if name.startswith("-"):
                known = [option for option in self._option_string_actions if option.startswith("--")]
                self.error(f"there is no option {name}{hint(name, known)}")
        if unknown:
            self.error(f"nothing was expected at {shlex.quote(unknown[0])}")
        return options

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end the process with exit code 2."""
        console.complain(f"error: {' '.join(message.split())} (see {self.prog} --help)")
        self.exit(PPFCOSError.exit_code)


def plain_parser(description: str, example: str) -> Parser:
    """A parser without options of its own but --debug.

    Args:
        description: what the command does, a sentence or two; its lines are broken where the terminal ends.
        example: command lines that work, shown as they are below the options.

    Returns:
        A parser to which the command adds its options.
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
    """Columns for a text of the help: those that argparse takes for the options."""
    return max(shutil.get_terminal_size().columns - 2, 20)


def option_parser(description: str, example: str, config_required: bool = True) -> Parser:
    """A parser with the options of all commands that take a configuration: -c, -o and --debug.

    Args:
        description: what the command does, a sentence or two.
        example: command lines that work, shown as they are below the options.
        config_required: False for a command that can run without a configuration.

    Returns:
        A parser to which the command adds its own options.
    """
    parser = plain_parser(description, example)
    parser.add_argument(
        "-c", "--config", required=config_required, metavar="FILE", help="configuration file (YAML)"
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
    """The value of an option such as `--use_vdl=true`.

    Args:
        text: true, yes, on, 1 or false, no, off, 0, in any case.

    Returns:
        What it says.

    Raises:
        argparse.ArgumentTypeError: it says neither.
    """
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def add_switch(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add an option that works as `--name`, `--name=true` and `--name false`; None when not given.

    Args:
        parser: the command's.
        name: with its dashes.
        text: what it switches on.
    """
    parser.add_argument(
        name, nargs="?", const=True, default=None, type=boolean, metavar="true|false", help=text
    )


def positive(text: str) -> int:
    """The value of an option that is a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is another one.
    """
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a bundle is run.

    Args:
        parser: the command's.
    """
    from ppfcos.deploy.bundle import PRECISIONS
    from ppfcos.deploy.runtimes.choice import RUNTIMES

    add = parser.add_argument
    add("--runtime", choices=RUNTIMES, help="for --bundle (default: the first installed)")
    add("--precision", choices=PRECISIONS, help="for --bundle (default: fp32)")
    add("--threads", type=positive, metavar="N", help="threads of the CPU (default: every core)")
    add("--device", help="for --bundle: auto, cpu, gpu or a name that the runtime knows (default: auto)")
    parser.set_defaults(**BUNDLE_DEFAULTS)


def require_bundle(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that would be passed over in silence: those that say how a bundle is run, without one.

    Args:
        options: the parsed command line.
        names: of options that are for a bundle, besides those of `add_bundle_options`; None where not given.

    Raises:
        ConfigError: one is given without --bundle.
    """
    if options.bundle:
        return
    for name, default in {**BUNDLE_DEFAULTS, **dict.fromkeys(names)}.items():
        if getattr(options, name) != default:
            raise ConfigError(
                f"--{name.replace('_', '-')} is of a bundle: add --bundle FOLDER, or leave it out"
            )


def overrides(options: argparse.Namespace, *names: str) -> list[str]:
    """The `-o` overrides, followed by those options that are keys of the configuration too.

    Args:
        options: the parsed command line.
        names: options to pass on where they are given.

    Returns:
        `KEY=VALUE` strings for `load_config`.
    """
    given = [(name, getattr(options, name)) for name in names if getattr(options, name) is not None]
    return options.opt + [f"{name}={value}" for name, value in given]


def command_line(tool: str, *arguments: object) -> str:
    """How a user types another command, in the manner in which this one was started.

    Args:
        tool: such as `eval`.
        arguments: of it.

    Returns:
        Such as `python tools/eval.py -c configs/mine.yml`, to be pasted into a shell.
    """
    started = Path(sys.argv[0])
    if started.suffix == ".py" and not _is_package():
        words = ["python", started.with_name(f"{tool}.py")]
    else:
        words = [*_program(), WORDS.get(tool, tool)]
    return shlex.join(str(word) for word in (*words, *arguments))


def own_name() -> list[str]:
    """How the running command was named on its command line.

    Returns:
        Such as ["train.py"] or ["ppfcos", "train"].
    """
    return [*_program(), *sys.argv[1:2]] if _has_words() else [Path(sys.argv[0]).name]


def _program() -> list[str]:
    return ["python", "-m", "ppfcos"] if _is_package() else [Path(sys.argv[0]).name]


def _has_words() -> bool:
    """Whether this is the program whose commands are words, not one of the files in tools/."""
    return _is_package() or Path(sys.argv[0]).name == PROGRAM


def _is_package() -> bool:
    return Path(sys.argv[0]).parts[-2:] == (PROGRAM, "__main__.py")


def run(
    command: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run the command, and turn its errors into a line and an exit code.

    Args:
        command: what to do with the parsed options; returns an exit code of its own, or None for 0.
        parser: of the command line.
        argv: the arguments; those of the process where None.

    Returns:
        0 or what the command returned, or the exit code of the error.
    """
    console.prepare_streams()
    _raise_limit_of_open_files()
    try:
        options = parser.parse_args(argv)
    except SystemExit as end:  # after --help, or an error in the command line
        raise SystemExit(_flushed(end.code)) from None
    with messages_on_stdout() as handler, warnings.catch_warnings():
        if not options.debug:
            # Of its own operators, and nothing that a user could do anything about.
            warnings.filterwarnings("ignore", module="paddle")
        try:
            environment.require_usable_opencv()
            code = (
                _show_config(options) if getattr(options, "show_config", False) else command(options)
            ) or 0
            if handler.failure is not None:
                raise OutputError(
                    f"the standard output could not be written: {handler.failure.strerror}; "
                    "what the command was to do is done"
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
                sys.unraisablehook = lambda _: None  # what half-made objects say when they are removed
            if options.debug:
                console.complain(traceback.format_exc(), keep="\n")
            console.complain("error: " + " ".join(str(known).split()))
            code = known.exit_code
        return _flushed(code)


def _flushed(code: int) -> int:
    """The exit code, once the standard output is written."""
    try:
        console.flush()
    except OutputError as error:
        console.complain(f"error: {error}")
        return code or error.exit_code
    return code


def _raise_limit_of_open_files() -> None:
    """As far as it may be raised without privileges, and no further than is wanted."""
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
    """Print the log messages of ppfcos; of several processes only the first says more than warnings."""
    handler = console.ScreenHandler()
    logger = logging.getLogger("ppfcos")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # a library's handler on the root logger would print every line twice
    logger.setLevel(logging.INFO if console.is_main_process() else logging.WARNING)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
