"""Downloads BCCD, 364 photographs of blood cells (MIT licence), into this folder, checks and unpacks it."""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # a clone works without being installed

from ppfcos.cli import command
from ppfcos.data import archives


def main(options: argparse.Namespace) -> None:
    """Fetches it."""
    archives.fetch(options.output, [archives.BCCD], options.mirror, options.keep_archives)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--output", metavar="FOLDER", type=Path, default=HERE, help="where to")
    options.add_argument(
        "--mirror",
        metavar="URL",
        default=archives.GITHUB,
        help=f"a server that has the same file as {archives.BCCD.path}",
    )
    options.add_argument("--keep-archives", action="store_true", help="keep the zip file once it is unpacked")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return options


if __name__ == "__main__":
    sys.exit(command.run(main, parser()))
