"""A COCO annotation file of a data set without what was found wrong in it, as far as that can be mended.

What `KINDS[...].fix` promises is done here. Annotations that nobody could make sense of are not in a RawData
to begin with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppfcos.data.check.check import DataReport
from ppfcos.data.check.images import Look
from ppfcos.data.issues import TRAINING
from ppfcos.data.check.annotations import RawBox, RawData, RawImage, is_number
from ppfcos.data.check.rules import is_background, plain_name
from ppfcos.data.records import clip_boxes


class _CleanBox(NamedTuple):
    """An annotation, the id of its category in the new file, and where its box is now."""

    raw: RawBox
    category: int
    corners: tuple[float, ...]


class _CleanImage(NamedTuple):
    """An image that stays: its size (height, width) if it is known, and its boxes."""

    raw: RawImage
    size: tuple[int, int] | None
    boxes: list[_CleanBox]


def clean(report: DataReport) -> dict[str, Any]:
    """The first data set of a report, cleaned: the training's, where there is one.

    Args:
        report: Of a check.

    Returns:
        A COCO dict (info, images, annotations, categories).
    """
    section = report.sections[0]
    raw, leaked = section.dataset, set()
    if raw.section == TRAINING:
        leaked = {finding.image for finding in report.issues if finding.kind == "image-leak"}
    categories, category_ids = _clean_categories(raw)
    images = _clean_images(raw, section.image_checks, leaked, category_ids)
    image_ids = _ids([image.raw.identity for image in images], least=0)
    notes = [_annotation(box, number) for number, image in zip(image_ids, images) for box in image.boxes]
    for number, note in zip(_ids([note["id"] for note in notes], least=1), notes):
        note["id"] = number
    entries = [_image_entry(image, number) for number, image in zip(image_ids, images)]
    return {"info": {}, "images": entries, "annotations": notes, "categories": categories}


def _ids(wanted: Sequence[Any], least: int) -> list[int]:
    """The wanted ids where they will do for all, or else the numbers from 1."""
    whole = all(isinstance(i, int) and not isinstance(i, bool) and i >= least for i in wanted)
    return list(wanted) if whole and len(set(wanted)) == len(wanted) else list(range(1, len(wanted) + 1))


def _clean_categories(raw: RawData) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """The categories of the new file, and the id in it of every label that is still needed."""
    used = {box.label for image in raw.images for box in image.boxes}
    first: dict[str, int] = {}  # label by plain name
    for label, category in enumerate(raw.categories):
        if label in used or not is_background(category.name):
            first.setdefault(plain_name(category.name), label)
    ids = dict(zip(first.values(), _ids([raw.categories[label].identity for label in first.values()], 0)))
    kept = [
        {**raw.categories[label].entry, "id": number, "name": raw.categories[label].name}
        for label, number in ids.items()
    ]
    return kept, {label: ids[first[plain_name(raw.categories[label].name)]] for label in used}


def _clean_images(
    raw: RawData, looks: Sequence[Look], leaked: Collection[str], category_ids: dict[int, int]
) -> list[_CleanImage]:
    """Those that stay: every file and every content once, of copies the one with the most boxes."""
    boxes_of: dict[str, list[RawBox]] = {}
    for image in raw.images:
        if not image.id_is_shared:
            boxes_of.setdefault(image.path, []).extend(image.boxes)
    best: dict[str, _CleanImage] = {}
    for image, look in zip(raw.images, looks):
        if image.id_is_shared or image.path in leaked or look.size is None:
            continue
        size = look.size or image.size
        # the first entry of a file takes the boxes of all, and leaves none to the others
        boxes = _clean_boxes(boxes_of.pop(image.path, []), size, category_ids)
        content = look.content or image.path
        if content not in best or len(boxes) > len(best[content].boxes):
            best[content] = _CleanImage(image, size, boxes)
    return list(best.values())


def _clean_boxes(
    boxes: Sequence[RawBox], size: tuple[int, int] | None, category_ids: dict[int, int]
) -> list[_CleanBox]:
    """Boxes the right way up, clipped to their image, with an area, and each of them once."""
    kept: dict[tuple, _CleanBox] = {}
    for box in boxes:
        x0, y0, x1, y1 = box.corners
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        clipped, has_area = clip_boxes(np.array(corners), *(size or (0, 0)))
        if not has_area.all():
            continue
        if size is not None and not np.array_equal(clipped[0], np.float32(corners)):
            corners = tuple(round(value, 3) for value in clipped[0].tolist())
        category = category_ids[box.label]
        kept.setdefault((category, corners, box.crowd, box.ignored), _CleanBox(box, category, corners))
    return list(kept.values())


def _image_entry(image: _CleanImage, number: int) -> dict[str, Any]:
    entry = {**image.raw.entry, "id": number, "file_name": image.raw.name}
    if image.size is not None:
        entry["height"], entry["width"] = image.size
    return entry


def _annotation(box: _CleanBox, image_id: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box.corners
    written = box.raw.entry
    unchanged = box.corners == box.raw.corners
    area = written.get("area")
    if not unchanged or not is_number(area) or area <= 0:
        area = round((x1 - x0) * (y1 - y0), 3)
    return {
        **written,
        "id": written.get("id"),
        "image_id": image_id,
        "category_id": box.category,
        "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
        "area": area,
        "iscrowd": int(box.raw.crowd or written.get("iscrowd") == "1"),
    }
