"""Pascal VOC data sets: Annotations, JPEGImages and ImageSets/Main, or plain folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ppfcos.console import printable
from ppfcos.data.classes import checked_names
from ppfcos.data.convert.annotated import (
    AnnotatedSet,
    ImagePaths,
    Split,
    box_area,
    fill_in_size,
    has_another_area,
    name_images,
    pixels,
    require_same,
)
from ppfcos.data.formats import voc
from ppfcos.data.formats.layouts import IMAGE_DIR, XML_DIR, select_splits, voc_layout
from ppfcos.data.issues import RaiseOnError
from ppfcos.data.records import image_ids, numbered
from ppfcos.errors import DataError

_FLAGS = ("truncated", "occluded", "difficult")
_NO_POSE = "Unspecified"
_IMAGE_TAGS = ("filename", "size", "object")
_OBJECT_TAGS = ("name", "bndbox", "pose", *_FLAGS, voc.CROWD, "area")
# iscrowd and area are tags of ours, which other tools ignore.
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "pose", *_FLAGS)


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Read all lists of ImageSets/Main, or all XML files if there are none. Arguments as of `convert`."""
    layout = voc_layout(source)
    image_dir = image_dir or layout.image_dir
    if not image_dir.is_dir():
        raise DataError(f"{image_dir}, the folder of the images, is not there")
    names = checked_names(class_names, "--class_names") if class_names else []
    data = AnnotatedSet(source, numbered(names or voc.class_names(source, layout.xml_dir)[0]), [])
    chosen = select_splits(layout.splits, splits, source)
    listed = list(dict.fromkeys(name for members in chosen.values() for name in members))
    if not splits:
        unlisted = set(voc.annotated_names(layout.xml_dir)) - set(listed)
        data.dropped[f"annotated images are in no list of {voc.LISTS}"] += len(unlisted)
    annotated = [name for name in listed if voc.xml_path(layout.xml_dir, name).is_file()]
    data.dropped["listed images have no XML file and are left out"] += len(listed) - len(annotated)
    files = voc.images_by_stem(image_dir)
    entries = {}
    first = 1
    for number, name in zip(image_ids(annotated), annotated):
        file = image_dir / files[name] if name in files else None
        image, annotations = _read_image(voc.xml_path(layout.xml_dir, name), file, number, first, data)
        image["file_name"] = files.get(name, image["file_name"]).replace(os.sep, "/")
        entries[name] = image, annotations, file
        first += len(annotations)
    for split, members in chosen.items():
        some = [entries[member] for member in members if member in entries]
        images = [image for image, _, _ in some]
        split_files = {image["id"]: file for image, _, file in some if file is not None}
        annotations = [annotation for _, notes, _ in some for annotation in notes]
        data.splits.append(Split(split, "", images, annotations, split_files))
    missing = sum(file is None for _, _, file in entries.values())
    data.dropped["images are not there: only their annotations are converted"] += missing
    return data


