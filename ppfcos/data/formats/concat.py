"""Concatenate data sets: classes are merged by name, and image ids that occur twice are renumbered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ppfcos.data.classes import checked_names
from ppfcos.data.records import DetectionData, EpochSampling, Record
from ppfcos.errors import DataError


def concatenate(
    parts: Sequence[DetectionData],
    section: str,
    class_names: Sequence[str] = (),
    draw: EpochSampling | None = None,
) -> DetectionData:
    """Concatenate data sets.

    Category and image ids stay, unless two data sets use the same for two things; then the later one's are
    replaced by free numbers.

    Args:
        parts: The data sets.
        section: The configuration's section, for messages.
        class_names: The order of the classes; empty: in the order of the parts.
        draw: Which records each epoch uses.

    Raises:
        DataError: A class is not in class_names, or a data set has two classes of one name.
    """
    categories = merge_categories(parts, class_names)
    labels = {category["name"]: label for label, category in enumerate(categories)}
    new_ids = _new_image_ids(parts)
    return DetectionData(
        section,
        " + ".join(part.source for part in parts),
        [record for part, ids in zip(parts, new_ids) for record in _renumbered(part, ids, labels)],
        categories,
        lambda: _merge_ground_truth(parts, new_ids, categories),
        draw,
    )


def _renumbered(part: DetectionData, ids: dict[int, int], labels: dict[str, int]) -> Iterator[Record]:
    """A part's records with the image ids and labels of the concatenated data set."""
    of_label = np.array([labels[name] for name in part.class_names], dtype=np.int32)
    for record in part.records:
        changed = {"im_id": np.array([ids[int(record["im_id"][0])]], dtype=np.int64)}
        if "gt_class" in record:
            changed["gt_class"] = of_label[record["gt_class"]]
        yield {**record, **changed}


def merge_categories(parts: Sequence[DetectionData], class_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The classes of all data sets, each name once; arguments and errors as of `concatenate`."""
    ids: dict[str, int] = {}
    taken: set[int] = set()
    highest = 0
    allowed = set(class_names)

    def add(name: str, wanted: int) -> None:
        nonlocal highest
        if name not in ids:
            ids[name] = highest + 1 if wanted in taken else wanted
            taken.add(ids[name])
            highest = max(highest, ids[name])

    for part in parts:
        for name, category in zip(checked_names(part.class_names, part.source), part.categories):
            if allowed and name not in allowed:
                raise DataError(
                    f"{part.source} has the class {name!r}, which is not in {part.section.split('.')[0]}."
                    f"class_names: add it there, or leave class_names out"
                )
            add(name, category["id"])
    for name in class_names:  # also those that no data set has
        add(name, 1)
    return [{"id": ids[name], "name": name} for name in class_names or ids]


def _new_image_ids(parts: Sequence[DetectionData]) -> list[dict[int, int]]:
    """{id in the part: id in the concatenated data set} of every part."""
    found = [[int(record["im_id"][0]) for record in part.records] for part in parts]
    taken: set[int] = set()
    free = max((number for ids in found for number in ids), default=0) + 1
    new_ids: list[dict[int, int]] = []
    for ids in found:
        new_ids.append({})
        for number in ids:
            if number in taken:
                new_ids[-1][number], free = free, free + 1
            else:
                new_ids[-1][number] = number
        taken.update(new_ids[-1].values())
    return new_ids


def _merge_ground_truth(
    parts: Sequence[DetectionData], new_ids: Sequence[dict[int, int]], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """A COCO dict of the annotations of all parts, including crowds."""
    by_name = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for part, ids in zip(parts, new_ids):
        ground_truth = part.coco_ground_truth()
        new_category = {category["id"]: by_name[category["name"]] for category in ground_truth["categories"]}
        images += [{**image, "id": ids[image["id"]]} for image in ground_truth["images"]]
        annotations += [
            {**note, "image_id": ids[note["image_id"]], "category_id": new_category[note["category_id"]]}
            for note in ground_truth["annotations"]
        ]
    annotations = [{**note, "id": number} for number, note in enumerate(annotations, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": list(categories)}
