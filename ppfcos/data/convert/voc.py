"""Pascal VOC's format, as a whole: Annotations, JPEGImages, ImageSets/Main, or plain folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ppfcos.console import printable
from ppfcos.data.classes import checked_names
from ppfcos.data.convert.annotated import AnnotatedSet, Losses, Split, measure, pixels, split_name
from ppfcos.data.convert.images import Names, name_pictures
from ppfcos.data.formats import voc
from ppfcos.data.images import is_clutter
from ppfcos.data.records import image_ids, numbered
from ppfcos.errors import DataError

_XML_DIR, _IMAGE_DIR = "Annotations", "JPEGImages"
_EVERYTHING = "all"  # the split of a folder without lists

_IMAGE_TAGS = ("filename", "size", "object", "id")
_MARKS = ("truncated", "occluded", "difficult")
_POSE, _NO_POSE = "pose", "Unspecified"
_OBJECT_TAGS = ("name", "bndbox", _POSE, *_MARKS, voc.CROWD, "area", "id")
# Beyond the tags of VOC itself we write id (of pictures and objects), iscrowd and area: they make the way
# back to COCO whole, and other tools pass over tags that they do not know.
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", _POSE, *_MARKS)


def recognise(source: Path) -> bool:
    """Whether a folder looks like Pascal VOC's format."""
    return source.is_dir() and any(any(place.glob("*.xml")) for place in (source / _XML_DIR, source))


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Reads all lists of ImageSets/Main, or all XML files where there are no lists.

    Args:
        source: The folder that holds Annotations, or the XML files themselves.
        splits: Only these lists, such as trainval; empty: all but those of one class.
        image_dir: The folder of the pictures; None: JPEGImages or images in `source`, or that of the XML
            files.
        class_names: The classes in the order of their labels; empty: from label_list.txt or the like, else
            all that the XML files name, sorted.

    Raises:
        DataError: A file is wrong, or a class is not among class_names.
    """
    xml_dir = source / _XML_DIR if (source / _XML_DIR).is_dir() else source
    if not xml_dir.is_dir() or not voc.annotated_names(xml_dir):
        raise DataError(f"{xml_dir} holds no XML annotations: name the folder that holds {_XML_DIR}")
    names = checked_names(class_names, "--class_names") if class_names else []
    categories = numbered(names or voc.class_names(source, xml_dir)[0])
    data = AnnotatedSet(source, categories, [])
    lists = _lists(source, xml_dir)
    chosen = split_name(splits, list(lists.items()), list(lists), source)
    listed = list(dict.fromkeys(name for _, members in chosen for name in members))
    if not splits:
        in_none = set(voc.annotated_names(xml_dir)) - set(listed)
        data.losses.add(f"annotated pictures are in no list of {voc.LISTS}", len(in_none))
    everything = _read_all(listed, xml_dir, image_dir or _find_pictures(source, xml_dir), data)
    for name, members in chosen:
        images = [everything.images[member] for member in members if member in everything.images]
        ids = {image["id"] for image in images}
        annotations = [note for image in images for note in everything.annotations[image["id"]]]
        pictures = {number: path for number, path in everything.pictures.items() if number in ids}
        data.splits.append(Split(name, "", images, annotations, pictures))
    return data


def _lists(source: Path, xml_dir: Path) -> dict[str, list[str]]:
    files = [path for path in sorted((source / voc.LISTS).glob("*.txt")) if not is_clutter(path.name)]
    lists = {path.stem: voc.image_names(path) for path in files if not voc.is_list_of_one_class(path)}
    return lists or {_EVERYTHING: voc.annotated_names(xml_dir)}


def _find_pictures(source: Path, xml_dir: Path) -> Path:
    places = (source / name for name in (_IMAGE_DIR, "images"))
    return next((place for place in places if place.is_dir()), xml_dir)


class _Everything:
    """What the listed XML files say: images by name, annotations and pictures by image id."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        self.pictures: dict[int, Path] = {}


