"""`tools/infer.py`: find objects in pictures, with a checkpoint or with an exported bundle."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ppfcos import environment
from ppfcos.cli import command
from ppfcos.deploy import Detections, Detector, Predictor
from ppfcos.deploy.preprocess import read_image
from ppfcos.engine.files import replacing
from ppfcos.errors import ConfigError, DataError, OutputError
from ppfcos.report.pictures import draw_detections, save_picture

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
RESULTS_FILE = "bbox.json"
DESCRIPTION = (
    "Find objects in pictures and draw them. The model is either a configuration with its weights (-c, run "
    "in Paddle) or an exported bundle (--bundle, run in Paddle Inference); both prepare the pictures alike "
    "and find the same boxes."
)
EXAMPLE = """
    python tools/infer.py --bundle output_inference/fcos_r50_fpn_1x_coco --infer_dir photos --save_results
    python tools/infer.py -c configs/fcos_r50_fpn_1x_coco.yml \\
        -o weights=output/fcos_r50_fpn_1x_coco/best_model.pdparams --infer_img photo.jpg --draw_threshold 0.4
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE, config_required=False)
    add = parser.add_argument
    add("--bundle", metavar="FOLDER", help="what tools/export_model.py wrote; instead of -c")
    add("--infer_img", metavar="FILE", help="a picture; goes before --infer_dir")
    add("--infer_dir", metavar="FOLDER", help="a folder of pictures")
    add("--output_dir", default="output", metavar="FOLDER", help="for the results (default: %(default)s)")
    add(
        "--draw_threshold", type=float, default=0.5, help="lowest score of a drawn box (default: %(default)s)"
    )
    command.add_switch(
        parser,
        "--save_results",
        f"write all boxes to {RESULTS_FILE} in the output folder, as COCO results with names",
    )
    command.add_switch(parser, "--use_vdl", "show the pictures in VisualDL as well")
    add(
        "--vdl_log_dir",
        default="vdl_log_dir/image",
        metavar="FOLDER",
        help="for VisualDL (default: %(default)s)",
    )
    add(
        "--batch_size",
        type=_positive,
        default=1,
        metavar="N",
        help="pictures run at once (default: %(default)s)",
    )
    add("--threads", type=_positive, metavar="N", help="threads of the CPU (default: every core)")
    add(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="for --bundle; with -c it is -o device=...",
    )
    return parser


def infer(options: argparse.Namespace) -> None:
    """Find and draw the objects in the pictures that the command line names.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: what is wrong with the model, the pictures or the output folder.
    """
    paths = pictures_to_read(options.infer_img, options.infer_dir)
    output = Path(options.output_dir)
    _check_output(output, paths)
    detector = _build_detector(options)
    found: list[tuple[Path, Detections]] = []
    drawn = 0
    with _picture_log(options) as show:
        for path, image, detections in _detect(detector, paths, options.batch_size):
            picture = draw_detections(image, detections, options.draw_threshold)
            save_picture(output / picture_name(path), picture)
            show(path.name, picture)
            found.append((path, detections))
            objects = len(detections.above(options.draw_threshold))
            drawn += objects
            logger.info("%s: %s", path, _count(objects, "object"))
    if not found:
        raise DataError(f"no picture could be read: {_count(len(paths), 'file')}, the first is {paths[0]}")
    if options.save_results:
        _save_results(output / RESULTS_FILE, found, paths, detector.category_ids)
    _log_summary(options, output, len(found), drawn, len(paths) - len(found))


