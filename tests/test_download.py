"""The download against a server that breaks off, lies about lengths, and serves hostile archives."""

from __future__ import annotations

import hashlib
import http.server
import io
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppfcos.data import download
from ppfcos.data.download import Archive
from ppfcos.errors import DataError, OutputError


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path, and behaves as badly as its attributes say."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.breaks_off_after = None  # bytes of each answer; None: never
        self.claims = None  # a Content-Length that is not true
        self.knows_ranges = True
        self.status = None  # an error to answer with
        self.requests = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        first = int(wanted[len("bytes=") : -1]) if wanted and server.knows_ranges else 0
        if server.status or first >= len(server.content) > 0:
            return self.send_error(server.status or 416)
        body = server.content[first:]
        self.send_response(206 if first else 200)
        if first:
            self.send_header(
                "Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_header("Content-Length", str(server.claims or len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks_off_after])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def archive_of(content: bytes, **contents) -> Archive:
    return Archive("val", "zips/val.zip", len(content), hashlib.md5(content).hexdigest(), **contents)


CONTENT = zip_of(val__a=bytes(range(256)) * 40, val__b=b"second")
VAL = archive_of(CONTENT, counts=(("val", 2),))


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_downloads_unpacks_and_then_leaves_alone(server, tmp_path):
    server.content = CONTENT
    download.fetch(tmp_path, [VAL], server.address, pause=0)
    assert names_in(tmp_path) == ["val/a", "val/b"]
    assert (tmp_path / "val/a").read_bytes() == bytes(range(256)) * 40
    assert server.requests == [("/zips/val.zip", None)]
    download.fetch(tmp_path, [VAL], server.address + "/", pause=0)
    assert len(server.requests) == 1


def test_keeps_the_archive_if_asked_to(server, tmp_path):
    server.content = CONTENT
    download.fetch(tmp_path, [VAL], server.address, keep_archives=True, pause=0)
    assert (tmp_path / "val.zip").read_bytes() == CONTENT


def test_resumes_where_the_server_broke_off(server, tmp_path):
    server.content, server.breaks_off_after = CONTENT, 100
    download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    continued = [f"bytes={first}-" for first in range(100, len(CONTENT), 100)]
    assert [wanted for _, wanted in server.requests] == [None, *continued]
    assert names_in(tmp_path) == ["x.zip"]


def test_resumes_what_an_earlier_run_left(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "x.zip.part").write_bytes(CONTENT[:100])
    download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert server.requests == [("/", "bytes=100-")]


@pytest.mark.parametrize("left", [b"short", b"x" * (len(CONTENT) + 5)], ids=["shorter", "longer"])
def test_starts_anew_where_the_server_knows_no_ranges(server, tmp_path, left):
    server.content, server.knows_ranges = CONTENT, False
    (tmp_path / "x.zip.part").write_bytes(left)
    download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_what_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "x.zip.part").write_bytes(b"x" * (len(CONTENT) + 5))
    download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_another_beginning_is_found_out_by_the_sum(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "x.zip.part").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="MD5"):
        download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert names_in(tmp_path) == []
    download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert names_in(tmp_path) == ["x.zip"]


def test_gives_up_on_a_server_that_brings_nothing_new(server, tmp_path):
    server.content, server.breaks_off_after = CONTENT, 0
    with pytest.raises(DataError, match=f"0 of {len(CONTENT)} bytes"):
        download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert len(server.requests) == 6


def test_a_length_that_is_not_the_files(server, tmp_path):
    server.content, server.claims = CONTENT, len(CONTENT) + 7
    with pytest.raises(DataError, match=f"{len(CONTENT) + 7} bytes, but the right file has {len(CONTENT)}"):
        download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("lie", [-7, 7], ids=["too short", "too long"])
def test_a_lie_about_the_length_of_an_unknown_file(server, tmp_path, lie):
    server.content, server.claims = CONTENT, len(CONTENT) + lie
    server.knows_ranges = False
    with pytest.raises(DataError):
        download.download(server.address, tmp_path / "x.zip", pause=0)
    assert not (tmp_path / "x.zip").exists()


def test_damage_is_found_without_a_sum(server, tmp_path):
    server.content = CONTENT[:60] + b"\0\0\0\0" + CONTENT[64:]
    with pytest.raises(DataError, match="damaged"):
        download.download(server.address, tmp_path / "x.zip", pause=0)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 6)])