def _read_all(names: list[str], xml_dir: Path, image_dir: Path, data: AnnotatedSet) -> _Everything:
    if not image_dir.is_dir():
        raise DataError(f"{image_dir}, the folder of the pictures, is not there")
    pictures, found = voc.pictures_by_stem(image_dir), _Everything()
    annotated = [name for name in names if (xml_dir / f"{name}.xml").is_file()]
    data.losses.add("listed pictures have no XML file and are left out", len(names) - len(annotated))
    roots = {name: voc.read_xml(xml_dir / f"{name}.xml") for name in annotated}
    _count_unread_tags(roots.values(), data.losses)
    ids = _stated_ids(list(roots.values())) or image_ids(annotated)
    for number, (name, root) in zip(ids, roots.items()):
        if name in pictures:
            found.pictures[number] = image_dir / pictures[name]
        found.images[name] = image = {
            "id": number,
            "file_name": pictures.get(name) or (root.findtext("filename") or f"{name}.jpg").strip(),
            "width": voc.stated_side(root, "width"),
            "height": voc.stated_side(root, "height"),
        }
        measure(image, found.pictures.get(number))
        found.annotations[number] = _annotations(root, xml_dir / f"{name}.xml", number, data.categories)
    _number([note for notes in found.annotations.values() for note in notes])
    missing = len(annotated) - len(found.pictures)
    data.losses.add("pictures are not there: only their annotations are converted", missing)
    return found


def _stated_ids(nodes: list[Element]) -> list[int]:
    """The <id> of every node; empty unless all have one, above 0, and no two the same."""
    texts = [(node.findtext("id") or "").strip() for node in nodes]
    if not all(text.isascii() and text.isdigit() and int(text) > 0 for text in texts):
        return []
    ids = [int(text) for text in texts]
    return ids if len(set(ids)) == len(ids) else []


def _count_unread_tags(roots: Iterable[Element], losses: Losses) -> None:
    found: Counter[str] = Counter()
    for root in roots:
        found.update(node.tag for node in root if node.tag not in _IMAGE_TAGS)
        found.update(
            f"object/{node.tag}"
            for thing in root.iter("object")
            for node in thing
            if node.tag not in _OBJECT_TAGS
        )
    for tag, count in sorted(found.items()):
        losses.add(f"tags <{tag}> are not converted", count)


