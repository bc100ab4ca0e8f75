"""Draws the data set of the demo into this folder: no download, a few seconds."""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # a clone works without being installed

from ppfcos import environment
from ppfcos.cli import command


def main(options: argparse.Namespace) -> None:
    """Draw the data set, or say that it is complete."""
    with environment.quiet_imports():
        from ppfcos.data import shapes

    drawn = shapes.generate(options.output, options.train, options.val, options.size, options.seed)
    done = "drawn into" if drawn else "already in"
    print(f"{options.train} training and {options.val} validation images: {done} {options.output}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--output", metavar="FOLDER", type=Path, default=HERE, help="where to")
    options.add_argument("--train", metavar="N", type=int, default=600, help="training images")
    options.add_argument("--val", metavar="N", type=int, default=120, help="validation images")
    options.add_argument("--size", metavar="PIXELS", type=int, default=192, help="side of an image")
    options.add_argument("--seed", type=int, default=0, help="of all random numbers")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return options


if __name__ == "__main__":
    sys.exit(command.run(main, parser()))
