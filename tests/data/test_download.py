"""Downloads from servers with broken connections, wrong lengths and hostile archives."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppfcos.data import archives
from ppfcos.data.archives import Archive
from ppfcos.download import Limits, download
from ppfcos.errors import DataError, OutputError, WeightsError


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path; attributes make it fail."""

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


def fetch(folder, wanted, server: str, **options) -> None:
    archives.fetch(folder, wanted, server, pause=0, **options)


def download_zip(url, target, size=None, md5=None, limits=None) -> None:
    """As `archives.fetch` downloads."""
    check = None if md5 else archives.fault_in_zip
    download(url, target, size, md5, 0, check=check, limits=limits)


CONTENT = zip_of(val__a=bytes(range(256)) * 40, val__b=b"second")
VAL = archive_of(CONTENT, counts=(("val", 2),))


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_download_unpack_and_skip(server, tmp_path):
    server.content = CONTENT
    fetch(tmp_path, [VAL], server.address)
    assert names_in(tmp_path) == ["val/a", "val/b"]
    assert (tmp_path / "val/a").read_bytes() == bytes(range(256)) * 40
    assert server.requests == [("/zips/val.zip", None)]
    fetch(tmp_path, [VAL], server.address + "/")
    assert len(server.requests) == 1


def test_resumes_a_broken_connection(server, tmp_path):
    server.content, server.breaks_off_after = CONTENT, 100
    download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    continued = [f"bytes={first}-" for first in range(100, len(CONTENT), 100)]
    assert [wanted for _, wanted in server.requests] == [None, *continued]
    assert names_in(tmp_path) == ["x.zip"]


def test_resumes_the_part_of_an_earlier_run(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "x.zip.part").write_bytes(CONTENT[:100])
    download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert server.requests == [("/", "bytes=100-")]


@pytest.mark.parametrize(
    ("left", "knows_ranges"), [(b"short", False), (b"x" * 9999, False), (b"x" * 9999, True)]
)
def test_starts_again_without_ranges_or_after_too_many_bytes(server, tmp_path, left, knows_ranges):
    server.content, server.knows_ranges = CONTENT, knows_ranges
    (tmp_path / "x.zip.part").write_bytes(left)
    download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_a_wrong_part_is_detected_by_the_md5_sum(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "x.zip.part").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="MD5"):
        download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert names_in(tmp_path) == []
    download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert names_in(tmp_path) == ["x.zip"]


def test_fails_without_progress(server, tmp_path):
    server.content, server.breaks_off_after = CONTENT, 0
    with pytest.raises(DataError, match=f"0 of {len(CONTENT)} bytes"):
        download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert len(server.requests) == 6


def test_another_length_than_the_known_one(server, tmp_path):
    server.content, server.claims = CONTENT, len(CONTENT) + 7
    with pytest.raises(DataError, match=f"{len(CONTENT) + 7} bytes, but the right file has {len(CONTENT)}"):
        download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert not (tmp_path / "x.zip").exists()


def test_damage_is_detected_without_a_sum(server, tmp_path):
    server.content = CONTENT[:60] + b"\0\0\0\0" + CONTENT[64:]
    with pytest.raises(DataError, match="damaged"):
        download_zip(server.address, tmp_path / "x.zip")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 6)])
