"""Downloads BCCD, 364 photographs of blood cells (MIT licence), into this folder, checks and unpacks it."""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # a clone works without being installed

from ppfcos.cli import command  # noqa: E402
from ppfcos.data import download  # noqa: E402


def main(options: argparse.Namespace) -> None:
    """Fetches it."""
    download.fetch(options.output, [download.BCCD], options.mirror, options.keep_archives)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--output", metavar="FOLDER", type=Path, default=HERE, help="where to")
    options.add_argument(
        "--mirror",
        metavar="URL",
        default=download.GITHUB,
        help=f"a server that has the same file as {download.BCCD.path}",
    )
    options.add_argument("--keep-archives", action="store_true", help="keep the zip file once it is unpacked")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return options


if __name__ == "__main__":
    sys.exit(command.run(main, parser()))
