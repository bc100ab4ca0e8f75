"""Damages small data sets of real files in seeded ways, and has the commands' own code read them.

As a script it is a long-lived process: it reads a seed a line, and answers what became of that case, as JSON.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import json
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Callable
from xml.etree import ElementTree

IMAGES = 3
LEVELS = 60_000  # of nesting
LEAST_ADDRESS_SPACE = (
    4 << 30
)  # that a case may take besides what the libraries have: to see more than is allowed

HOSTILE_NUMBERS = (
    0, -1, 1, 0.5, -0.0, 1e-320, 1e30, -1e30, 1e308, -1e308, 2**31, 2**63, -(2**63) - 1, 2**200, 10**400,
    float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
HOSTILE_TEXTS = (
    "", " ", "nan", "1e999", "-5", "..", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a\0b",
    "two words.jpg",
    "Größe ☃.jpg", "\u202egnp.jpg", "x" * 5000, "line\nbreak.jpg", "\ud800", "%s%n", "<script>", "C:\\x.jpg",
)  # fmt: skip
HOSTILE_VALUES = (
    *HOSTILE_NUMBERS, *HOSTILE_TEXTS, None, True, False, [], {}, [[]], [None] * 4, ["1", "2", "3", "4"],
    {"id": 1}, [1, 2, 3], [1, 2, 3, 4, 5], [float("nan")] * 4, [1e308] * 4, [-1e308, 0, 1e308, 1e308],
)  # fmt: skip


# The files --------------------------------------------------------------------------------------------------


class Case:
    """One damaged data set.

    Args:
        seed: Decides everything.
        data: The folder that holds bccd and tinycoco.
        folder: An empty one, for the data set.

    Attributes:
        damages: What was done, in words.
        sections: Of a configuration, TrainDataset and EvalDataset.
        path: What tools/check_data.py is to be called with.
    """

    def __init__(self, seed: int, data: Path, folder: Path):
        self.random = random.Random(seed)
        self.folder = folder
        self.damages: list[str] = []
        make, damages = (
            (_make_coco, COCO_DAMAGES),
            (_make_voc, VOC_DAMAGES),
            (_make_yolo, YOLO_DAMAGES),
        )[seed % 3]
        section, self.path = make(self, data)
        self.sections = {"TrainDataset": section, "EvalDataset": dict(section)}
        if self.random.random() < 0.5:
            section["allow_empty"] = True
        for _ in range(self.random.choice((1, 1, 2, 3))):
            damage = self.random.choice(damages if self.random.random() < 0.6 else FILE_DAMAGES)
            self.damages.append(f"{damage.__name__.strip('_')}: {damage(self)}")

    def files(self, *suffixes: str) -> list[Path]:
        """The regular files of the data set with one of these suffixes, all without any."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        return [path for path in found if not suffixes or path.suffix in suffixes]

    def any_file(self, *suffixes: str) -> Path:
        """One of these, or a new one where there is none left."""
        found = self.files(*suffixes)
        if not found:
            found = [self.folder / f"new{suffixes[0] if suffixes else ''}"]
            found[0].touch()
        return self.random.choice(found)


def _make_coco(case: Case, data: Path) -> tuple[dict[str, Any], Path]:
    source = data / "tinycoco"
    content = json.loads((source / "annotations/instances_train2017.json").read_text())
    images = case.random.sample(content["images"], IMAGES)
    ids = {image["id"] for image in images}
    notes = [note for note in content["annotations"] if note["image_id"] in ids]
    content = {"images": images, "annotations": notes, "categories": content["categories"]}
    (case.folder / "pictures").mkdir()
    for image in images:
        shutil.copy(source / "images/train2017" / image["file_name"], case.folder / "pictures")
    path = case.folder / "annotations.json"
    path.write_text(json.dumps(content))
    keys = {"dataset_dir": str(case.folder), "image_dir": "pictures", "anno_path": path.name}
    return {"name": "COCODataSet", **keys}, path


def _names_of_bccd(case: Case, data: Path) -> list[str]:
    return case.random.sample(sorted(path.stem for path in (data / "bccd/Annotations").glob("*.xml")), IMAGES)


def _make_voc(case: Case, data: Path) -> tuple[dict[str, Any], Path]:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (case.folder / folder).mkdir(parents=True)
    names = _names_of_bccd(case, data)
    for name in names:
        for part in (f"Annotations/{name}.xml", f"JPEGImages/{name}.jpg"):
            shutil.copy(data / "bccd" / part, case.folder / part)
    (case.folder / "ImageSets/Main/trainval.txt").write_text("".join(f"{name}\n" for name in names))
    keys = {"dataset_dir": str(case.folder), "image_set": case.random.choice(("trainval", "trainval", None))}
    if case.random.random() < 0.3:
        keys["class_names"] = ["RBC", "WBC", "Platelets"]
    return {"name": "PPFCOSVOCDataSet", **keys}, case.folder


