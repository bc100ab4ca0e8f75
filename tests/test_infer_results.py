"""tools/infer.py keeps what it found, whatever ends it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from conftest import needs_proc
from small_bundles import heads_bundle
from small_detector import pictures

from ppfcos.cli import infer
from ppfcos.cli.results import ResultsFile
from ppfcos.errors import OutputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return heads_bundle(tmp_path_factory.getbasetemp() / "heads")


def photos(folder: Path, names: list[bytes]) -> Path:
    folder.mkdir()
    picture = cv2.imencode(".jpg", next(iter(pictures())))[1].tobytes()
    for name in names:
        Path(os.path.join(folder, os.fsdecode(name))).write_bytes(picture)
    return folder


def command(bundle: Path, folder: Path, output: Path) -> list[str]:
    words = [sys.executable, ROOT / "tools" / "infer.py", "--bundle", bundle, "--infer_dir", folder]
    return [*map(str, words), "--output_dir", str(output), "--save_results", "--threads", "1"]


def test_names_that_are_not_text(bundle, tmp_path):
    names = [b"caf\xe9.jpg", b"a\nb.jpg", b"c\x1b[2J.jpg", b"x" * 251 + b".jpg", 'é😀<".jpg'.encode()]
    folder = photos(tmp_path / "photos", names)
    arguments = command(bundle, folder, tmp_path / "out")[2:]
    assert infer.main(arguments) == 0
    found = {
        row["file_name"] for row in json.loads((tmp_path / "out" / "bbox.json").read_text(encoding="utf-8"))
    }
    assert found == {"caf\\xe9.jpg", *(name.decode() for name in names[1:])}
    assert set(os.listdir(os.fsencode(tmp_path / "out"))) == {*names, b"bbox.json"}


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_keeps_the_results(bundle, tmp_path, number):
    folder, output = photos(tmp_path / "photos", [b"%04d.jpg" % i for i in range(500)]), tmp_path / "out"
    run = subprocess.Popen(
        command(bundle, folder, output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while run.poll() is None and len(list(output.glob("*.jpg"))) < 5:
        time.sleep(0.02)
    run.send_signal(number)
    _, complaint = run.communicate(timeout=60)
    killed = number == signal.SIGKILL
    assert run.returncode == (-number if killed else 128 + number)
    assert complaint.count(b"\n") == (0 if killed else 1)
    [file] = output.glob("*.json")
    assert file.name == ("bbox.unfinished.json" if killed else "bbox.json")
    images = {row["image_id"] for row in json.loads(file.read_text())}
    assert len(list(output.glob("*.jpg"))) - 1 <= len(images) < 500


def test_a_disk_that_becomes_full_keeps_the_results(tmp_path):
    """As a limit of the size of files, which the system answers like a full disk."""
    file, row = ResultsFile(tmp_path / "bbox.json"), {"file_name": "x" * 300}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        file.add([row, row])
        for _ in range(2):
            with pytest.raises(OutputError, match=r"bbox\.json"):
                file.add([row, row])
            assert json.loads((tmp_path / "bbox.json").read_text()) == [row, row]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    file.add([row])
    file.close()
    assert json.loads((tmp_path / "bbox.json").read_text()) == [row] * 3


def test_a_pipe_in_the_place_of_the_results_is_refused(bundle, tmp_path, capsys):
    folder, output = photos(tmp_path / "photos", [b"a.jpg"]), tmp_path / "out"
    output.mkdir()
    os.mkfifo(output / "bbox.json")
    assert infer.main(command(bundle, folder, output)[2:]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_limits_of_the_process(bundle, tmp_path):
    """Each ends in one line, or the command does its work."""
    folder = photos(tmp_path / "photos", [b"a.jpg"])

    def run(before: str, name: str) -> subprocess.CompletedProcess:
        words = ["sh", "-c", f'{before}; exec "$@"', "sh", *command(bundle, folder, tmp_path / name)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    done = run("ulimit -v 300000", "memory")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "memory" in done.stderr
    assert run("ulimit -n 16", "files").returncode == 0
    (tmp_path / "gone").mkdir()
    assert run(f"cd {tmp_path}/gone; rmdir {tmp_path}/gone", "folder").returncode == 0
    shutil.rmtree(tmp_path / "folder")


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", ["mkdir gone; cd gone; rmdir ../gone", "ulimit -v 1000000", "export HOME=/proc/none"]
)
def test_limits_of_the_process_where_paddle_is_imported(tmp_path, before):
    from small_config import write_config

    from ppfcos.data.shapes import generate

    generate(tmp_path / "shapes", train=2, val=2, size=96)
    config = write_config(tmp_path / "small.yml", ROOT, tmp_path / "shapes", tmp_path / "run")
    words = [sys.executable, ROOT / "tools" / "train.py", "-c", config, "-o", "epoch=1"]
    done = subprocess.run(
        ["sh", "-c", f'{before}; exec "$@"', "sh", *map(str, words)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    if "HOME" in before:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
