"""`tools/benchmark.py`: measure the latency and throughput of exported models."""

from __future__ import annotations

import argparse
import datetime
import functools
import logging
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppfcos import __version__, console, environment
from ppfcos.cli import command
from ppfcos.environment import machine
from ppfcos.errors import DataError, OutputError
from ppfcos.fileio import replacing, require_writable_file
from ppfcos.json_files import to_json

if TYPE_CHECKING:  # --help does not import OpenCV
    from ppfcos.deploy.benchmark import ImageFile, Model

logger = logging.getLogger(__name__)

DRAWN_IMAGES, MAX_IMAGES = 4, 32
DEFAULT_SIZE = (480, 640)  # of drawn images, if a bundle takes every size
SECONDS = 60
SEED = 0  # of drawn images
FORMAT = 1  # of the JSON file
DESCRIPTION = (
    "Measure the time of exported bundles from the bytes of an image file to boxes: decoding, preprocessing, "
    "network, post-processing and total, median and 99th percentile, and images per second. Several bundles, "
    "runtimes and precisions process the same requests in alternation. A stream is a predictor with "
    "--threads threads; --streams of them run at the same time, in threads of one process."
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
    add("bundles", nargs="+", type=Path, metavar="BUNDLE", help="a bundle of tools/export_model.py")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help=f"folder of images, of which at most {MAX_IMAGES} are used (default: drawn images, of a size "
        "that the first bundle does not resize)",
    )
    for name, known, default in (("runtime", RUNTIMES, "auto"), ("precision", PRECISIONS, "fp32")):
        add(
            f"--{name}",
            type=command.list_of(command.one_of(known)),
            default=(default,),
            metavar=f"{name.upper()},…",
            help=f"one or more of {', '.join(known)} (default: {default})",
        )
    numbers = command.list_of(command.positive)
    add("--threads", type=numbers, default=(1, 2, 3), metavar="N,…", help="of each stream (default: 1,2,3)")
    add("--streams", type=numbers, default=(1, 2, 3), metavar="N,…", help="in parallel (default: 1,2,3)")
    add(
        "--batch",
        type=numbers,
        metavar="N,…",
        help="images of a request (default: 1,4, or the fixed batch size of the bundle)",
    )
    add("--device", default="auto", help="auto, cpu, gpu or a device name of the runtime")
    add(
        "--seconds",
        type=command.positive,
        default=SECONDS,
        metavar="N",
        help="approximate duration; at least 3 rounds are measured (default: %(default)s)",
    )
    add(
        "--rounds", type=command.positive, metavar="N", help="measurements of every row, instead of --seconds"
    )
    add("--output", type=Path, metavar="FILE.json", help="write all results and times")
    add("--chart", type=Path, metavar="FILE.html", help="write a page with the table and charts")
    return parser


def benchmark(options: argparse.Namespace) -> None:
    """Measure, print the table, and write the files."""
    _check_output("--output", options.output)
    _check_output("--chart", options.chart)
    os.environ["OMP_NUM_THREADS"] = str(max(options.threads))  # before Paddle is imported
    with environment.quiet_imports():
        from ppfcos.visualize.benchmark_report import benchmark_page, benchmark_text

    content = _measured(options)
    if options.output:
        _write(options.output, to_json(content))
    if options.chart:
        _write(options.chart, benchmark_page(content))
    # Last, because the reader of a pipe may close it early.
    console.show(benchmark_text(content))


def _check_output(option: str, path: Path | None) -> None:
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
    """The results, as they are written to JSON."""
    with environment.quiet_imports():
        from ppfcos.deploy.benchmark import Request, cases_of, measure, opened_models, summaries

    files = _read_images(options.images) if options.images else _draw_images(options.bundles[0])
    loading = options.bundles, options.runtime, options.precision, options.threads, max(options.streams)
    with opened_models(*loading, options.device) as (models, left_out):
        cases, also_left_out = cases_of(models, options.threads, options.streams, options.batch)
        turns = measure(cases, files, options.seconds, options.rounds)
        return {
            "benchmark": FORMAT,
            "date": datetime.datetime.now().isoformat(" ", "minutes"),
            "machine": machine(),
            "cores": environment.available_cores(),
            "versions": _versions(models),
            "images": {
                "folder": None if options.images is None else str(options.images),
                "number": len(files),
                "sizes": [file.size for file in files],
                "bytes": sum(len(file.content) for file in files) / len(files),
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


def _read_images(folder: Path) -> list[ImageFile]:
    from ppfcos.deploy.benchmark import ImageFile
    from ppfcos.deploy.images import decode_image, read_file
    from ppfcos.deploy.sources import list_pictures

    if not folder.is_dir():
        raise DataError(f"--images {folder}: there is no such folder")
    paths = list_pictures(folder)
    files = []
    for path in paths[:: math.ceil(len(paths) / MAX_IMAGES)]:
        try:
            content = read_file(path)
            size = decode_image(content, path).shape[:2]
        except DataError as error:
            logger.warning("skipped: %s", error)
            continue
        files.append(ImageFile(str(path), content, size))
    if not files:
        raise DataError(f"--images {folder}: none of its images can be read; see the warnings above")
    return files


def _draw_images(bundle: Path) -> list[ImageFile]:
    """JPEG images of shapes on backgrounds."""
    from ppfcos.data.rng import generator
    from ppfcos.data.shapes import draw_image
    from ppfcos.deploy.benchmark import ImageFile
    from ppfcos.deploy.bundle import read_bundle
    from ppfcos.deploy.preprocess import Preprocess
    from ppfcos.visualize.drawing import encode_image

    description = read_bundle(bundle)
    size = Preprocess(description.preprocess, description.input).natural_size or DEFAULT_SIZE
    files = []
    for number in range(DRAWN_IMAGES):
        pixels, _ = draw_image(max(size), generator(SEED, number))
        content = encode_image(pixels[: size[0], : size[1]], ".jpg")
        files.append(ImageFile(f"drawn image {number}", content, size))
    return files


main = functools.partial(command.run, benchmark, build_parser)