def _make_yolo(case: Case, data: Path) -> tuple[dict[str, Any], Path]:
    classes = ["RBC", "WBC", "Platelets"]
    for part in ("images", "labels"):
        (case.folder / part).mkdir()
    for name in _names_of_bccd(case, data):
        shutil.copy(data / f"bccd/JPEGImages/{name}.jpg", case.folder / "images")
        rows = []
        for node in ElementTree.parse(data / f"bccd/Annotations/{name}.xml").iter("object"):
            x0, y0, x1, y1 = (float(node.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            box = ((x0 + x1) / 1280, (y0 + y1) / 960, (x1 - x0) / 640, (y1 - y0) / 480)
            rows.append(f"{classes.index(node.findtext('name'))} " + " ".join(f"{v:.6f}" for v in box))
        (case.folder / f"labels/{name}.txt").write_text("\n".join(rows))
    (case.folder / "data.yaml").write_text(
        "path: .\ntrain: images\nval: list.txt\nnc: 3\nnames: [RBC, WBC, Platelets]\n"
    )
    lines = (f"images/{path.name}\n" for path in sorted((case.folder / "images").iterdir()))
    (case.folder / "list.txt").write_text("".join(lines))
    keys = {"dataset_dir": str(case.folder), "image_set": case.random.choice(("train", "val"))}
    return {"name": "PPFCOSYOLODataSet", **keys}, case.folder


# Damage to the bytes of any file ----------------------------------------------------------------------------


def _truncate(case: Case) -> str:
    path = case.any_file()
    data = path.read_bytes()
    path.write_bytes(data[: case.random.randrange(len(data) + 1)])
    return path.name


def _flip_bits(case: Case) -> str:
    path = case.any_file()
    data = bytearray(path.read_bytes())
    for _ in range(case.random.choice((1, 1, 8, 200)) if data else 0):
        data[case.random.randrange(len(data))] ^= 1 << case.random.randrange(8)
    path.write_bytes(data)
    return path.name


def _overwrite(case: Case) -> str:
    path = case.any_file()
    data = bytearray(path.read_bytes())
    start, length = case.random.randrange(len(data) + 1), case.random.choice((1, 16, 1000))
    filler = case.random.choice((b"\0", b"\xff", case.random.randbytes(1)))
    data[start : start + length] = filler * min(length, len(data) - start)
    path.write_bytes(data)
    return path.name


def _repeat_a_piece(case: Case) -> str:
    path = case.any_file()
    data = path.read_bytes()
    start = case.random.randrange(len(data) + 1)
    path.write_bytes(data[:start] + data[start : start + 500] * 3 + data[start:])
    return path.name


def _encode_otherwise(case: Case) -> str:
    path = case.any_file(".json", ".xml", ".txt", ".yaml")
    encoding = case.random.choice(("utf-16", "utf-8-sig", "latin-1", "cp500"))
    text = path.read_text(errors="replace") if path.exists() else "é"
    path.write_bytes(text.encode(encoding, errors="replace"))
    return f"{path.name} in {encoding}"


def _empty(case: Case) -> str:
    path = case.any_file()
    path.write_bytes(
        case.random.choice((b"", b"\n", b"\0" * 1000, b"<html>404</html>", b"[]", b"null", b"7"))
    )
    return path.name


def _remove(case: Case) -> str:
    path = case.any_file()
    if path.exists():
        path.unlink()
    return path.name


def _replace_by_something_else(case: Case) -> str:
    """A link to nothing, to itself, to a folder, to what never ends; a folder; a pipe."""
    path = case.any_file()
    if path.exists():
        path.unlink()
    what = case.random.choice(("nothing", "itself", "above", "endless", "folder", "pipe"))
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"nothing": "gone", "itself": path.name, "above": "..", "endless": "/dev/zero"}[what])
    return f"{path.name} by {what}"


def _rename(case: Case) -> str:
    path = case.any_file()
    names = [
        name for name in HOSTILE_TEXTS if 0 < len(name.encode(errors="replace")) < 200 and "/" not in name
    ]
    name = case.random.choice([name for name in names if name not in ("..", " ") and "\0" not in name])
    if path.exists():
        path.rename(path.with_name(name.encode(errors="replace").decode() + path.suffix))
    return f"{path.name} to {name!r}"