def pictures_to_read(picture: str | None, folder: str | None) -> list[Path]:
    """The pictures that the command line names, by name.

    Args:
        picture: one file, or None.
        folder: a folder whose pictures are taken where there is no `picture`; those below it are not.

    Returns:
        Paths of files, at least one.

    Raises:
        ConfigError: neither is given.
        DataError: the file or folder is missing, or holds no pictures.
    """
    if picture:
        if not Path(picture).is_file():
            raise DataError(f"--infer_img {picture}: there is no such file")
        return [Path(picture)]
    if not folder:
        raise ConfigError("no pictures are named: add --infer_img FILE or --infer_dir FOLDER")
    if not Path(folder).is_dir():
        raise DataError(f"--infer_dir {folder}: there is no such folder")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise DataError(f"--infer_dir {folder}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return paths


def picture_name(path: Path) -> str:
    """The name of the drawn picture: its own, so that a JPEG stays one, where OpenCV can write the kind."""
    return path.name if path.suffix.lower() in PICTURE_SUFFIXES else path.name + ".png"


def _build_detector(options: argparse.Namespace) -> Detector:
    if bool(options.bundle) == bool(options.config):
        raise ConfigError("name either a bundle (--bundle FOLDER) or a configuration (-c FILE), and not both")
    if options.bundle and options.opt:
        raise ConfigError("-o changes keys of a configuration; a bundle has none: leave out -o, or take -c")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # in time: Paddle is imported below
    if options.bundle:
        return Predictor(options.bundle, options.threads, options.device)
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.engine.device import select_device
        from ppfcos.export.checkpoint import checkpoint_detector
    cfg = load_config(options.config, options.opt)
    select_device(cfg)
    return checkpoint_detector(cfg)


def _check_output(output: Path, paths: Sequence[Path]) -> None:
    """Before anything is computed: the folder can be written, and no picture would be drawn over itself."""
    if any(output.resolve() == path.parent.resolve() for path in paths):
        raise OutputError(
            f"--output_dir {output} is the folder of the pictures, which would be overwritten; name another"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output_dir {output} cannot be made ({error.strerror})") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(f"--output_dir {output} cannot be written to; name another")


def _detect(
    detector: Detector, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, np.ndarray, Detections]]:
    """Every readable picture with its objects; the others are named and left out."""
    readable = _read(paths)
    while group := list(islice(readable, batch_size)):
        detections = detector.predict([image for _, image in group])
        for (path, image), each in zip(group, detections):
            yield path, image, each


def _read(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            logger.warning("left out: %s", error)
            continue
        yield path, image


@contextlib.contextmanager
def _picture_log(options: argparse.Namespace) -> Iterator[Callable[[str, np.ndarray], None]]:
    """What shows a picture in VisualDL, if that is wanted."""
    if not options.use_vdl:
        yield lambda name, picture: None
        return
    with environment.quiet_imports():
        from visualdl import LogWriter
    try:
        writer = LogWriter(logdir=options.vdl_log_dir)
    except OSError as error:
        raise OutputError(
            f"--vdl_log_dir {options.vdl_log_dir} cannot be written ({error.strerror})"
        ) from error
    with writer:
        yield lambda name, picture: writer.add_image(f"detections/{name}", picture[:, :, ::-1], step=0)


def _save_results(
    path: Path, found: Sequence[tuple[Path, Detections]], paths: Sequence[Path], category_ids: Sequence[int]
) -> None:
    """All boxes as a COCO result file; image_id is the picture's position among those named."""
    positions = {each: position for position, each in enumerate(paths)}
    rows = [
        _result_row(positions[picture], picture, detections, i, category_ids)
        for picture, detections in found
        for i in range(len(detections))
    ]
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _result_row(
    image_id: int, picture: Path, detections: Detections, i: int, category_ids: Sequence[int]
) -> dict[str, Any]:
    x0, y0, x1, y1 = detections.boxes[i].tolist()
    label = int(detections.labels[i])
    return {
        "image_id": image_id,
        "file_name": picture.name,
        "category_id": category_ids[label],
        "category_name": detections.class_names[label],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": float(detections.scores[i]),
    }


def _log_summary(
    options: argparse.Namespace, output: Path, pictures: int, drawn: int, unreadable: int
) -> None:
    boxes = f"{_count(drawn, 'object')} of at least {options.draw_threshold:g}"
    logger.info("%s with %s in %s", _count(pictures, "picture"), boxes, output)
    if options.save_results:
        logger.info("all boxes in %s", output / RESULTS_FILE)
    if options.use_vdl:
        logger.info("see them with: visualdl --logdir %s", options.vdl_log_dir)
    if unreadable:
        logger.warning("%s could not be read, see the warnings above", _count(unreadable, "picture"))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(infer, build_parser(), argv)
