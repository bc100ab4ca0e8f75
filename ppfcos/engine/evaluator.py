"""How good and how fast an exported bundle is on a data set."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppfcos import console
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.deploy import Detections, Detector
from ppfcos.engine import distributed
from ppfcos.engine.amp import Precision
from ppfcos.errors import DataError
from ppfcos.fileio import replacing
from ppfcos.json_files import JSONError, read_json
from ppfcos.metrics.coco import CocoMetrics, evaluate_detections

logger = logging.getLogger(__name__)

DETECTIONS_FILE = "bbox.json"  # PaddleDetection's name for it


def evaluate(
    model: nn.Layer,
    loader: Any,
    data: Any,
    precision: Precision,
    backend: str = "faster_coco_eval",
    uses: Sequence[Callable[[list[dict]], object]] = (),
) -> CocoMetrics:
    """Detect and compare. All processes must call it; each sees a share of the images, all get the figures.

    Args:
        model: left in the mode, training or evaluation, in which it came.
        loader: EvalLoader of this process.
        data: DetectionData of the images.
        precision: of the network.
        backend: of `evaluate_detections`.
        uses: what else the main process does with the detections of all images, such as writing them.

    Returns:
        The figures. An image that does not decode counts as one in which nothing was found.

    Raises:
        DataError: an image cannot be transformed, or none of them decodes.
        OutputError: one of `uses` cannot write.
    """
    share: list[dict] = []
    with distributed.collective_error_check():
        share += detect(model, loader, data.categories, precision)
    return compared(share, loader.bad_images, data, backend, uses)


def compared(
    share: list[dict],
    bad_images: list[str],
    data: Any,
    backend: str,
    uses: Sequence[Callable[[list[dict]], object]] = (),
) -> CocoMetrics:
    """The figures of what all processes detected. All of them must call it, and all get the figures.

    Args:
        share: this process's detections.
        bad_images: 'path: reason' of those of its images that did not decode.
        data: DetectionData of all images.
        backend: of `evaluate_detections`.
        uses: as of `evaluate`.

    Raises:
        DataError: none of the images decodes.
        OutputError: one of `uses` cannot write.
    """
    found, unreadable = _gathered(share), _gathered(bad_images)
    figures = None
    with distributed.collective_error_check():
        if distributed.is_main():
            _report_unreadable(unreadable, len(data))
            for use in uses:
                use(found)
            figures = evaluate_detections(data.coco_ground_truth(), found, backend)
    return distributed.broadcast_object(figures)


def detect(model: nn.Layer, loader: Any, categories: Sequence[dict], precision: Precision) -> list[dict]:
    """This process's share of the detections.

    Args:
        model: left in the mode in which it came.
        loader: a number of batches, with `im_id` [B, 1] besides what the model takes.
        categories: `id` and `name` of every class.
        precision: of the network.

    Returns:
        Dicts as in COCO's result files, see `evaluate_detections`.
    """
    was_training = model.training
    model.eval()
    found: list[dict] = []
    try:
        with paddle.no_grad(), precision.autocast(), console.bar("evaluating", len(loader)) as bar:
            for batch in loader:
                outputs = model(batch)
                boxes, counts = outputs["bbox"].numpy(), outputs["bbox_num"].numpy()
                found += _as_coco(boxes, counts, batch["im_id"].numpy(), categories)
                bar.advance()
    finally:
        if was_training:
            model.train()
    return found


def _as_coco(
    boxes: np.ndarray, counts: np.ndarray, image_ids: np.ndarray, categories: Sequence[dict]
) -> list[dict]:
    """Boxes [N, 6] of label, score, x0, y0, x1, y1; counts [B] of each image's; image ids [B]."""
    images = np.repeat(image_ids.reshape(-1), counts)
    corners, sizes = boxes[:, 2:4], boxes[:, 4:6] - boxes[:, 2:4]
    rows = zip(
        images.tolist(), boxes[:, 0].astype(int), boxes[:, 1].tolist(), corners.tolist(), sizes.tolist()
    )
    return [
        {
            "image_id": image,
            "category_id": categories[label]["id"],
            "bbox": corner + size,
            "score": score,
        }
        for image, label, score, corner, size in rows
    ]