# Damage to pictures -----------------------------------------------------------------------------------------


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@functools.cache  # packing takes seconds
def _bomb(side: int) -> bytes:
    """A whole, grey PNG of side x side pixels in about a thousandth of that many bytes."""
    packer, row = zlib.compressobj(1), bytes(side + 1)
    return _png(side, side, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def _huge_picture(case: Case) -> str:
    path, side = case.any_file(".jpg"), case.random.choice((9_000, 12_000, 12_000, 30_000))
    path.write_bytes(_bomb(side))
    return f"{path.name} is a PNG of {side}x{side} pixels"


def _huge_claim(case: Case) -> str:
    """Headers that promise more than the file has."""
    path, kind = case.any_file(".jpg"), case.random.choice(("png", "jpeg", "bmp", "tiff", "webp", "gif"))
    size = case.random.choice((1, 20_000, 65_500))
    if kind == "jpeg":
        data = bytearray(path.read_bytes() if path.exists() else b"")
        for start in (match.start() for match in re.finditer(rb"\xff[\xc0\xc2]\x00\x11", bytes(data))):
            data[start + 5 : start + 9] = struct.pack(">HH", size, size)
    elif kind == "png":
        data = _png(size, size, zlib.compress(bytes(1000)))
    elif kind == "bmp":
        header = struct.pack("<IiiHHIIiiII", 40, size, -size, 1, 24, 0, 0, 0, 0, 0, 0)
        data = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(100)
    elif kind == "tiff":
        tags = [(256, size), (257, size), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, size),
                (279, 2**31)]  # fmt: skip
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    elif kind == "webp":
        inner = b"VP8X" + struct.pack("<I", 10) + bytes(4) + 2 * struct.pack("<I", size - 1)[:3]
        data = b"RIFF" + struct.pack("<I", len(inner) + 4) + b"WEBP" + inner
    else:
        data = b"GIF89a" + struct.pack("<HH", size % 65_536, size % 65_536) + bytes(50)
    path.write_bytes(data)
    return f"{path.name} is a {kind} that claims {size} pixels a side"


def _broken_exif(case: Case) -> str:
    path = case.any_file(".jpg")
    body = case.random.choice((b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))
    body += case.random.randbytes(case.random.randrange(60))
    data = path.read_bytes() if path.exists() else b""
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    return path.name


# Damage to annotations --------------------------------------------------------------------------------------


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        if depth < 4:
            yield from _places(inner, depth + 1)


def _in_json(case: Case, change: Callable[[dict], str]) -> str:
    path = case.folder / "annotations.json"
    if not path.is_file():
        return "nothing: there is no file"
    try:
        content = json.loads(path.read_bytes())
        what = change(content)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        return f"nothing: {type(error).__name__}"  # an earlier damage has left nothing to change
    path.write_text(json.dumps(content))
    return what


def _json_value(case: Case) -> str:
    def change(content: dict) -> str:
        part = case.random.choice(("images", "annotations", "categories", None))
        container, key = case.random.choice(list(_places(content[part] if part else content)))
        container[key] = case.random.choice(HOSTILE_VALUES)
        return f"{part} {key}: {repr(container[key])[:60]}"

    return _in_json(case, change)


def _json_box(case: Case) -> str:
    def change(content: dict) -> str:
        for note in case.random.sample(content["annotations"], min(3, len(content["annotations"]))):
            note["bbox"][case.random.randrange(4)] = case.random.choice(HOSTILE_VALUES)
        return "numbers of boxes"

    return _in_json(case, change)


def _json_removed(case: Case) -> str:
    def change(content: dict) -> str:
        container, key = case.random.choice(list(_places(content)))
        del container[key]
        return str(key)

    return _in_json(case, change)


def _json_ids(case: Case) -> str:
    def change(content: dict) -> str:
        part = case.random.choice(("images", "annotations", "categories"))
        one, other = case.random.choice(content[part]), case.random.choice(content[part])
        one["id"] = case.random.choice((other["id"], str(one["id"]), *HOSTILE_NUMBERS))
        return f"{part}: {repr(one['id'])[:60]}"

    return _in_json(case, change)


def _json_name(case: Case) -> str:
    """An image's name, in the file alone or on the disk too."""

    def change(content: dict) -> str:
        image, name = case.random.choice(content["images"]), case.random.choice(HOSTILE_TEXTS)
        before = case.folder / "pictures" / image["file_name"]
        image["file_name"] = name
        if name.endswith(".jpg") and len(name) < 200 and before.exists():
            before.rename(before.with_name(name))
        return repr(name)[:60]

    return _in_json(case, change)