def test_a_server_that_refuses(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(DataError, match=server.address):
        download.download(server.address, tmp_path / "x.zip", VAL.size, VAL.md5, pause=0)
    assert len(server.requests) == requests


def test_no_server_at_all(tmp_path):
    with pytest.raises(DataError, match="refused"):
        download.download("http://127.0.0.1:9/x.zip", tmp_path / "x.zip", pause=0)
    with pytest.raises(DataError, match="http://"):
        download.fetch(tmp_path, [VAL], "file:///etc", pause=0)


def test_a_part_that_is_incomplete_is_unpacked_again(server, tmp_path):
    server.content = CONTENT
    download.fetch(tmp_path, [VAL], server.address, keep_archives=True, pause=0)
    (tmp_path / "val/b").unlink()
    (tmp_path / "val/a").write_bytes(b"half")
    download.fetch(tmp_path, [VAL], server.address, pause=0)
    assert len((tmp_path / "val/a").read_bytes()) == 256 * 40
    assert (tmp_path / "val/b").read_bytes() == b"second"
    assert len(server.requests) == 1  # the archive was still there


def test_an_archive_of_something_else(server, tmp_path):
    server.content = CONTENT
    with pytest.raises(DataError, match="3 files in val"):
        download.fetch(tmp_path, [archive_of(CONTENT, counts=(("val", 3),))], server.address, pause=0)


@pytest.mark.parametrize(
    "name", ["../evil", "val/../../evil", "/evil", "..\\evil", "C:/evil"], ids=lambda name: repr(name)
)
def test_no_path_leaves_the_folder(server, tmp_path, name):
    server.content = zip_of(**{"val/first": b"1", name: b"evil"})
    folder = tmp_path / "deep" / "folder"
    with pytest.raises(DataError, match="outside its folder"):
        download.fetch(folder, [archive_of(server.content, files=("val/first",))], server.address, pause=0)
    assert names_in(tmp_path) == ["deep/folder/val.zip"]


def test_of_an_archive_one_folder_is_wanted(server, tmp_path):
    server.content = zip_of(**{"top/in/a/1": b"1", "top/in/2": b"2", "top/inner/3": b"3", "4": b"4"})
    archive = Archive("x", "x.zip", files=("2",), counts=(("a", 1),), inside="top/in")
    download.fetch(tmp_path, [archive], server.address, pause=0)
    assert names_in(tmp_path) == ["2", "a/1"]
    server.content = zip_of(**{"top/in/2": b"2", "../evil": b"evil"})
    with pytest.raises(DataError, match="outside its folder"):
        download.fetch(tmp_path / "other", [archive], server.address, pause=0)
    assert not (tmp_path / "evil").exists()


def test_progress_is_shown(server, tmp_path, capsys):
    server.content = zip_of(**{"val/a": np.random.default_rng(0).bytes(12 << 20), "val/b": b"2"})
    download.fetch(tmp_path, [archive_of(server.content, counts=(("val", 2),))], server.address, pause=0)
    shown = capsys.readouterr().err.splitlines()
    for step in ("val.zip: ", "checking val.zip: ", "unpacking val.zip: "):
        shares = [int(line.split(": ")[1].split(" %")[0]) for line in shown if line.startswith(step)]
        assert shares == sorted(shares) and shares[-1] >= 99, f"{step}{shares}"
    assert len([line for line in shown if line.startswith("val.zip: ")]) == 10


def test_bccd_from_a_mirror(server, tmp_path, bccd, root):
    """The real files, packed as GitHub packs them, and a server that breaks off and does not say how long."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("BCCD_Dataset-master/README.md", "more than is wanted")
        for path in sorted(path for path in bccd.rglob("*") if path.is_file() and path.name != "LICENSE"):
            archive.write(path, f"BCCD_Dataset-master/BCCD/{path.relative_to(bccd)}")
    server.content, server.breaks_off_after = buffer.getvalue(), 3_000_000
    script = [sys.executable, "-I", "-S", str(root / "dataset/bccd/download_bccd.py")]
    command = [*script, "--output", str(tmp_path), "--mirror", server.address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "complete in" in ended.stdout
    assert server.requests[0] == ("/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip", None)
    assert len(server.requests) > 2, "it went on where the server had broken off"
    for folder in ("Annotations", "JPEGImages", "ImageSets"):
        assert names_in(tmp_path / folder) == names_in(bccd / folder)
    name = "Annotations/BloodImage_00338.xml"
    assert (tmp_path / name).read_bytes() == (bccd / name).read_bytes()
    assert not list(tmp_path.glob("*.zip*"))


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("val")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match="link"):
        download.unpack(tmp_path / "x.zip", tmp_path / "out")
    assert names_in(tmp_path) == ["x.zip"]


def test_a_damaged_archive_leaves_no_damaged_file(tmp_path):
    content = bytearray(zip_of(val__a=bytes(range(256)) * 40))
    content[60:64] = b"\0\0\0\0"
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    assert names_in(tmp_path) == ["x.zip"]


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(CONTENT)
    usage = download.shutil._ntuple_diskusage(100, 99, 1)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="disk"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    assert names_in(tmp_path) == ["x.zip"]


def test_the_command_needs_nothing_but_python(server, tmp_path, root):
    """-I -S: no environment, no site-packages."""
    server.content = CONTENT
    command = [
        sys.executable,
        "-I",
        "-S",
        str(root / "dataset/coco/download_coco.py"),
        "--output",
        str(tmp_path),
    ]
    ended = subprocess.run(
        [*command, "--only", "val", "--mirror", server.address], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ") and "815585330" in line  # ours is not COCO's file
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}2017.json").write_text("{}")
    ended = subprocess.run([*command, "--only", "annotations"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "already in" in ended.stdout
