"""A handful of validation images with their boxes, the same ones after every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.records import DetectionData, Record, stated_size
from ppfcos.deploy import Detections
from ppfcos.report.pictures import draw_detections, draw_truth, shrink

LONGEST_SIDE = 640  # pixels: enough to judge boxes by, and small in a log that keeps every evaluation's
LOWEST_SCORE = 0.3  # of a box that is drawn


class ValidationPictures:
    """Draws what was to be found in some images of a data set, and what was found.

    Args:
        data: the images, with their objects.
        number: how many of them, spread evenly over those with objects.
    """

    def __init__(self, data: DetectionData, number: int):
        self.records = _spread([record for record in data.records if len(record.get("gt_bbox", ()))], number)
        self.categories = data.categories

    def drawn(self, detections: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
        """Draw them; an image that cannot be read is left out, for the evaluation has named it.

        Args:
            detections: of all images, dicts as in COCO's result files.

        Yields:
            A name and the picture, [H, W, 3] uint8, blue first: the truth in white, the detections with a
            score of at least `LOWEST_SCORE` in the colours of their classes.
        """
        rows: dict[int, list] = {int(record["im_id"][0]): [] for record in self.records}
        for detection in detections:
            if detection["image_id"] in rows:
                rows[detection["image_id"]].append(detection)
        for position, record in enumerate(self.records, start=1):
            try:
                image = read_image(record["im_file"], stated_size(record))[..., ::-1]
            except ImageUnreadable:
                continue
            image, factor = shrink(image, LONGEST_SIDE)
            found = _detections(rows[int(record["im_id"][0])], self.categories, factor)
            picture = draw_detections(draw_truth(image, record["gt_bbox"] * factor), found, LOWEST_SCORE)
            yield f"{position}_{Path(record['im_file']).name}", picture


def _spread(records: Sequence[Record], number: int) -> list[Record]:
    chosen = np.linspace(0, len(records) - 1, min(number, len(records))).round().astype(int)
    return [records[i] for i in chosen]


def _detections(rows: Sequence[Mapping], categories: Sequence[Mapping], factor: float) -> Detections:
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes * factor,
        np.array([row["score"] for row in rows], np.float32),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        tuple(category["name"] for category in categories),
    )