def _annotations(
    root: Element, xml_file: Path, image_id: int, categories: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    ids = {category["name"]: category["id"] for category in categories}
    found = []
    for node in root.findall("object"):
        name = voc.object_name(node)
        if name not in ids:
            raise DataError(
                f"{xml_file} names a class {name!r} that is not in the list of classes: add it there"
            )
        x0, y0, x1, y1 = voc.object_box(node, xml_file)
        box = [pixels(value) for value in (x0, y0, x1 - x0, y1 - y0)]
        annotation = {
            "id": node.findtext("id"),
            "image_id": image_id,
            "category_id": ids[name],
            "bbox": box,
            "area": _area(node, box),
            "iscrowd": int(voc.is_set(node, voc.CROWD)),
        }
        for mark in _MARKS:
            # `difficult` stands beside `iscrowd` only for tools that know no crowds
            if voc.is_set(node, mark) and not (mark == "difficult" and annotation["iscrowd"]):
                annotation[mark] = 1
        pose = (node.findtext(_POSE) or "").strip()
        if pose not in ("", _NO_POSE):
            annotation[_POSE] = pose
        found.append(annotation)
    return found


def _area(node: Element, box: list[float]) -> float:
    try:
        return float(node.findtext("area"))
    except (TypeError, ValueError):
        return pixels(max(box[2], 0) * max(box[3], 0))


def _number(annotations: list[dict[str, Any]]) -> None:
    """Their own ids if they have good ones, else numbers from 1."""
    texts = [note["id"] or "" for note in annotations]
    whole = [int(text) for text in texts if text.isascii() and text.isdigit() and int(text) > 0]
    good = len(set(whole)) == len(annotations)
    for number, note in enumerate(annotations):
        note["id"] = whole[number] if good else number + 1


def write(data: AnnotatedSet, folder: Path) -> tuple[Names, dict[str, dict[str, Any]]]:
    """Writes an XML file for every picture, a list for every split, and label_list.txt.

    Args:
        data: The data set; what VOC cannot hold is added to its losses.
        folder: Where to.

    Returns:
        Where the pictures belong, and for every split the section of a configuration that reads it.

    Raises:
        DataError: Two splits have other boxes for one picture.
    """
    class_of = _class_texts(data)
    names = name_pictures(data, lambda _, file_name: PurePosixPath(_IMAGE_DIR, _flat_name(file_name)))
    for place in (_XML_DIR, _IMAGE_DIR, voc.LISTS):
        (folder / place).mkdir(parents=True)
    (folder / voc.NAME_FILES[0]).write_text("".join(f"{n}\n" for n in class_of.values()), encoding="utf-8")
    written: dict[str, str] = {}
    sections = {}
    for split in data.splits:
        notes_of, members = split.annotations_by_image(), []
        for image in split.images:
            path = names[split.name, image["id"]]
            text = _xml(image, path.name, notes_of[image["id"]], class_of)
            if written.setdefault(path.stem, text) != text:
                raise DataError(
                    f"{image['file_name']} has other annotations in {split.name} than in a split before it: "
                    "convert them one by one, with --split"
                )
            members.append(path.stem)
        list_file = folder / voc.LISTS / f"{split.name}.txt"
        list_file.write_text("".join(f"{member}\n" for member in members), encoding="utf-8")
        sections[split.name] = {"name": "PPFCOSVOCDataSet", "image_set": split.name}
    for stem, text in written.items():
        (folder / _XML_DIR / f"{stem}.xml").write_text(text, encoding="utf-8")
    _count_losses(data)
    return names, sections


def _class_texts(data: AnnotatedSet) -> dict[int, str]:
    """The class names by id, as XML and a list with a name a line can hold them.

    Raises:
        DataError: Two would be the same, or one is blank.
    """
    texts = {category["id"]: printable(category["name"]).strip() for category in data.categories}
    for number, text in texts.items():
        if not text or list(texts.values()).count(text) > 1:
            raise DataError(
                f"{data.source}: the category {number} has a name that Pascal VOC cannot tell from another: "
                f"{text!r}; rename it"
            )
    changed = sum(texts[category["id"]] != category["name"] for category in data.categories)
    data.losses.remark("classes are renamed: their names have control characters or outer spaces", changed)
    return texts


def _flat_name(file_name: PurePosixPath) -> str:
    """The path as one name, without the spaces that a list strips or takes for those before a mark."""
    name = PurePosixPath("_".join(file_name.parts))
    is_misread = name.stem != name.stem.strip() or voc.has_mark(name.stem.split())
    return "_".join(name.stem.split()) + name.suffix if is_misread else name.name


def _xml(image: dict[str, Any], file_name: str, notes: list[dict[str, Any]], class_of: dict[int, str]) -> str:
    root = Element("annotation")
    for tag, value in (("folder", _IMAGE_DIR), ("filename", file_name), ("id", image["id"])):
        SubElement(root, tag).text = str(value)
    size = SubElement(root, "size")
    for tag, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
        SubElement(size, tag).text = str(value)
    for note in notes:
        root.append(_object(note, class_of[note["category_id"]]))
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _object(note: dict[str, Any], name: str) -> Element:
    x, y, width, height = note["bbox"]
    crowd = note.get("iscrowd", 0)
    values = {
        "name": name,
        _POSE: printable(note.get(_POSE, _NO_POSE)),
        **{mark: int(bool(note.get(mark))) for mark in _MARKS},
        "id": note["id"],
    }
    if crowd:
        values.update({voc.CROWD: 1, "difficult": 1})
    if note["area"] != pixels(max(width, 0) * max(height, 0)):
        values["area"] = note["area"]
    node = Element("object")
    for tag, value in values.items():
        SubElement(node, tag).text = str(value)
    corners = SubElement(node, "bndbox")
    for side, value in zip(voc.SIDES, (x, y, x + width, y + height)):
        SubElement(corners, side).text = str(pixels(value))
    return node


def _count_losses(data: AnnotatedSet) -> None:
    losses, notes = data.losses, data.annotations()
    changed = [c["id"] for number, c in enumerate(data.categories, start=1) if c["id"] != number]
    losses.add("categories lose their number: VOC has names only", len(changed))
    losses.add_other_keys(data.categories, ("id", "name"), "categories")
    losses.add_other_keys(data.images(), _IMAGE_KEYS, "images")
    losses.add_other_keys(notes, _ANNOTATION_KEYS, "annotations")
    losses.add_other_keys([split.head for split in data.splits], (), "splits")
    crowds = [note for note in notes if note.get("iscrowd")]
    losses.remark(
        "crowd boxes are marked <iscrowd>, and difficult for tools that do not know it", len(crowds)
    )
    decimals = [note for note in notes if any(float(side) % 1 for side in note["bbox"])]
    losses.remark("boxes have decimals, which tools that read whole numbers refuse or round", len(decimals))
