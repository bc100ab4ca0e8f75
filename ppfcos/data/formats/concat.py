"""Several data sets as one: classes joined by their names, images numbered anew where two have one number."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from ppdet.core.workspace import register, serializable
from ppdet.data.source.dataset import DetDataset

from ppfcos.data.classes import checked_names
from ppfcos.data.records import DetectionData, EpochSampling, Record
from ppfcos.errors import DataError


@register
@serializable
class PPFCOSJoinedDataSet(DetDataset):
    """Several data sets, of any formats, read as one.

    A class is one class wherever it has the same name. Take care that every data set has boxes for all
    classes that are in its pictures: what one calls a cat and another leaves without a box is learnt as both.

    Args:
        datasets (list): Sections as TrainDataset is one, each with its `name` and keys; and `weight`, how
            often an epoch of training goes through it: 2 means that each image comes twice, 0.25 that a
            quarter of the images come, another quarter in the next epoch. Evaluation takes each image once.
        class_names (list): The order of the classes; where it is not given, a class comes where it is named
            first. A class that it lacks is an error.
        data_fields (list): Understood for PaddleDetection's sake; all fields are always read.
        repeat (int): How often an epoch goes through the images when PaddleDetection's reader is used.
    """

    def __init__(
        self,
        datasets: Sequence[dict[str, Any]] = (),
        class_names: Sequence[str] | None = None,
        data_fields: Sequence[str] = ("image", "gt_bbox", "gt_class"),
        repeat: int = 1,
    ):
        super().__init__(data_fields=list(data_fields), repeat=repeat)
        self.datasets = list(datasets)
        self.class_names = [str(name) for name in class_names or ()]
        self.roidbs: list[Record] | None = None
        self.cname2cid: dict[str, int] = {}

    def check_or_download_dataset(self) -> None:
        """There is nothing to download: the data is the user's own."""

    def parse_dataset(self) -> None:
        """Reads all data sets into `roidbs`, for PaddleDetection's own reader: an epoch with its weights.

        Raises:
            ConfigError: A section is wrong.
            DataError: A data set is wrong, or the classes do not fit class_names.
        """
        from ppfcos.data.datasets import build_dataset

        section = {"name": type(self).__name__, "datasets": self.datasets, "class_names": self.class_names}
        data = build_dataset({"TrainDataset": section}, "TrainDataset")
        self.roidbs = [data.record(position) for position in range(len(data))]
        self.cname2cid = {name: label for label, name in enumerate(data.class_names)}


def join(
    parts: Sequence[DetectionData],
    section: str,
    class_names: Sequence[str] = (),
    draw: EpochSampling | None = None,
) -> DetectionData:
    """Data sets into one.

    Args:
        parts: The data sets.
        section: The configuration's section; for messages.
        class_names: The order of the classes; empty: as they come.
        draw: Which records an epoch goes through.

    Returns:
        The whole. Category and image ids stay what they are, unless two data sets have the same for two
        things; then the later one's become free numbers.

    Raises:
        DataError: A class is not in class_names, or a data set has two classes of one name.
    """
    categories = join_categories(parts, class_names)
    labels = {category["name"]: label for label, category in enumerate(categories)}
    new_ids = _new_image_ids(parts)
    return DetectionData(
        section,
        " + ".join(part.source for part in parts),
        [record for part, ids in zip(parts, new_ids) for record in _renumbered(part, ids, labels)],
        categories,
        lambda: _join_ground_truth(parts, new_ids, categories),
        draw,
    )


def _renumbered(part: DetectionData, ids: dict[int, int], labels: dict[str, int]) -> Iterator[Record]:
    """A part's records with the image ids and labels of the whole."""
    of_label = np.array([labels[name] for name in part.class_names], dtype=np.int32)
    for record in part.records:
        changed = {"im_id": np.array([ids[int(record["im_id"][0])]], dtype=np.int64)}
        if "gt_class" in record:
            changed["gt_class"] = of_label[record["gt_class"]]
        yield {**record, **changed}


def join_categories(parts: Sequence[DetectionData], class_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The classes of all data sets, each name once.

    Args:
        parts: The data sets; only their categories count.
        class_names: The order of the classes; empty: as they come.

    Raises:
        DataError: A class is not in class_names, or a data set has two classes of one name.
    """
    ids: dict[str, int] = {}
    for part in parts:
        for name in checked_names(part.class_names, part.source):
            if class_names and name not in class_names:
                raise DataError(
                    f"{part.source} has the class {name!r}, which is not in {part.section.split('.')[0]}."
                    f"class_names: add it there, or leave class_names out"
                )
        for category in part.categories:
            if category["name"] not in ids:
                ids[category["name"]] = _free(category["id"], ids.values())
    for name in class_names:  # one that no data set has is a class still
        ids.setdefault(name, _free(1, ids.values()))
    return [{"id": ids[name], "name": name} for name in class_names or ids]


def _free(wanted: int, taken: Collection[int]) -> int:
    return wanted if wanted not in taken else max(taken) + 1


def _new_image_ids(parts: Sequence[DetectionData]) -> list[dict[int, int]]:
    """{id in the part: id in the whole} of every part."""
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


def _join_ground_truth(
    parts: Sequence[DetectionData], new_ids: Sequence[dict[int, int]], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """One COCO dict of all parts' own annotations, crowds included."""
    by_name = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for part, ids in zip(parts, new_ids):
        truth = part.coco_ground_truth()
        new_category = {category["id"]: by_name[category["name"]] for category in truth["categories"]}
        images += [{**image, "id": ids[image["id"]]} for image in truth["images"]]
        annotations += [
            {**note, "image_id": ids[note["image_id"]], "category_id": new_category[note["category_id"]]}
            for note in truth["annotations"]
        ]
    annotations = [{**note, "id": number} for number, note in enumerate(annotations, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": list(categories)}