def _json_nested(case: Case) -> str:
    path = case.folder / "annotations.json"
    levels = case.random.choice((900, LEVELS))
    opening, closing = case.random.choice((("[", "]"), ('{"a":', "}")))
    nested = opening * levels + "1" + closing * levels
    if path.is_file():
        text = path.read_text(errors="replace")
        path.write_text(
            case.random.choice((nested, re.sub(r'"area": [\d.]+', f'"area": {nested}', text, count=1)))
        )
    return f"{levels} levels"


def _json_long_number(case: Case) -> str:
    path = case.folder / "annotations.json"
    number = case.random.choice(("9" * 5000, "-1e99999", "1" * 400, "0." + "3" * 5000))
    if path.is_file():
        text = path.read_text(errors="replace")
        start = case.random.choice(list(re.finditer(r"\d+", text)) or [re.search("", text)])
        path.write_text(text[: start.start()] + number + text[start.end() :])
    return number[:10]


def _xml_text(case: Case) -> str:
    path = case.any_file(".xml")
    try:
        tree = ElementTree.parse(path)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        return f"nothing: {type(error).__name__}"
    nodes = list(tree.iter())
    for node in case.random.sample(nodes, min(3, len(nodes))):
        value = str(case.random.choice((*HOSTILE_NUMBERS, *HOSTILE_TEXTS[1:9])))
        node.text = value.replace("\0", "") if case.random.random() < 0.7 else None
        if case.random.random() < 0.2:
            node.tag = "other"
    try:
        tree.write(path)
    except RecursionError:  # an earlier damage has nested it
        return "nothing: RecursionError"
    return path.name


def _xml_trap(case: Case) -> str:
    """Entities that grow without end, or that name other files; nesting; encodings."""
    path = case.any_file(".xml")
    grow = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    deep = "<a>" * LEVELS + "</a>" * LEVELS
    name, text = case.random.choice(
        (
            ("growing", f'<!DOCTYPE a [<!ENTITY e0 "ha">{grow}]><a><object><name>&e11;</name></object></a>'),
            ("file", '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a><object><name>&e;</name></object></a>'),
            ("deep", f"<annotation>{deep}</annotation>"),
            ("deep object", f"<annotation><object>{deep}</object></annotation>"),
            ("encoding", '<?xml version="1.0" encoding="no-such"?><annotation/>'),
            ("multi-byte encoding", '<?xml version="1.0" encoding="big5"?><annotation/>'),
            ("no root", "just text"),
        )
    )  # fmt: skip
    path.write_text(text)
    return f"{path.name}: {name}"


def _list_line(case: Case) -> str:
    """A line of a list of images, of labels, or of class names."""
    path = case.any_file(".txt")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    line = str(case.random.choice((*HOSTILE_TEXTS, *HOSTILE_NUMBERS))).encode(errors="replace").decode()
    lines.insert(case.random.randrange(len(lines) + 1), line)
    path.write_text("\n".join(lines * case.random.choice((1, 1, 2))))
    return f"{path.name}: {line[:40]!r}"


def _label_value(case: Case) -> str:
    paths = sorted((case.folder / "labels").glob("*.txt"))
    path = case.random.choice([path for path in paths if path.is_file()] or [case.folder / "labels/new.txt"])
    rows = [line.split() for line in path.read_text(errors="replace").splitlines()] if path.exists() else []
    for row in case.random.sample(rows, min(2, len(rows))):
        if row:
            row[case.random.randrange(len(row))] = str(case.random.choice(HOSTILE_NUMBERS))
        if case.random.random() < 0.2:
            row += ["0.5"] * case.random.choice((1, 2, 100_000))
    path.write_text("\n".join(" ".join(row) for row in rows))
    return path.name


def _yaml_trap(case: Case) -> str:
    grow = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    name, text = case.random.choice(
        (
            ("growing names", f"x0: &x0 [ha]\n{grow}names: [*x11]\ntrain: images\n"),
            ("growing split", f"x0: &x0 [ha]\n{grow}names: [a]\ntrain: *x11\nval: [*x11]\n"),
            ("deep", "names: " + "[" * 3000 + "]" * 3000 + "\n"),
            ("date", "names: [a, b]\npath: 2020-99-99\ntrain: images\n"),
            ("code", "names: !!python/object/apply:os.system ['true']\n"),
            ("keys", "names: {0: a, 1.5: b, null: c}\ntrain: images\n"),
            ("numbers", "names: [1, 2, .nan]\nnc: .inf\ntrain: 7\nval: {a: b}\n"),
            ("itself", "names: &n [*n]\ntrain: images\nval: images\n"),
            ("nothing", "names: []\ntrain: images\n"),
            ("list", "- names\n- train\n"),
            ("tabs", "names:\n\t- a\n"),
            ("paths", "names: [RBC, WBC]\npath: /dev\ntrain: zero\nval: /proc/self/mem\n"),
        )
    )  # fmt: skip
    path = case.folder / "data.yaml"
    if path.is_symlink() or path.is_file():
        path.unlink()
    if not path.exists():
        path.write_text(text)
    return name


