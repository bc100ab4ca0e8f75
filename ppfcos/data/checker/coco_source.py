"""A COCO annotation file as it stands, with all that labelling tools write into one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppfcos.data.checker.sources import RawBox, RawCategory, RawData, RawImage, as_number, is_number
from ppfcos.data.coco import load_json
from ppfcos.errors import ConfigError, DataError


class CocoSource:
    """A section whose data set is COCODataSet.

    Args:
        section: The section's name.
        arguments: Its keys.
    """

    def __init__(self, section: str, arguments: Mapping[str, Any]):
        folder = Path(arguments.get("dataset_dir") or "")
        if not str(arguments.get("anno_path")).endswith(".json"):
            raise ConfigError(f"{section}.anno_path must name a .json file within dataset_dir")
        self._path = folder / arguments["anno_path"]
        self._image_dir = folder / (arguments.get("image_dir") or "")
        self._raw = RawData(
            section,
            str(self._path),
            str(self._image_dir),
            is_coco=True,
            keeps_empty=bool(arguments.get("allow_empty")),
            trains_crowds=bool(arguments.get("load_crowd")),
        )
        self._images: dict[int | str, RawImage] = {}
        self._listed: set[int | str] = set()
        self._labels: dict[int | str, int] = {}

    def read(self) -> RawData:
        """Reads the file; the steps are those of `ppfcos.data.coco.read_coco`, in its order."""
        content = load_json(self._path, self._raw.section)
        if not self._image_dir.is_dir():
            raise DataError(f"{self._image_dir}, the folder of the images, is not there: set image_dir")
        for key in ("images", "categories"):
            if not isinstance(content.get(key), list):
                raise DataError(f"{self._path} has no list `{key}`: it is not a COCO annotation file")
        for position, entry in enumerate(content["categories"]):
            self._read_category(entry, f"categories[{position}]")
        for position, entry in enumerate(content["images"]):
            self._read_image(entry, f"images[{position}]")
        annotations = content.get("annotations", [])
        if not isinstance(annotations, list):
            raise DataError(f"{self._path} has no list `annotations`: it is not a COCO annotation file")
        seen: set[int] = set()
        for position, entry in enumerate(annotations):
            self._read_annotation(entry, f"annotations[{position}]", seen)
        return self._raw

    def _identity(self, entry: Any, key: str, where: str) -> int | str | None:
        """An id, with a finding where it is not the whole number that it should be."""
        value = entry.get(key) if isinstance(entry, Mapping) else None
        if isinstance(value, str) and value:
            self._raw.find("id-as-text", where, f"`{key}` is {value!r}")
            return int(value) if value.isascii() and value.isdigit() else value
        if is_number(value) and float(value).is_integer():
            return int(value)
        self._raw.find("id-missing", where, f"`{key}` is {value!r}")
        return None

    def _read_category(self, entry: Any, where: str) -> None:
        identity = self._identity(entry, "id", where)
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name:
            self._raw.find("category-malformed", where, f"`name` is {name!r}")
            name = f"class {identity if identity is not None else len(self._raw.categories)}"
        if identity in self._labels:
            first = self._raw.categories[self._labels[identity]].name
            self._raw.find("category-id-twice", where, f"{identity} is the id of {first!r} and of {name!r}")
            if first == name:
                return
        elif identity is not None:
            self._labels[identity] = len(self._raw.categories)
        if identity == 0:
            self._raw.find("category-id-zero", where, f"{name!r} has the id 0")
        self._raw.categories.append(RawCategory(name, identity, entry if isinstance(entry, Mapping) else {}))

    def _read_image(self, entry: Any, where: str) -> None:
        identity = self._identity(entry, "id", where)
        name = entry.get("file_name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name:
            self._raw.find("image-malformed", where, f"`file_name` is {name!r}")
            return
        if identity is not None and identity in self._listed:
            self._raw.find("image-id-twice", where, f"{identity} is the id of {name} and of an earlier image")
            first = self._images.get(identity)
            if first is not None and first.name != name:
                first.id_is_shared = True
            return
        if identity is not None:
            self._listed.add(identity)
        path = os.path.join(str(self._image_dir), name)
        if not os.path.isfile(path):
            self._raw.find("image-missing", name, f"{path} is not there")
            return
        image = RawImage(path, name, self._stated_size(entry, path), [], identity, entry)
        self._raw.images.append(image)
        if identity is not None:
            self._images[identity] = image

    def _stated_size(self, entry: Mapping[str, Any], path: str) -> tuple[int, int] | None:
        sides = [entry.get(key) for key in ("height", "width")]
        whole = [int(side) if is_number(side) and side > 0 else 0 for side in sides]
        if min(whole) > 0:
            return whole[0], whole[1]
        stated = f"height is {sides[0]!r}, width is {sides[1]!r}"
        self._raw.find("image-size-unstated", str(entry["file_name"]), stated, path)
        return None

    def _read_annotation(self, entry: Any, where: str, seen: set[int]) -> None:
        if not isinstance(entry, Mapping):
            self._raw.find("annotation-malformed", where, f"is {entry!r}")
            return
        identity = self._identity(entry, "image_id", where)
        if identity is None or identity not in self._images:
            if identity is not None and identity not in self._listed:
                self._raw.find("annotation-of-unknown-image", where, f"`image_id` is {identity!r}")
            return
        image = self._images[identity]
        if entry.get("bbox") in (None, []):
            self._raw.find("box-missing", where, f"`bbox` is {entry.get('bbox')!r}", image.path)
            return
        category = self._identity(entry, "category_id", where)
        if category is not None and category not in self._labels:
            self._raw.find(
                "annotation-of-unknown-category", where, f"`category_id` is {category!r}", image.path
            )
        corners = self._corners(entry["bbox"], where, image.path)
        self._check_rest(entry, where, image.path, seen)
        if corners is not None and category in self._labels:
            crowd = entry.get("iscrowd") in (1, True)
            ignored = bool(entry.get("ignore"))
            image.boxes.append(RawBox(where, self._labels[category], corners, crowd, ignored, entry))

    def _corners(self, box: Any, where: str, path: str) -> tuple[float, float, float, float] | None:
        numbers = [as_number(value) for value in box] if isinstance(box, list) else []
        if len(numbers) != 4 or None in numbers:
            self._raw.find("box-malformed", where, f"`bbox` is {box!r}", path)
            return None
        if any(isinstance(value, str) for value in box):
            self._raw.find("box-as-text", where, f"`bbox` is {box!r}", path)
        x, y, width, height = numbers
        # to a thousandth of a pixel, as PaddleDetection's COCODataSet rounds them
        return round(x, 3), round(y, 3), round(x + width, 3), round(y + height, 3)

    def _check_rest(self, entry: Mapping[str, Any], where: str, path: str, seen: set[int]) -> None:
        area, crowd, identity = entry.get("area"), entry.get("iscrowd"), entry.get("id")
        if (not is_number(area) or area <= 0) and not _has_no_area(entry["bbox"]):
            self._raw.find("area-missing", where, f"`area` is {area!r}", path)
        if crowd not in (None, 0, 1):
            self._raw.find("crowd-unclear", where, f"`iscrowd` is {crowd!r}", path)
        if isinstance(identity, bool) or not isinstance(identity, int):
            self._raw.find("annotation-id-missing", where, f"`id` is {identity!r}", path)
        elif identity <= 0:
            self._raw.find("annotation-id-zero", where, f"`id` is {identity}", path)
        elif identity in seen:
            self._raw.find("annotation-id-twice", where, f"`id` is {identity}", path)
        else:
            seen.add(identity)


def _has_no_area(box: Any) -> bool:
    """Whether an area of 0 is only right."""
    sides = [as_number(side) for side in box[2:4]] if isinstance(box, list) else []
    return any(side is not None and side <= 0 for side in sides)