def _read_image(
    xml_file: Path, file: Path | None, number: int, first: int, data: AnnotatedSet
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An image with the id `number` and its annotations, with ids from `first`."""
    labels = {category["name"]: label for label, category in enumerate(data.categories)}
    parsed = voc.parse(xml_file, labels, RaiseOnError(f"{xml_file.parent}{os.sep}"))
    stated_name = (parsed.root.findtext("filename") or f"{xml_file.stem}.jpg").strip()
    image = {
        "id": number,
        "file_name": file.name if file else stated_name,
        "width": parsed.width,
        "height": parsed.height,
    }
    fill_in_size(image, file)
    for node in parsed.root:
        if node.tag not in _IMAGE_TAGS:
            data.dropped[f"tags <{node.tag}> are not converted"] += 1
    annotations = []
    for annotation_id, thing in enumerate(parsed.objects, start=first):
        for node in thing.node:
            if node.tag not in _OBJECT_TAGS:
                data.dropped[f"tags <object/{node.tag}> are not converted"] += 1
        category_id = data.categories[thing.label]["id"]
        annotations.append(_annotation(thing, annotation_id, number, category_id))
    return image, annotations


def _annotation(thing: voc.VOCObject, number: int, image_id: int, category_id: int) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.box
    box = [pixels(value) for value in (x0, y0, x1 - x0, y1 - y0)]
    try:
        area = float(thing.node.findtext("area"))
    except (TypeError, ValueError):
        area = box_area(box)
    annotation = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": area,
        "iscrowd": int(thing.is_set(voc.CROWD)),
    }
    for flag in _FLAGS:
        # `write` sets `difficult` beside `iscrowd`, for tools that know no crowds
        if thing.is_set(flag) and not (flag == "difficult" and annotation["iscrowd"]):
            annotation[flag] = 1
    pose = (thing.node.findtext("pose") or "").strip()
    if pose not in ("", _NO_POSE):
        annotation["pose"] = pose
    return annotation


def write(data: AnnotatedSet, folder: Path) -> tuple[ImagePaths, dict[str, dict[str, Any]]]:
    """Write an XML file for every image, a list for every split, and label_list.txt.

    Raises:
        DataError: Two splits have other boxes for one image.
    """
    class_of = _printable_names(data)
    paths = name_images(data, lambda _, file_name: PurePosixPath(IMAGE_DIR, _flat_name(file_name)))
    for place in (XML_DIR, IMAGE_DIR, voc.LISTS):
        (folder / place).mkdir(parents=True)
    (folder / voc.NAME_FILES[0]).write_text("".join(f"{n}\n" for n in class_of.values()), encoding="utf-8")
    written: dict[str, str] = {}
    sections = {}
    for split in data.splits:
        notes_of, members = split.annotations_by_image(), []
        for image in split.images:
            path = paths[split.name, image["id"]]
            text = _xml(image, path.name, notes_of[image["id"]], class_of)
            require_same(written, path.stem, text, image["file_name"], split)
            members.append(path.stem)
        list_file = folder / voc.LISTS / f"{split.name}.txt"
        list_file.write_text("".join(f"{member}\n" for member in members), encoding="utf-8")
        sections[split.name] = {"name": "PPFCOSVOCDataSet", "image_set": split.name}
    for stem, text in written.items():
        (folder / XML_DIR / f"{stem}.xml").write_text(text, encoding="utf-8")
    data.drop_keys(_IMAGE_KEYS, _ANNOTATION_KEYS)
    crowds = sum(bool(note.get("iscrowd")) for note in data.annotations())
    data.notes["crowd boxes are marked <iscrowd>, and difficult for other tools"] += crowds
    return paths, sections


def _printable_names(data: AnnotatedSet) -> dict[int, str]:
    """The class names by id, without control characters and outer spaces.

    Raises:
        DataError: Two would be the same, or one is blank.
    """
    texts = {category["id"]: printable(category["name"]).strip() for category in data.categories}
    uses = Counter(texts.values())
    for number, text in texts.items():
        if not text or uses[text] > 1:
            raise DataError(
                f"{data.source}: category {number} has an empty or ambiguous name in Pascal VOC: {text!r}; "
                "rename it"
            )
    renamed = sum(texts[category["id"]] != category["name"] for category in data.categories)
    data.notes["classes are renamed: their names have control characters or outer spaces"] += renamed
    return texts


def _flat_name(file_name: PurePosixPath) -> str:
    """The path as one name, without spaces that a list would strip or read as those before a mark."""
    name = PurePosixPath("_".join(file_name.parts))
    is_misread = name.stem != name.stem.strip() or voc.has_mark(name.stem.split())
    return "_".join(name.stem.split()) + name.suffix if is_misread else name.name


def _xml(image: dict[str, Any], file_name: str, notes: list[dict[str, Any]], class_of: dict[int, str]) -> str:
    root = Element("annotation")
    for tag, value in (("folder", IMAGE_DIR), ("filename", file_name)):
        SubElement(root, tag).text = value
    size = SubElement(root, "size")
    for tag, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
        SubElement(size, tag).text = str(value)
    for note in notes:
        root.append(_object(note, class_of[note["category_id"]]))
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _object(note: dict[str, Any], name: str) -> Element:
    x, y, width, height = note["bbox"]
    values = {
        "name": name,
        "pose": printable(note.get("pose", _NO_POSE)),
        **{flag: int(bool(note.get(flag))) for flag in _FLAGS},
    }
    if note.get("iscrowd"):
        values.update({voc.CROWD: 1, "difficult": 1})
    if has_another_area(note):
        values["area"] = note["area"]
    node = Element("object")
    for tag, value in values.items():
        SubElement(node, tag).text = str(value)
    corners = SubElement(node, "bndbox")
    for side, value in zip(voc.SIDES, (x, y, x + width, y + height)):
        SubElement(corners, side).text = str(pixels(value))
    return node
