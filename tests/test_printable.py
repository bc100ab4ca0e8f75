"""What file and class names may do to terminals, logs and results: nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppfcos import console
from ppfcos.cli import convert_data
from ppfcos.data.convert.convert import convert
from ppfcos.json_files import to_json
from ppfcos.metrics.coco import CocoMetrics

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "a\x1b[2J\r\nerror: forged\x07\x7f\x9b1m\u2028\u202egpj\u2066\ud800\udce9"
FINE = "Größe 图片 👩‍👩‍👧 نام‌ها e\u0301 \xa0.jpg"
CONTROLS = set(map(chr, [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F)]))


def is_harmless(text: str, lines: int = 1) -> bool:
    """Whether it has so many lines and nothing else that a terminal obeys, and can be encoded."""
    text.encode()
    return text.count("\n") == lines - 1 and not CONTROLS & set(text.replace("\n", ""))


def test_everything_is_escaped_that_a_terminal_obeys_and_nothing_else():
    assert is_harmless(console.printable(HOSTILE))
    assert console.printable(FINE) == FINE
    assert console.printable("caf\udce9\x1b\n") == "caf\\xe9\\x1b\\n"
    assert console.printable("a\nb", keep="\n") == "a\nb"
    for code in [*range(0x300), *range(0x2000, 0x2070), 0xD800, 0xDC7F, 0xDC80, 0xDCFF, 0xDFFF]:
        assert is_harmless(console.printable(chr(code)))


def test_bytes_of_a_name_are_the_same_in_every_locale():
    name = "Größe-".encode() + b"\xe9"
    assert console.printable(name.decode("ascii", "surrogateescape")) == "Größe-\\xe9"
    assert json.loads(to_json([name.decode("utf-8", "surrogateescape"), "\ud800\x1b\\"])) == [
        "Größe-\\xe9",
        "\\ud800\x1b\\",
    ]


def test_a_name_cannot_forge_a_line_of_a_log():
    formatter = console.LineFormatter()

    def line(text: str, *names: object) -> str:
        return formatter.format(logging.LogRecord("ppfcos", logging.WARNING, "", 0, text, names, None))

    assert is_harmless(line("%s cannot be read", Path(HOSTILE)))
    assert is_harmless(line("a table:\n%s", "one\ntwo\x1b"), lines=3)


def test_class_names_in_the_table_of_an_evaluation():
    figures = CocoMetrics.__new__(CocoMetrics)
    object.__setattr__(figures, "per_class", {HOSTILE: 0.5, "b": -1.0})
    assert is_harmless(figures.class_table(), lines=2)


def test_an_error_is_one_line(capsys, tmp_path):
    assert (
        convert_data.main(
            [str(tmp_path / HOSTILE.replace("\ud800", "")), "--to", "voc", "-o", str(tmp_path / "new")]
        )
        == 2
    )
    assert is_harmless(capsys.readouterr().err.rstrip("\n"))
    with pytest.raises(SystemExit, match="2"):
        convert_data.main(["x", "--to", "voc", "-o", "y", f"--{HOSTILE}"])
    assert is_harmless(capsys.readouterr().err.rstrip("\n"))


NAMES = [
    b"caf\xe9.jpg", b"a\nb.jpg", b"c\x01\x1b.jpg", "q\"<&'é😀.jpg".encode(), b"x" * 251 + b".jpg", b"A.jpg",
    b"a.jpg", "e\u0301.jpg".encode(), "\u00e9.jpg".encode(), b"tab\t.jpg", b"\xe9" * 251 + b".jpg",
    b"caf\\xe9.jpg", b"photo 1.jpg", b" x.jpg", "bidi\u202e.jpg".encode(),
]  # fmt: skip


@pytest.fixture
def yolo(tmp_path) -> Path:
    """A data set in YOLO's format whose folders, pictures and classes have such names."""
    import cv2
    import numpy as np

    folder = os.fsencode(tmp_path / "yolo")
    for place in (b"images", b"labels"):
        os.makedirs(os.path.join(folder, place, b"tr\xe4in"))
    picture = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))[1].tobytes()
    for i, name in enumerate(NAMES):
        Path(os.fsdecode(os.path.join(folder, b"images", b"tr\xe4in", name))).write_bytes(picture)
        label = os.fsdecode(os.path.join(folder, b"labels", b"tr\xe4in", name[:-4] + b".txt"))
        Path(label).write_text(f"{i % 2} 0.5 0.5 {(i + 1) / 100} 0.5\n")
    (tmp_path / "yolo" / "classes.txt").write_text("a\x1b[31m\nb<&\n", encoding="utf-8")
    return tmp_path / "yolo"


@pytest.mark.parametrize("target", ["voc", "coco", "yolo"])
def test_no_picture_or_box_is_lost_by_a_name(yolo, tmp_path, target):
    widths = sorted(round((i + 1) / 100 * 40, 6) for i in range(len(NAMES)))
    source = yolo
    for number, wanted in enumerate((target, "coco")):
        done = convert(source, wanted, tmp_path / str(number))
        source = tmp_path / str(number)
        assert done.images == len(NAMES) and [loss for loss in done.dropped if "<folder>" not in loss] == []
    [file] = (source / "annotations").iterdir()
    content = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(note["bbox"][2] for note in content["annotations"]) == widths
    folder = source / done.sections[next(iter(done.sections))]["image_dir"]
    for image in content["images"]:
        assert (folder / image["file_name"]).is_file() and is_harmless(image["file_name"])


def test_a_closed_or_full_standard_output(yolo, tmp_path):
    def run(where: str, number: int, **variables: str) -> subprocess.CompletedProcess:
        words = [sys.executable, str(ROOT / "tools" / "convert_data.py"), str(yolo), "--to", "voc", "-o"]
        command = ["sh", "-c", f'exec "$@" {where}', "sh", *words, str(tmp_path / f"new{number}")]
        return subprocess.run(command, capture_output=True, env={**os.environ, **variables}, check=False)

    for number, where in enumerate((">&-", "<&-", "2>&-", "<&- >&- 2>&-")):
        done = run(where, number)
        assert (done.returncode, done.stderr) == (0, b"")
        assert (tmp_path / f"new{number}" / "Annotations").is_dir()
    if os.path.exists("/dev/full"):
        done = run(">/dev/full", 10)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"standard output" in done.stderr
        assert run(">/dev/full 2>/dev/full", 11).returncode == 2
    done = run("", 12, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # also the names of files
    done = run("", 13, **ascii_only)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"PYTHONUTF8" in done.stderr
