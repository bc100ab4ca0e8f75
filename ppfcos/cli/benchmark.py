"""`tools/benchmark.py`: how long exported models take, stage by stage and side by side."""

from __future__ import annotations

import argparse
import datetime
import logging
import math
import os
import platform
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from ppfcos import __version__, console, environment
from ppfcos.cli import command
from ppfcos.environment import machine
from ppfcos.errors import DataError, OutputError, hint
from ppfcos.fileio import replacing, require_writable_file
from ppfcos.json_files import to_json

if TYPE_CHECKING:  # imported where something is measured: help must not wait for OpenCV
    from ppfcos.deploy.benchmark import Model
    from ppfcos.deploy.streams import Picture

logger = logging.getLogger(__name__)

DRAWN, MOST_PICTURES = 4, 32
SIZE_OF_ANY = (480, 640)  # of drawn pictures, where a bundle takes every size as it is
SECONDS = 60
SEED = 0  # of what is drawn
FORMAT = 1  # of the JSON file
DESCRIPTION = (
    "Measure how long exported bundles take from the bytes of a picture's file to boxes: decoding,\n"
    "preprocessing, network, postprocessing and all together, median and 99th percentile, and images a\n"
    "second. Several bundles, runtimes and precisions answer the same requests by turns.\n\n"
    "A stream is a predictor of its own, whose runtime has --threads threads; --streams of them work at\n"
    "once, in threads of one process."
)
EXAMPLE = """
python tools/benchmark.py output_inference/fcos_r50_fpn_1x_coco --images photos
python tools/benchmark.py output_inference/fcos_r50_fpn_1x_coco --runtime onnxruntime,openvino,paddle \\
    --threads 2 --streams 1 --batch 1 --output benchmark.json --chart benchmark.html
python tools/benchmark.py output_inference/small output_inference/large --precision fp32,int8
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from ppfcos.deploy.bundle import PRECISIONS
    from ppfcos.deploy.runtimes.choice import RUNTIMES

    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add("bundles", nargs="+", type=Path, metavar="BUNDLE", help="what tools/export_model.py wrote")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help=f"of real pictures, at most {MOST_PICTURES} of which are taken, evenly (default: drawn ones, of "
        "a size that the first bundle need not resize)",
    )
    for name, known, default in (("runtime", RUNTIMES, "auto"), ("precision", PRECISIONS, "fp32")):
        add(
            f"--{name}",
            type=_names(known),
            default=(default,),
            metavar=f"{name.upper()},…",
            help=f"one or more of {', '.join(known)} (default: {default})",
        )
    add("--threads", type=_numbers, default=(1, 2, 3), metavar="N,…", help="of each stream (default: 1,2,3)")
    add("--streams", type=_numbers, default=(1, 2, 3), metavar="N,…", help="at once (default: 1,2,3)")
    add(
        "--batch",
        type=_numbers,
        metavar="N,…",
        help="pictures of a request (default: 1,4, or what the bundle is fixed to)",
    )
    add("--device", default="auto", help="auto, cpu, gpu or a name that the runtime knows")
    add(
        "--seconds",
        type=command.positive,
        default=SECONDS,
        metavar="N",
        help="to measure for, about; large models take longer, for 3 rounds are the least "
        "(default: %(default)s)",
    )
    add("--rounds", type=command.positive, metavar="N", help="turns of every row, instead of --seconds")
    add("--output", type=Path, metavar="FILE.json", help="for the figures, and every time behind them")
    add("--chart", type=Path, metavar="FILE.html", help="for a page with the table and charts")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    """`1,2,3`; what is named twice counts once."""
    return tuple(dict.fromkeys(command.positive(word) for word in text.split(",")))


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """What takes `fp32,int8` apart."""

    def names(text: str) -> tuple[str, ...]:
        for word in text.split(","):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is not known{hint(word, known)}")
        return tuple(dict.fromkeys(text.split(",")))

    return names


def benchmark(options: argparse.Namespace) -> None:
    """Measure what the command line names, print the table and write the files.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: what is wrong with a bundle, the runtimes, the pictures or the files to write.
    """
    _check_output("--output", options.output)
    _check_output("--chart", options.chart)
    os.environ["OMP_NUM_THREADS"] = str(max(options.threads))  # in time: Paddle is imported below, if at all
    from ppfcos.visualize.benchmark_report import benchmark_text

    content = _measured(options)
    if options.output:
        _write(options.output, to_json(content))
    if options.chart:
        from ppfcos.visualize.benchmark_page import benchmark_page

        _write(options.chart, benchmark_page(content))
    # At the end, for whoever reads it may go before it does.
    console.show(benchmark_text(content))


def _check_output(option: str, path: Path | None) -> None:
    """Before anything is measured."""
    if path is None:
        return
    if path.is_dir():
        raise OutputError(f"{option} {path} is a folder; name a file in it")
    require_writable_file(path, f"{option} FILE")


def _write(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    logger.info("written: %s", path)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """All that is known in the end, as it is written to JSON."""
    with environment.quiet_imports():
        from ppfcos.deploy.benchmark import Pictures, cases_of, measure, opened_models, summaries
        from ppfcos.deploy.streams import Request

    pictures = _read_pictures(options.images) if options.images else _drawn_pictures(options.bundles[0])
    loading = options.bundles, options.runtime, options.precision, options.threads, max(options.streams)
    with opened_models(*loading, options.device) as (models, left_out):
        cases, also_left_out = cases_of(models, options.threads, options.streams, options.batch)
        turns = measure(cases, Pictures(pictures), options.seconds, options.rounds)
        return {
            "benchmark": FORMAT,
            "date": datetime.datetime.now().isoformat(" ", "minutes"),
            "machine": machine(),
            "cores": environment.available_cores(),
            "versions": _versions(models),
            "images": {
                "folder": None if options.images is None else str(options.images),
                "number": len(pictures),
                "sizes": [picture.size for picture in pictures],
                "bytes": sum(len(picture.content) for picture in pictures) / len(pictures),
            },
            "rounds": turns[-1].round + 1,
            "left_out": left_out + also_left_out,
            "rows": summaries(cases, turns),
            "request": Request._fields,
            "turns": [
                {"round": turn.round, "row": turn.case, "seconds": turn.seconds, "streams": turn.streams}
                for turn in turns
            ],
        }


def _versions(models: Sequence[Model]) -> dict[str, str]:
    import cv2
    import numpy as np

    from ppfcos.deploy.benchmark import runtime_versions

    ours = {"ppfcos": __version__, "python": platform.python_version()}
    return {**ours, "numpy": np.__version__, "opencv": cv2.__version__, **runtime_versions(models)}


def _read_pictures(folder: Path) -> list[Picture]:
    from ppfcos.deploy.images import decode_image, read_file
    from ppfcos.deploy.sources import list_pictures
    from ppfcos.deploy.streams import Picture

    if not folder.is_dir():
        raise DataError(f"--images {folder}: there is no such folder")
    paths = list_pictures(folder)
    pictures = []
    for path in paths[:: math.ceil(len(paths) / MOST_PICTURES)]:
        try:
            content = read_file(path)
            size = decode_image(content, path).shape[:2]
        except DataError as error:
            logger.warning("left out: %s", error)
            continue
        pictures.append(Picture(str(path), content, size))
    if not pictures:
        raise DataError(f"--images {folder}: none of its pictures can be read; see the warnings above")
    return pictures


def _drawn_pictures(bundle: Path) -> list[Picture]:
    """Shapes on backgrounds, as JPEG."""
    from ppfcos.data.rng import generator
    from ppfcos.data.shapes import draw_image
    from ppfcos.deploy.bundle import read_bundle
    from ppfcos.deploy.preprocess import Preprocess
    from ppfcos.deploy.streams import Picture
    from ppfcos.visualize.drawing import encode_image

    description = read_bundle(bundle)
    size = Preprocess(description.preprocess, description.input).natural_size or SIZE_OF_ANY
    pictures = []
    for number in range(DRAWN):
        pixels, _ = draw_image(max(size), generator(SEED, number))
        content = encode_image(pixels[: size[0], : size[1]], ".jpg")
        pictures.append(Picture(f"drawn picture {number}", content, size))
    return pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(benchmark, build_parser(), argv)