def write_detections(folder: Path | str, detections: list[dict]) -> Path:
    """Write COCO's result file.

    Args:
        folder: made where missing.
        detections: dicts as in COCO's result files.

    Returns:
        Path of the file.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / DETECTIONS_FILE
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(detections), encoding="utf-8")
    logger.info("detections: %s", path)
    return path


def read_detections(folder: Path | str) -> list[dict]:
    """Read COCO's result file.

    Args:
        folder: that holds it.

    Returns:
        Dicts as in COCO's result files.

    Raises:
        DataError: it is missing or holds something else.
    """
    path = Path(folder) / DETECTIONS_FILE
    try:
        detections = read_json(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): write it first, with --output_eval {folder}"
        ) from error
    except JSONError as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(detections, list):
        raise DataError(f"{path} is no list of detections: write it anew, with --output_eval {folder}")
    wrong = next((i for i, each in enumerate(detections) if not _is_detection(each)), None)
    if wrong is not None:
        raise DataError(
            f"{path}: entry {wrong} is no detection, which has whole numbers image_id and category_id, "
            "a number score and a bbox of four numbers"
        )
    return detections


def _is_detection(entry: Any) -> bool:
    """Whether it is as in COCO's result files, with finite numbers that fit into 64 bits."""
    if not isinstance(entry, dict):
        return False
    box = entry.get("bbox")
    numbers = (entry.get("score"), *box) if isinstance(box, list) and len(box) == 4 else ()
    ids = (entry.get("image_id"), entry.get("category_id"))
    return (
        len(numbers) == 5
        and all(type(value) in (int, float) and abs(value) < 1e300 for value in numbers)
        and all(type(value) is int and abs(value) < 2**63 for value in ids)
    )


def _gathered(share: list) -> list:
    return [item for part in distributed.all_gather_object(share) for item in part]


def _report_unreadable(images: list[str], total: int) -> None:
    for image in images:
        logger.warning("an image that cannot be evaluated counts as one without detections: %s", image)
    if images and len(images) == total:
        raise DataError(f"none of the {total} images to evaluate can be decoded, the first being {images[0]}")


def evaluate_bundle(
    detector: Detector, data: Any, backend: str, uses: Sequence[Callable[[list[dict]], object]] = ()
) -> tuple[CocoMetrics, float]:
    """Detect and compare. All processes must call it; each sees a share of the images, all get the figures.

    Args:
        detector: the bundle, ready to run.
        data: DetectionData of the images.
        backend: of `evaluate_detections`.
        uses: what else the main process does with the detections of all images, such as writing them.

    Returns:
        The figures, in which an image that does not decode counts as one where nothing was found; and how
        many images a second all processes did together, reading the files included; an image that does not
        decode takes no time to speak of, and is none of them.

    Raises:
        DataError: none of the images decodes.
        OutputError: one of `uses` cannot write.
    """
    positions = range(distributed.rank(), len(data), distributed.world_size())
    share: list[dict] = []
    bad_images: list[str] = []
    with distributed.collective_error_check():
        _warm_up(detector, data, positions)
        started = time.perf_counter()
        share += _detect(detector, data, positions, bad_images)
        seconds = time.perf_counter() - started
    figures = compared(share, bad_images, data, backend, uses)
    slowest = max(distributed.all_gather_object(seconds))
    decoded = len(data) - sum(distributed.all_gather_object(len(bad_images)))
    return figures, decoded / slowest


def _warm_up(detector: Detector, data: Any, positions: range) -> None:
    """The first run of a network also prepares it, which is not what is measured."""
    for _ in detector.detect(_read(data, positions[:1], [])):
        pass


def _detect(detector: Detector, data: Any, positions: range, bad_images: list[str]) -> Iterator[dict]:
    """Dicts as in COCO's result files."""
    with console.bar("evaluating", len(positions)) as bar:
        for position, _, detections in detector.detect(_read(data, positions, bad_images)):
            yield from _bundle_as_coco(int(data.record(position)["im_id"][0]), detections, data.categories)
            bar.advance()


def _read(data: Any, positions: Iterable[int], bad_images: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Positions and pictures, blue first, turned as their annotations say; the others are named."""
    for position in positions:
        record = data.record(position)
        height, width = int(record.get("h", 0)), int(record.get("w", 0))
        try:
            image = read_image(record["im_file"], (height, width) if height and width else None)
        except ImageUnreadable as error:
            bad_images.append(str(error))
            continue
        yield position, image[:, :, ::-1]


def _bundle_as_coco(image_id: int, detections: Detections, categories: list[dict]) -> Iterator[dict]:
    for box, score, label in zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels):
        x0, y0, x1, y1 = box
        yield {
            "image_id": image_id,
            "category_id": categories[label]["id"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
