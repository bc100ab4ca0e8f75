"""How good and how fast an exported bundle is on a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ppfcos import console
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.deploy import Detections, Detector
from ppfcos.engine import distributed, evaluator
from ppfcos.engine.coco_metrics import CocoFigures


def evaluate(
    detector: Detector, data: Any, backend: str, uses: Sequence[Callable[[list[dict]], object]] = ()
) -> tuple[CocoFigures, float]:
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
    with distributed.together():
        _warm_up(detector, data, positions)
        started = time.perf_counter()
        share += _detect(detector, data, positions, bad_images)
        seconds = time.perf_counter() - started
    figures = evaluator.compared(share, bad_images, data, backend, uses)
    slowest = max(distributed.gather(seconds))
    decoded = len(data) - sum(distributed.gather(len(bad_images)))
    return figures, decoded / slowest


def _warm_up(detector: Detector, data: Any, positions: range) -> None:
    """The first run of a network also prepares it, which is not what is measured."""
    for _ in detector.detect(_read(data, positions[:1], [])):
        pass


def _detect(detector: Detector, data: Any, positions: range, bad_images: list[str]) -> Iterator[dict]:
    """Dicts as in COCO's result files."""
    with console.bar("evaluating", len(positions)) as bar:
        for position, _, detections in detector.detect(_read(data, positions, bad_images)):
            yield from _as_coco(int(data.record(position)["im_id"][0]), detections, data.categories)
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


def _as_coco(image_id: int, detections: Detections, categories: list[dict]) -> Iterator[dict]:
    for box, score, label in zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels):
        x0, y0, x1, y1 = box
        yield {
            "image_id": image_id,
            "category_id": categories[label]["id"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