def test_error_statuses(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(DataError, match=server.address):
        download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert len(server.requests) == requests


def test_no_server(tmp_path):
    with pytest.raises(DataError, match="refused"):
        download_zip("http://127.0.0.1:9/x.zip", tmp_path / "x.zip")
    with pytest.raises(DataError, match="http://"):
        fetch(tmp_path, [VAL], "file:///etc")


def test_an_incomplete_folder_is_unpacked_again(server, tmp_path):
    server.content = CONTENT
    fetch(tmp_path, [VAL], server.address, keep_archives=True)
    (tmp_path / "val/b").unlink()
    (tmp_path / "val/a").write_bytes(b"half")
    fetch(tmp_path, [VAL], server.address)
    assert len((tmp_path / "val/a").read_bytes()) == 256 * 40
    assert (tmp_path / "val/b").read_bytes() == b"second"
    assert len(server.requests) == 1  # the archive was still there


def test_an_archive_without_the_expected_files(server, tmp_path):
    server.content = CONTENT
    with pytest.raises(DataError, match="3 files in val"):
        fetch(tmp_path, [archive_of(CONTENT, counts=(("val", 3),))], server.address)


def test_one_folder_of_an_archive_is_unpacked(server, tmp_path):
    server.content = zip_of(**{"top/in/a/1": b"1", "top/in/2": b"2", "top/inner/3": b"3", "4": b"4"})
    archive = Archive("x", "x.zip", files=("2",), counts=(("a", 1),), inside="top/in")
    fetch(tmp_path, [archive], server.address)
    assert names_in(tmp_path) == ["2", "a/1"]
    server.content = zip_of(**{"top/in/2": b"2", "../evil": b"evil"})
    with pytest.raises(DataError, match="outside its folder"):
        fetch(tmp_path / "other", [archive], server.address)
    assert not (tmp_path / "evil").exists()


def test_progress_is_shown(server, tmp_path, capsys):
    server.content = zip_of(**{"val/a": np.random.default_rng(0).bytes(4 << 20), "val/b": b"2"})
    fetch(tmp_path, [archive_of(server.content, counts=(("val", 2),))], server.address)
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
        for folder, count in dict(archives.BCCD.counts).items():
            files = sorted((bccd / folder).iterdir())
            for number in range(count):  # the set has more images than the fixture: repeat them
                source = files[number % len(files)]
                name = source.name if number < len(files) else f"copy{number}{source.suffix}"
                archive.write(source, f"BCCD_Dataset-master/BCCD/{folder}/{name}")
        for name in archives.BCCD.files:
            archive.writestr(f"BCCD_Dataset-master/BCCD/{name}", "BloodImage_00338\n")
        packed = {name for name in archive.namelist() if "/BCCD/" in name}
    server.content, server.breaks_off_after = buffer.getvalue(), len(buffer.getvalue()) // 3
    script = [sys.executable, "-I", "-S", str(root / "dataset/bccd/download_bccd.py")]
    command = [*script, "--output", str(tmp_path), "--mirror", server.address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "complete in" in ended.stdout
    assert server.requests[0] == ("/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip", None)
    assert len(server.requests) > 2, "it went on where the server had broken off"
    unpacked = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert unpacked == {name.removeprefix("BCCD_Dataset-master/BCCD/") for name in packed}
    name = "Annotations/BloodImage_00338.xml"
    assert (tmp_path / name).read_bytes() == (bccd / name).read_bytes()
    assert not list(tmp_path.glob("*.zip*"))


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(CONTENT)
    usage = shutil._ntuple_diskusage(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="disk"):
        archives.unpack(tmp_path / "x.zip", tmp_path)
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


# Hostile servers


class Hostile:
    """A server that answers with whatever bytes a function gives.

    Args:
        answer: takes the number of the request, from 0, and the Range that it asks for, or None; returns an
            iterable of bytes to send, floats to wait, and None to reset the connection.
    """

    def __init__(self, answer, context=None):
        self.answer, self.context, self.requests = answer, context, []
        self.sent = 0
        self.ended = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=[connection], daemon=True))
            self.threads[-1].start()

    def serve(self, connection):
        try:
            with connection, self.wrapped(connection) as connection:
                connection.settimeout(0.2)
                head = b""
                while b"\r\n\r\n" not in head:
                    received = connection.recv(65536)
                    if not received:
                        return
                    head += received
                wanted = [
                    line[13:].decode() for line in head.split(b"\r\n") if line.startswith(b"Range: bytes=")
                ]
                number = len(self.requests)
                self.requests.append((head.split()[1].decode(), wanted[0] if wanted else None))
                for part in self.answer(number, int(wanted[0][:-1]) if wanted else None):
                    if self.ended.is_set():
                        return
                    if part is None:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        return
                    if isinstance(part, float):
                        self.ended.wait(part)
                    else:
                        connection.sendall(part)
                        self.sent += len(part)
        except OSError:
            pass

    def wrapped(self, connection):
        return self.context.wrap_socket(connection, server_side=True) if self.context else connection.dup()

    def close(self):
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def hostile():
    servers = []

    def start(answer, **arguments):
        servers.append(Hostile(answer, **arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


OK = b"HTTP/1.1 200 OK\r\n"
MAX_SIZE = 100_000
FAST = Limits(max_size=MAX_SIZE, timeout=0.05, attempts=2)


def forever(*parts):
    while True:
        yield from parts


def with_head(head, body):
    yield OK + head + b"\r\n"
    yield from body


def redirect(location, body=()):
    yield b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n\r\n"
    yield from body


def ranged(header, body=b"x" * 10):
    """A body that breaks off, and then this Content-Range."""

    def answer(_, offset):
        if offset is None:
            return with_head(b"Content-Length: 500\r\n", [b"x" * 100])
        return [b"HTTP/1.1 206 Partial Content\r\n" + header + b"\r\n", body]

    return answer


def chunked(*body):
    return lambda *_: with_head(b"Transfer-Encoding: chunked\r\n", body)


def broken_within(length):
    def answer(_, offset):
        rest = CONTENT[offset or 0 :]
        span = f"Content-Range: bytes {offset}-{len(CONTENT) - 1}/{len(CONTENT)}\r\n" if offset else ""
        yield b"HTTP/1.1 %d OK\r\n%sContent-Length: %d\r\n\r\n" % (
            206 if offset else 200,
            span.encode(),
            len(rest),
        )
        yield rest[:length]
        yield 0.02  # what arrived before a reset is lost otherwise: in the client's system
        yield None

    return answer


ZEROS = b"\0" * 65536
ANSWERS = {
    "no length, endless": lambda *_: with_head(b"", forever(ZEROS)),
    "chunked, endless": lambda *_: with_head(
        b"Transfer-Encoding: chunked\r\n", forever(b"10000\r\n" + ZEROS + b"\r\n")
    ),
    "a huge length": lambda *_: with_head(b"Content-Length: 99999999999999\r\n", forever(ZEROS)),
    "a length of 5000 digits": lambda *_: with_head(
        b"Content-Length: " + b"9" * 5000 + b"\r\n", forever(ZEROS)
    ),
    "a superscript as length": lambda *_: with_head(
        "Content-Length: ²\r\n".encode("latin-1"), forever(ZEROS)
    ),
    "a negative length": lambda *_: with_head(b"Content-Length: -1\r\n", forever(ZEROS)),
    "a signed length": lambda *_: with_head(b"Content-Length: +5\r\n", [b"12345"]),
    "an underscore in the length": lambda *_: with_head(b"Content-Length: 1_0\r\n", [b"1234567890"]),
    "no number as length": lambda *_: with_head(b"Content-Length: many\r\n", forever(ZEROS)),
    "an empty length": lambda *_: with_head(b"Content-Length:\r\n", forever(ZEROS)),
    "two lengths": lambda *_: with_head(b"Content-Length: 5\r\nContent-Length: 6\r\n", [b"123456"]),
    "length 0": lambda *_: with_head(b"Content-Length: 0\r\n", []),
    "shorter than its length": lambda *_: with_head(b"Content-Length: 50\r\n", [b"x"]),
    "gzip": lambda *_: with_head(b"Content-Encoding: gzip\r\nContent-Length: 5\r\n", [b"12345"]),
    "chunks: no size": chunked(b"zz\r\n12345\r\n0\r\n\r\n"),
    "chunks: negative size": chunked(b"-5\r\n12345\r\n0\r\n\r\n"),
    "chunks: cut": chunked(b"10\r\n12345"),
    "chunks: endless size": chunked(*[b"1" * 65536] * 100),
    "chunks: endless trailers": lambda *_: with_head(
        b"Transfer-Encoding: chunked\r\n", forever(b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 8000)
    ),
    "1 byte a moment": lambda *_: with_head(b"Content-Length: 500\r\n", forever(b"x", 0.02)),
    "1 byte of the head a moment": lambda *_: forever(b"H", 0.02),
    "1 byte of a header a moment": lambda *_: with_head(b"x: ", forever(b"y", 0.02)),
    "1 digit of a chunk a moment": chunked(*[b"1", 0.02] * 100),
    "1 byte a connection": lambda _, offset: (
        [b"HTTP/1.1 206 x\r\nContent-Range: bytes %d-99999/100000\r\n\r\nx" % offset, 0.05]
        if offset
        else with_head(b"Content-Length: 100000\r\n", [b"x", 0.05])
    ),
    "accepts, and never answers": lambda *_: [30.0],
    "100 continue, endless": lambda *_: forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless headers": lambda *_: with_head(b"", forever(b"a: b\r\n" * 1000)),
    "an endless header": lambda *_: with_head(b"a: ", forever(ZEROS)),
    "no HTTP": lambda *_: [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "status 99999": lambda *_: [b"HTTP/1.1 99999 x\r\n\r\n"],
    "status ²": lambda *_: ["HTTP/1.1 ² x\r\n\r\n".encode("latin-1")],
    "a reason with escapes": lambda *_: [b"HTTP/1.1 404 \x1b[2J\r\x07\r\n\r\n"],
    "204": lambda *_: [b"HTTP/1.1 204 x\r\n\r\n"],
    "206 to no range": lambda *_: [b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-4/5\r\n\r\n12345"],
    "101": lambda *_: [b"HTTP/1.1 101 x\r\n\r\n"],
    "closes": lambda *_: [],
    "resets": lambda *_: [None],
    "416 to all": lambda *_: [b"HTTP/1.1 416 x\r\n\r\n"],
    "416 to every range": lambda _, offset: (
        [b"HTTP/1.1 416 x\r\n\r\n"] if offset else with_head(b"Content-Length: 500\r\n", [b"x" * 100])
    ),
    "range: none": ranged(b"Content-Length: 10\r\n"),
    "range: no numbers": ranged("Content-Range: bytes ²-³/⁴\r\n".encode()),
    "range: another": ranged(b"Content-Range: bytes 0-499/500\r\n"),
    "range: too far": ranged(b"Content-Range: bytes 200-499/500\r\n"),
    "range: backwards": ranged(b"Content-Range: bytes 100-50/500\r\n"),
    "range: beyond": ranged(b"Content-Range: bytes 100-600/500\r\n"),
    "range: huge": ranged(b"Content-Range: bytes 100-%s/500\r\n" % (b"9" * 5000)),
    "range: of another length": ranged(b"Content-Range: bytes 100-499/500\r\nContent-Length: 10\r\n"),
    "range: endless": ranged(b"Content-Range: bytes 100-499/*\r\n", ZEROS * 100),
    "to http://[": lambda *_: redirect(b"http://["),
    "to file://": lambda *_: redirect(b"file:///etc/passwd"),
    "to ftp://": lambda *_: redirect(b"ftp://127.0.0.1/x"),
    "to data:": lambda *_: redirect(b"data:text/plain,x"),
    "to port 99999": lambda *_: redirect(b"http://127.0.0.1:99999/"),
    "to no host": lambda *_: redirect(b"http:///x"),
    "to bytes": lambda *_: redirect(b"http://\xff\x00\x1b[2J/"),
    "to a user": lambda *_: redirect(b"http://a:b@127.0.0.1/"),
    "to nowhere": lambda *_: redirect(b""),
    "to itself": lambda *_: redirect(b"/"),
    "to more and more": lambda number, _: redirect(b"/%d" % number),
    "with an endless body": lambda *_: redirect(b"/", forever(ZEROS)),
}


def refusal(error, call, *arguments, **options):
    """The message of an error, which is one line and comes within seconds."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("name", ANSWERS)
def test_every_hostile_answer_is_one_line_within_seconds(hostile, tmp_path, name, is_known):
    server = hostile(ANSWERS[name])
    size_and_sum = (VAL.size, VAL.md5) if is_known else (None, None)
    url = server.address + "/x.zip"
    message = refusal(DataError, download_zip, url, tmp_path / "x.zip", *size_and_sum, limits=FAST)
    assert url in message
    left = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(left) <= ({"x.zip.part"} if is_known else set())
    assert all(0 < size <= VAL.size for size in left.values())
    assert server.sent < 20_000_000 * max(1, len(server.requests))  # what the system buffers


@pytest.mark.parametrize(
    "head",
    [
        f"Content-Length: +{len(CONTENT)}",
        f"Content-Length: 0_{len(CONTENT)}",
        f"Content-Length: {len(CONTENT)}\r\nContent-Length: {len(CONTENT) + 1}",
        f"Content-Length: {len(CONTENT)}\r\nContent-Encoding: gzip",
    ],
)
def test_invalid_headers_are_refused(hostile, tmp_path, head):
    server = hostile(lambda *_: with_head(head.encode() + b"\r\n", [CONTENT]))
    refusal(DataError, download_zip, server.address, tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())


def test_a_reset_within_each_block_makes_progress(hostile, tmp_path):
    server = hostile(broken_within(100))
    download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert len(server.requests) >= len(CONTENT) / 100


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
def test_after_a_wrong_range_the_whole_file_is_requested(hostile, tmp_path, is_known):
    whole = b"Content-Length: %d\r\n" % len(CONTENT)
    bad = ranged(b"Content-Range: bytes 0-499/500\r\n")
    server = hostile(
        lambda number, offset: (
            bad(number, offset) if offset else with_head(whole, [CONTENT[: 100 if number == 0 else None]])
        )
    )
    size_and_sum = (VAL.size, VAL.md5) if is_known else (None, None)
    download_zip(server.address, tmp_path / "x.zip", *size_and_sum)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_redirects_are_followed(hostile, server, tmp_path):
    server.content = CONTENT
    first = hostile(lambda number, _: redirect(b"/a b" if number == 0 else server.address.encode() + b"/x"))
    download_zip(first.address + "/ä", tmp_path / "x.zip", VAL.size, VAL.md5)
    assert [path for path, _ in first.requests] == ["/%C3%A4", "/a%20b"]
    assert server.requests == [("/x", None)]


def test_a_whole_download_takes_a_limited_time(hostile, tmp_path):
    server = hostile(lambda *_: with_head(b"Content-Length: 99999\r\n", forever(b"x" * 1000, 0.02)))
    limits = Limits(seconds=0.5)
    message = refusal(DataError, download_zip, server.address, tmp_path / "x", limits=limits)
    assert "0.5 s" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "x", "", "//127.0.0.1/", "http://"),
        *("http://[", "http://h:99999/", "http://a:b@127.0.0.1/", "http://127.0.0.1:9/\ud800", "http://\0/"),
        *("http://a..b/", "http://127.0.0.1:9/a\nb"),
    ],
    ids=ascii,
)
def test_invalid_addresses(tmp_path, url):
    refusal(DataError, download_zip, url, tmp_path / "x", limits=FAST)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a self-signed certificate for 127.0.0.1 and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    paths = [str(tmp_path_factory.mktemp("certificate") / name) for name in ("certificate.pem", "key.pem")]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-out", paths[0], "-keyout", paths[1]]
    subprocess.run(command, capture_output=True, check=True)
    return paths


def over_tls(hostile, certificate, answer):
    """A server that knows TLS, and its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = hostile(answer, context=context)
    return server, server.address.replace("http:", "https:") + "/x.zip"


def test_certificates_are_verified(hostile, tmp_path, certificate, monkeypatch):
    whole = b"Content-Length: %d\r\n" % len(CONTENT)
    server, url = over_tls(hostile, certificate, lambda *_: with_head(whole, [CONTENT]))
    arguments = url, tmp_path / "x.zip", VAL.size, VAL.md5
    assert "certificate" in refusal(DataError, download_zip, *arguments)
    assert not server.requests
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    download_zip(*arguments)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["1 byte a moment", "1 byte of the head a moment", "no length, endless"])
def test_hostile_answers_over_tls(hostile, tmp_path, certificate, monkeypatch, name):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    _, url = over_tls(hostile, certificate, ANSWERS[name])
    limits = FAST._replace(timeout=0.3)
    assert "certificate" not in refusal(DataError, download_zip, url, tmp_path / "x", limits=limits)
    assert not list(tmp_path.iterdir())


def test_no_redirect_leaves_tls(hostile, server, tmp_path, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    server.content = CONTENT
    _, url = over_tls(hostile, certificate, lambda *_: redirect(server.address.encode()))
    assert "from https://" in refusal(DataError, download_zip, url, tmp_path / "x")
    assert not server.requests


def test_a_server_without_tls(hostile, tmp_path):
    server = hostile(lambda *_: [])  # waits for the head of a request, which never comes
    url = server.address.replace("http:", "https:")
    refusal(DataError, download_zip, url, tmp_path / "x.zip", limits=FAST)


# What is at a file's name


def make_fifo(path):
    os.mkfifo(path)


def make_link(path):
    path.with_name("elsewhere").write_bytes(b"precious")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("name", ["x.zip", "x.zip.part"])
@pytest.mark.parametrize("make", [make_fifo, make_link, Path.mkdir], ids=["pipe", "link", "folder"])
def test_only_a_regular_file_is_written_to(server, tmp_path, name, make):
    server.content = CONTENT
    make(tmp_path / name)
    if make is make_link and name == "x.zip":  # replaced, and not followed
        download_zip(server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
        assert (tmp_path / "x.zip").read_bytes() == CONTENT and not (tmp_path / "x.zip").is_symlink()
    else:
        message = refusal(OutputError, download_zip, server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
        assert str(tmp_path / name) in message
        assert (tmp_path / name).lstat().st_size != VAL.size
    if make is make_link:
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_two_downloads_of_a_file_are_kept_apart(hostile, tmp_path):
    server = hostile(
        lambda *_: with_head(b"Content-Length: %d\r\n" % VAL.size, [CONTENT[:50], 0.6, CONTENT[50:]])
    )
    arguments = (server.address, tmp_path / "x.zip", VAL.size, VAL.md5)
    first = threading.Thread(target=download_zip, args=arguments)
    first.start()
    while not server.requests:
        time.sleep(0.01)
    assert "another process" in refusal(DataError, download_zip, *arguments)
    download_zip(*arguments, limits=Limits(seconds=5))  # waits, and finds it complete
    first.join()
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert len(server.requests) == 1


# Hostile archives


def patched(content: bytes, **fields) -> bytes:
    """A zip file of one file with other values in its central directory."""
    places = {"flags": (8, 2), "method": (10, 2), "size": (24, 4), "attributes": (38, 4)}
    content, start = bytearray(content), content.index(b"PK\1\2")
    for name, value in fields.items():
        place, length = places[name]
        content[start + place : start + place + length] = value.to_bytes(length, "little")
        if name in ("flags", "method"):  # also in the file's own header
            content[place - 2 : place - 2 + length] = value.to_bytes(length, "little")
    return bytes(content)


def zip_with(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a", bytes(range(256)) * 8)
    return buffer.getvalue()


def zip_of_names(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"" if name.endswith("/") else b"x")
    return buffer.getvalue()


def overlapping(count: int) -> bytes:
    """Many files that are the same bytes."""
    content = zip_of(a=b"\0" * 1_000_000)
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[start:end]
    entries = b"".join(entry[:-1] + bytes([65 + number]) for number in range(count))
    tail = bytearray(content[end:])
    tail[8:10] = tail[10:12] = count.to_bytes(2, "little")
    tail[12:16] = len(entries).to_bytes(4, "little")
    return content[:start] + entries + bytes(tail)


LZMA = zip_with(zipfile.ZIP_LZMA)
ONE = zip_of(a=bytes(range(256)) * 8)
ARCHIVES = {
    "empty file": b"",
    "no zip": b"x" * 100,
    "no files": zip_of(),
    "only its end": zip_of()[:10],
    "lzma": LZMA,
    "lzma, broken": LZMA[:40] + b"\xff" * 20 + LZMA[60:],
    "bzip2": zip_with(zipfile.ZIP_BZIP2),
    "method 99": patched(ONE, method=99),
    "encrypted": patched(ONE, flags=1),
    "a name that is not UTF-8": zip_of_names("\xe4bc").replace("\xe4".encode(), b"\xff\xfe"),
    "declared shorter": patched(ONE, size=5),
    "declared longer": patched(ONE, size=5000),
    "declared huge": patched(ONE, size=2**32 - 2),
    "a bomb": zip_of(a=b"\0" * 30_000_000),
    "overlapping files": overlapping(20),
    "a name twice": zip_of_names("val/a", "val//a"),
    "a file and a folder": zip_of_names("val", "val/a"),
    "a folder and a file": zip_of_names("val/", "val"),
    "damaged": ONE[:60] + b"\0\0\0\0" + ONE[64:],
    "a link": patched(zip_of_names("val"), attributes=0o120777 << 16),
    "absolute": zip_of_names("/val/a"),
    "a drive": zip_of_names("C:/a"),
    "a stream": zip_of_names("val/a:b"),
    "a share": zip_of_names("\\\\server\\share\\a"),
    "above": zip_of_names("val/../../a"),
    "reserved": zip_of_names("val/NUL.txt"),
    "a trailing dot": zip_of_names("val./a"),
    "an escape": zip_of_names("val/\x1b[2J"),
    "a line feed": zip_of_names("val/a\nb"),
    "a long name": zip_of_names("val/" + "a" * 250),
    "a long path": zip_of_names("a/" * 3000 + "b"),
    "too many folders": zip_of_names("a/" * 20 + "b"),
    "11 files": zip_of_names(*"abcdefghijk"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives_leave_nothing(tmp_path, monkeypatch, name):
    content = ARCHIVES[name]
    monkeypatch.setattr(archives, "_MAX_FILES", 10 if name == "11 files" else 100)
    (tmp_path / "x.zip").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    if name == "no files":
        archives.unpack(tmp_path / "x.zip", out)
    else:
        message = refusal(DataError, archives.unpack, tmp_path / "x.zip", out)
        assert str(tmp_path / "x.zip") in message
    assert not list(out.rglob("*"))
    assert names_in(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("name", ["empty file", "lzma, broken", "encrypted", "a bomb", "declared shorter"])
def test_a_hostile_archive_is_not_kept_without_a_sum(server, tmp_path, name):
    server.content = ARCHIVES[name]
    url = server.address + "/x.zip"
    assert url in refusal(DataError, download_zip, url, tmp_path / "x.zip", limits=FAST)
    assert not list(tmp_path.iterdir())


def test_unpacking_replaces_regular_files_only(tmp_path):
    (tmp_path / "x.zip").write_bytes(ONE)
    make_fifo(tmp_path / "a")
    assert str(tmp_path / "a") in refusal(OutputError, archives.unpack, tmp_path / "x.zip", tmp_path)


def test_two_processes_unpack_into_one_folder(tmp_path):
    """Each file is complete, whichever process renames it last."""
    content = {f"val/{number}": bytes([number]) * 50_000 for number in range(60)}
    (tmp_path / "x.zip").write_bytes(zip_of(**content))
    (tmp_path / "out").mkdir()
    program = "import sys; from pathlib import Path; from ppfcos.data.archives import unpack; "
    program += "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", program, str(tmp_path / "x.zip"), str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    found = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out/val").iterdir()
    }
    assert found == content


# Weights


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The module that loads weights, with an empty cache, and without long pauses."""
    from ppfcos.engine import weights

    monkeypatch.setattr("ppdet.utils.download.WEIGHTS_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "DOWNLOAD_LIMITS", weights.DOWNLOAD_LIMITS._replace(timeout=5.0, attempts=1))
    return weights


class Saved:
    """A model with one weight, and its file's content."""

    def __init__(self, tmp_path, value: float):
        import paddle

        self.model = paddle.nn.Linear(2, 1)
        self.model.weight.set_value(paddle.full([2, 1], value))
        paddle.save(self.model.state_dict(), str(tmp_path / "saved.pdparams"))
        self.content = (tmp_path / "saved.pdparams").read_bytes()


def loaded(weights, url: str, load: str = "load_weights") -> float:
    import paddle

    model = paddle.nn.Linear(2, 1)
    getattr(weights, load)(model, url)
    return float(model.weight[0, 0])


LOADS = {"load_weights": "weights", "load_pretrained": "pretrain_weights"}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(
    "name",
    [
        "x.tar",
        "x.ZIP?download=1",
        "x.tgz",
        "x.pdparams",
        "..",
        "%2e%2e%2fx",
        "",
        "?a=../../x",
        "a" * 300,
        "\\x",
    ],
)
def test_weights_are_never_unpacked(server, tmp_path, weights, name, load):
    """A .tar that PaddleDetection would unpack to wherever its names lead."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../evil"))
    server.content = buffer.getvalue()
    url = f"{server.address}/{name}"
    message = refusal(WeightsError, loaded, weights, url, load)
    assert url[:100] in message and "archive" in message and f"-o {LOADS[load]}=FILE" in message
    assert ("from scratch" in message) == (load == "load_pretrained")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"x", b"\x80\x04", b"\x1f\x8b\x08"], ids=["empty", "page", "x", "cut", "gzip"]
)
def test_invalid_weights_are_not_kept(server, tmp_path, weights, content):
    server.content = content
    refusal(WeightsError, loaded, weights, server.address + "/x.pdparams")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["no length, endless", "a huge length", "accepts, and never answers", "to file://"]
)
def test_hostile_servers_of_weights(hostile, tmp_path, weights, monkeypatch, name):
    monkeypatch.setattr(weights, "DOWNLOAD_LIMITS", FAST._replace(attempts=1))
    server = hostile(ANSWERS[name])
    refusal(WeightsError, loaded, weights, server.address + "/x.pdparams")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x.pdparams", "http://[", "s3://a/b", "://"]
)
def test_invalid_addresses_of_weights(weights, url):
    refusal(WeightsError, loaded, weights, url)


def test_equal_file_names_of_two_addresses(server, tmp_path, weights):
    for number in (1, 2):
        server.content = Saved(tmp_path, number).content
        assert loaded(weights, f"{server.address}/{number}/net.pdparams") == number
    for number in (1, 2):  # from the cache
        assert loaded(weights, f"{server.address}/{number}/net.pdparams") == number
    assert len(server.requests) == 2


def test_the_cache_of_paddledetection_is_used(server, tmp_path, weights, caplog):
    (tmp_path / "cache").mkdir()
    for name, value in [("net.pdparams", 1), ("packed", 2)]:
        (tmp_path / "cache" / name).write_bytes(Saved(tmp_path, value).content)
    for start in ("ppdet://models/", "https://paddledet.bj.bcebos.com/models/pretrained/"):
        assert loaded(weights, start + "net.pdparams") == 1
    assert not caplog.messages
    assert loaded(weights, "http://127.0.0.1:9/net.pdparams") == 1  # cannot be reached
    assert "cache/net.pdparams" in caplog.text
    server.content = Saved(tmp_path, 3).content
    assert loaded(weights, server.address + "/net.pdparams") == 3
    assert names_in(tmp_path / "cache")[0] == "net-" + names_in(tmp_path / "cache")[0][4:20] + ".pdparams"


def test_a_cache_that_cannot_be_written(server, tmp_path, weights):
    (tmp_path / "cache").write_text("a file")
    message = refusal(OutputError, loaded, weights, server.address + "/x.pdparams")
    assert str(tmp_path / "cache") in message and "-o weights=FILE" in message
