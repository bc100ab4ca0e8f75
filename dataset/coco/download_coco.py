"""Downloads COCO 2017 (20 GB) into this folder, checks and unpacks it. Run again to go on with the rest."""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # a clone works without being installed

from ppfcos.cli import command
from ppfcos.data import archives


def main(options: argparse.Namespace) -> None:
    """Fetches the chosen parts."""
    chosen = [archive for archive in archives.COCO_2017 if archive.part in options.only]
    archives.fetch(options.output, chosen, options.mirror, options.keep_archives)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parts = [archive.part for archive in archives.COCO_2017]
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--output", metavar="FOLDER", type=Path, default=HERE, help="where to")
    options.add_argument(
        "--mirror",
        metavar="URL",
        default=archives.COCO_SERVER,
        help="a server that has the same files under the same paths",
    )
    options.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to fetch")
    options.add_argument(
        "--keep-archives", action="store_true", help="keep the zip files once they are unpacked"
    )
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return options


if __name__ == "__main__":
    sys.exit(command.run(main, parser()))