FILE_DAMAGES = (
    _truncate, _truncate, _flip_bits, _flip_bits, _overwrite, _repeat_a_piece, _encode_otherwise, _empty,
    _remove, _replace_by_something_else, _replace_by_something_else, _rename, _huge_claim, _broken_exif,
)  # fmt: skip
COCO_DAMAGES = (
    _json_value, _json_value, _json_box, _json_removed, _json_ids, _json_name, _json_nested,
    _json_long_number, _huge_picture,
)  # fmt: skip
VOC_DAMAGES = (_xml_text, _xml_text, _xml_trap, _list_line, _huge_picture)
YOLO_DAMAGES = (_label_value, _list_line, _yaml_trap, _huge_picture)


# Reading it -------------------------------------------------------------------------------------------------


def read_as_a_training_does(case: Case) -> None:
    """An epoch of training batches, one of evaluation, and the true boxes of that."""
    from ppfcos.data.datasets import build_dataset
    from ppfcos.data.loader import EvalLoader, TrainLoader

    resize = {"Resize": {"target_size": [64, 96], "keep_ratio": True, "interp": 1}}
    operators = [{"Decode": {}}, {"RandomFlip": {}}, resize, {"Permute": {}}]
    cfg = {
        **case.sections,
        "TrainReader": {"sample_transforms": operators, "total_batch_size": 1},
        "EvalReader": {"sample_transforms": operators, "batch_size": 2},
        "PPFCOSTargets": {"ignore_crowd": case.random.random() < 0.5},
    }
    for _ in TrainLoader(cfg, build_dataset(cfg, "TrainDataset")):
        pass
    data = build_dataset(cfg, "EvalDataset")
    for _ in EvalLoader(cfg, data, "EvalReader"):
        pass
    data.coco_ground_truth()


def outcome_of(seed: int, data: Path) -> dict[str, Any]:
    """Makes a case, reads it in both ways, and says what became of it: see the test for what is right."""
    from ppfcos.cli import check_data, command

    with tempfile.TemporaryDirectory(prefix="bad_input_") as name:
        folder = Path(name, "set")
        folder.mkdir()
        case = Case(seed, data, folder)
        checking = [str(case.path), "--workers", "0", "--output_dir", f"{name}/report"]
        checking += ["--fix", f"{name}/cleaned.json"] if seed % 2 else []
        training = argparse.ArgumentParser()
        training.add_argument("--debug", action="store_true")
        ways = {
            "training": lambda: command.run(lambda _: read_as_a_training_does(case), training, []),
            "checking": lambda: command.run(check_data.check, check_data.build_parser(), checking),
        }
        _forget_peak()
        ends = {way: _end_of(read) for way, read in ways.items()}
        return {
            "seed": seed,
            "damages": case.damages,
            "folder": str(folder),
            "seconds": max(end["seconds"] for end in ends.values()),
            "peak": _peak(),
            "ends": ends,
        }


def _end_of(read: Callable[[], int]) -> dict[str, Any]:
    """Exit code, what went to the standard error, the traceback of what nobody caught, and processor time."""
    errors = io.StringIO()
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal's is
    code, crash, began = None, "", time.process_time()
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            code = read()
    except BaseException:
        crash = traceback.format_exc(limit=-6)
    seconds = time.process_time() - began
    return {"code": code, "stderr": errors.getvalue(), "crash": crash, "seconds": seconds}


def _forget_peak() -> None:
    gc.collect()  # an exception of the case before may keep its image in a cycle
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that this process had at once, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024


def main(data: Path) -> None:
    """Answers seeds from the standard input until that ends."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import numpy as np

        import ppfcos.data.check.check
        import ppfcos.data.loader  # noqa: F401
        from ppfcos.cli import check_data

    # Paddle's threads start with its first operations
    check_data.default_geometry().count_points(np.zeros((1, 100, 4), np.float32), 800, 1344)
    with suppress(RecursionError):  # grow the stack now: the limit below would keep it from growing
        json.loads("[" * 100_000)
    usual_memory = _peak()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    taken = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (taken + LEAST_ADDRESS_SPACE, resource.RLIM_INFINITY))
    for line in sys.stdin:
        outcome = outcome_of(int(line), data)
        outcome["peak"] -= usual_memory
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
