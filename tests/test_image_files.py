"""Image files made to crash a decoder, or to take its memory or time; and those that must be read."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ppfcos import image_files
from ppfcos.data.images import ImageTooLarge, ImageUnreadable, image_size
from ppfcos.data.images import read_image as read_for_training
from ppfcos.deploy.images import read_image as read_for_deployment
from ppfcos.deploy.sources import open_source
from ppfcos.errors import DataError

MAX_MEGABYTES, MAX_SECONDS = 400, 2  # of a process that reads one file, 130 MB of them before it begins

# Reads each file in a process of its own, by both functions; prints how each ended and what it took.
READ_EACH = """
import json, os, sys, time
from ppfcos.data.images import ImageUnreadable, read_image as training
from ppfcos.deploy.images import read_image as deployment
from ppfcos.errors import DataError

def end_of(read, path):
    try:
        return list(read(path).shape)
    except (ImageUnreadable, DataError) as error:
        return str(error)

for path in sys.argv[1:]:
    ours, theirs = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.write(theirs, json.dumps([end_of(training, path), end_of(deployment, path)]).encode())
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    os.close(theirs)
    print(json.dumps({
        "path": path, "status": status, "seconds": time.perf_counter() - started,
        "megabytes": usage.ru_maxrss / 1024, "ends": json.loads(os.read(ours, 65536) or "[]"),
    }))
"""


def encoded(kind: str, image: np.ndarray | None = None, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    image = np.random.RandomState(0).randint(0, 255, (48, 64, 3), np.uint8) if image is None else image
    Image.fromarray(image).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def resized_jpeg(height: int, width: int, data: bytes = b"") -> bytes:
    """A JPEG whose header says another size."""
    data = data or encoded("JPEG")
    [start] = [found.start() for found in re.finditer(rb"\xff[\xc0\xc2]\x00\x11", data)]
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def with_fill_bytes() -> bytes:
    return resized_jpeg(65500, 65500).replace(b"\xff\xc0\x00\x11", b"\0\0\xff\xff\xff\xc0\x00\x11")


def with_two_headers() -> bytes:
    data, huge = encoded("JPEG"), resized_jpeg(65500, 65500)
    start = huge.index(b"\xff\xc0\x00\x11")
    return data[: data.index(b"\xff\xda")] + huge[start : start + 19] + data[data.index(b"\xff\xda") :]


def many_scans(count: int, side: int) -> bytes:
    data = encoded("JPEG", np.zeros((side, side, 3), np.uint8), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *between: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(min(height * (3 * width + 1), 5000)))
    return b"\x89PNG\r\n\x1a\n" + b"".join((header, *between, chunk(b"IDAT", rows), chunk(b"IEND", b"")))


def png_with_text() -> bytes:
    text = zlib.compress(bytes(7_900_000), 9)
    texts = [chunk(b"zTXt", b"key%d\0\0" % number + text) for number in range(100)]
    return png(8, 8, *texts, chunk(b"iCCP", b"profile\0\0" + text), chunk(b"iTXt", b"k\0\1\0\0\0" + text))


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + bytes(100)


def tiff(order: str = "<", big: bool = False, **changes: int) -> bytes:
    values = {"width": 8, "height": 8, "bits": 8, "compression": 1, "photometric": 1, "samples": 1, **changes}
    names = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "samples": 277,
             "tile_width": 322, "tile_height": 323, "offsets": 273, "counts": 279, "rows": 278,
             "tile": 324, "tile_bytes": 325}  # fmt: skip
    tags = sorted((names[name], value) for name, value in values.items())
    if big:
        entries = b"".join(struct.pack(order + "HHQQ", tag, 16, 1, value) for tag, value in tags)
        head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 16)
        return head + struct.pack(order + "Q", len(tags)) + entries + bytes(8)
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def long_strip() -> bytes:
    """libtiff makes room for the 0.4 GB that the strip is said to have."""
    data = encoded("TIFF", mode="RGBA", compression="tiff_lzw")
    start = data.index(struct.pack("<HHI", 279, 4, 1))
    return data[: start + 8] + struct.pack("<I", 0x19000000) + data[start + 12 :]


def webp(*chunks: bytes) -> bytes:
    inner = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def animation() -> bytes:
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (0, 99)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    return stream.getvalue()


VP8 = encoded("WEBP")[20:]  # a frame without its container, which libwebp takes, too
REFUSED = {
    "jpeg of 500 bytes and 12.9 GB": resized_jpeg(65500, 65500),
    "jpeg of 500 bytes and 0.8 GB": resized_jpeg(16000, 16000),
    "jpeg with fill bytes": with_fill_bytes(),
    "jpeg with two headers": with_two_headers(),
    "jpeg whose height comes later": resized_jpeg(0, 64),
    "jpeg of no width": resized_jpeg(48, 0),
    "jpeg without a frame": b"\xff\xd8\xff\xda\0\2\0\xff\xd9",
    "jpeg of segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 500_000 + b"\xff\xd9",
    "jpeg of stuffing": b"\xff\xd8" + b"\xff\0" * 2_000_000,
    "jpeg with 1000 scans": many_scans(1000, 64),
    "jpeg with 60 large scans": resized_jpeg(9000, 9000, many_scans(60, 64)) + bytes(200_000),
    "jpeg with scans of 200 megapixels": resized_jpeg(14200, 14200, many_scans(0, 64)) + bytes(500_000),
    "jpeg without its end": encoded("JPEG")[:-9],
    "png of 2.7 GB": png(30000, 30000),
    "png of 500 bytes and 0.8 GB": png(16000, 16000),
    "png of chunks": png(8, 8, chunk(b"teST", b"") * 500_000),
    "png with a long chunk": png(8, 8)[:33] + struct.pack(">I4s", 2**31 - 1, b"zTXt"),
    "png without its end": png(8, 8)[:-12],
    "png without a header": b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(13)) + chunk(b"IEND", b""),
    "bmp upside down": bmp(65500, -65500),
    "bmp of the least height": bmp(1, -(2**31)),
    "bmp of 0.8 GB": bmp(16000, 16000),
    "bmp of runs": bmp(65500, 65500, 1),
    "bmp of OS/2": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 65500, 65500, 1, 24) + bytes(50),
    "bmp of negative width": bmp(-5, 5),
    "tiff": tiff(width=65500, height=65500),
    "tiff of tiles": tiff(tile_width=2**20, tile_height=2**20),
    "tiff of samples": tiff(">", width=9000, height=9000, samples=65535, bits=64),
    "tiff of the other order": tiff(">", width=2**31, height=2**31),
    "tiff with a long strip": long_strip(),
    "tiff with a long tile": tiff(compression=5, tile_width=16, tile_height=16, tile=8, tile_bytes=2**32 - 1),
    "big tiff with a long strip": tiff(">", big=True, compression=5, offsets=16, counts=2**63, rows=8),
    "big tiff": tiff(big=True, width=2**40, height=2**40),
    "big tiff whose tags are elsewhere": b"II+\0\x08\0\0\0" + b"\xff" * 99,
    "tiff without tags": b"II*\0\xff\xff\xff\x7f",
    "tiff whose strip is elsewhere": tiff(offsets=2**31, counts=2**31, rows=8),
    "webp of a header": webp(b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2),
    "webp of 68 megapixels": webp(b"VP8L" + struct.pack("<IBI", 9, 0x2F, 8249 + (8249 << 14)) + bytes(5)),
    "webp of 268 megapixels": webp(b"VP8L" + struct.pack("<IBI", 9, 0x2F, 2**28 - 1) + bytes(5)),
    "webp that moves": animation(),
    "webp cut short": encoded("WEBP")[:-30],
    "webp in lower case": encoded("WEBP").replace(b"RIFF", b"riff"),
    "webp without an image": webp(b"ICCP" + struct.pack("<I", 4) + bytes(4)),
    "webp without its container": VP8,
    "webp in half of its container": encoded("WEBP")[12:],
    "webp as pnm": b"P6#" + VP8[3:],
    "webp as bitmap": b"BM\0" + VP8[3:6] + encoded("BMP")[6:],
    "pnm": b"P6 99999999 99999999 255 ",
    "pnm of ten lines": b"P6\n#" + b"#" * 9999 + b"\n4294967295 4294967295\n255\n",
    "pnm of 0.8 GB": b"P3\n16000 16000 255\n0 0 0",
    "pnm of many digits": b"P5 " + b"9" * 5000 + b" 1 255\n0",
    "gif": encoded("GIF"),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touched) (w) file\n",
    "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n",
    "openexr": b"\x76\x2f\x31\x01" + bytes(99),
    "sun raster": b"\x59\xa6\x6a\x95" + bytes(99),
    "portable float map": b"PF\n9 9\n-1\n" + bytes(99),
    "text": b"no image",
    "nothing": b"",
}
READ = {"png with 800 MB of text": png_with_text(), "jpeg with 90 scans": many_scans(90, 600)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, request) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("images")
    for name, content in {**REFUSED, **READ}.items():
        (folder / f"{name.replace('/', '')}.jpg").write_bytes(content)
    with open(folder / "sparse.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(5 << 30)
    os.mkfifo(folder / "pipe.jpg")
    command = [sys.executable, "-c", READ_EACH, *sorted(map(str, folder.iterdir()))]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=100)
    return {Path(each["path"]).stem: each for each in map(json.loads, done.stdout.splitlines())}


def test_hostile_files_take_neither_memory_nor_time(outcomes):
    assert len(outcomes) == len(REFUSED) + len(READ) + 2
    slow = {
        name: (round(each["megabytes"]), round(each["seconds"], 1))
        for name, each in outcomes.items()
        if each["megabytes"] > MAX_MEGABYTES or each["seconds"] > MAX_SECONDS
    }
    assert not slow


def test_hostile_files_are_refused_alike_in_a_line_that_names_them(outcomes):
    for name, each in outcomes.items():
        assert each["status"] == 0, name
        read = [isinstance(end, list) for end in each["ends"]]
        assert read == [name in READ] * 2, (name, each["ends"])
        for end in each["ends"]:
            one_line = name in READ or (len(end.splitlines()) == 1 and len(end) < 400)
            assert one_line and (name in READ or each["path"] in end), end


def good_files() -> dict[str, bytes]:
    rgb, grey = {"mode": "RGB"}, {"mode": "L"}
    apng = io.BytesIO()
    frames = [Image.fromarray(np.full((16, 24, 3), level, np.uint8)) for level in (10, 99)]
    frames[0].save(apng, "PNG", save_all=True, append_images=frames[1:])
    files = {"apng": apng.getvalue()}
    for options in (rgb, grey, {"mode": "CMYK"}):
        for more in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}):
            files[f"jpeg {options} {more}"] = encoded("JPEG", **options, **more)
    files["jpeg followed by others"] = encoded("JPEG") + b"\0 more \xff\xd8"
    files["mpo"] = encoded("JPEG") + encoded("JPEG", progressive=True)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        files[f"png {mode}"] = encoded("PNG", mode=mode, dpi=(72, 72), icc_profile=bytes(2000))
    files["png transparent"] = encoded("PNG", mode="P", transparency=3)
    for mode in ("1", "L", "P", "RGB"):
        files[f"bmp {mode}"] = encoded("BMP", mode=mode)
    for mode in ("L", "RGB", "RGBA"):
        for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
            if (mode, compression) != ("RGBA", "jpeg"):
                files[f"tiff {mode} {compression}"] = encoded("TIFF", mode=mode, compression=compression)
    for kind in ("L", "RGB", "1"):
        files[f"pnm {kind}"] = encoded("PPM", mode=kind)
    files["pnm in text"] = b"P3 # colors\n2 1\n# more\n255\n1 2 3  4 5 6\n"
    for depth in (np.uint16, np.uint8):
        deep = (np.arange(48 * 64 * 3).reshape(48, 64, 3) * 3).astype(depth)
        for suffix in (".png", ".tiff", ".ppm"):
            files[f"{suffix} {depth.__name__}"] = cv2.imencode(suffix, deep)[1].tobytes()
    return files


@pytest.mark.parametrize("name", good_files())
def test_the_pixels_are_opencvs(tmp_path, name):
    content = good_files()[name]
    (tmp_path / "x").write_bytes(content)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read_for_deployment(tmp_path / "x"), expected)
    np.testing.assert_array_equal(read_for_training(tmp_path / "x")[..., ::-1], expected)
    file = image_files.ImageFile(content)
    assert (file.height, file.width) == expected.shape[:2] == image_size(tmp_path / "x")


WEBPS = [{"quality": 80}, {"lossless": True}, {"mode": "RGBA", "lossless": True, "exact": True}]


@pytest.mark.parametrize("options", WEBPS, ids=str)
def test_webp_never_reaches_an_unsafe_opencv(tmp_path, monkeypatch, options):
    content = encoded("WEBP", **options)
    (tmp_path / "x.png").write_bytes(content)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    decode, decoded = cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: decoded.append(1) or decode(*arguments))
    np.testing.assert_allclose(read_for_training(tmp_path / "x.png"), expected, atol=1)
    np.testing.assert_allclose(read_for_deployment(tmp_path / "x.png")[..., ::-1], expected, atol=1)
    safe = tuple(map(int, re.findall(r"\d+", cv2.__version__)[:3])) >= (4, 8, 1)
    assert bool(decoded) == safe
    assert image_files.webp_decoder().split()[0] == ("OpenCV" if safe else "Pillow")


@pytest.mark.parametrize("pillow", [None, "9.5.0"])
def test_webp_is_refused_without_a_safe_decoder(tmp_path, pillow):
    """As in a deployment without Pillow, or with an old one."""
    (tmp_path / "x.webp").write_bytes(encoded("WEBP"))
    program = (
        "import sys, cv2, PIL\n"
        "cv2.__version__ = '4.8.0'\n"
        + ("sys.modules['PIL'] = None\n" if pillow is None else f"PIL.__version__ = '{pillow}'\n")
        + "from ppfcos.deploy.images import read_image, DataError\n"
        "try:\n    read_image(sys.argv[1])\n"
        "except DataError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.webp")]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    [line] = done.stdout.splitlines()
    assert "x.webp" in line and "opencv-python>=4.8.1.78" in line


def test_the_limit_of_pixels_is_one_and_can_be_moved(tmp_path, monkeypatch):
    """A photograph of 108 megapixels is read; the variable lowers the limit for both, and raises it."""
    (tmp_path / "phone.jpg").write_bytes(cv2.imencode(".jpg", np.full((9000, 12000), 77, np.uint8))[1])
    assert read_for_training(tmp_path / "phone.jpg").shape == (9000, 12000, 3)
    for text, limit in {"100000000": 10**8, "90MB": 90 << 20, "9kb": 9 << 10}.items():
        monkeypatch.setenv(image_files.MAX_PIXELS_VARIABLE, text)
        with pytest.raises(ImageTooLarge, match=f"12000x9000 pixels, more than {limit}"):
            read_for_training(tmp_path / "phone.jpg")
        with pytest.raises(DataError, match=f"12000x9000 pixels, more than {limit}"):
            read_for_deployment(tmp_path / "phone.jpg")
    monkeypatch.setenv(image_files.MAX_PIXELS_VARIABLE, str(2**34))
    (tmp_path / "large.png").write_bytes(png(30000, 30000))
    with pytest.raises(ImageUnreadable, match="cut short"):  # no longer too large
        read_for_training(tmp_path / "large.png")


def test_a_video_that_is_a_row_of_images_is_refused(tmp_path):
    """OpenCV reads such files by its own image decoders."""
    for number in range(3):
        (tmp_path / f"x{number}.mp4").write_bytes(encoded("WEBP"))
    (tmp_path / "x%d.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="mp4"):
        open_source(tmp_path / "x%d.mp4")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENCV_IO_MAX_IMAGE_PIXELS", "x"),
        ("OPENCV_IO_MAX_IMAGE_PIXELS", ""),
        ("OPENCV_IO_MAX_IMAGE_WIDTH", "1e9"),
        ("OPENCV_TRACE", "x"),
    ],
)
def test_a_variable_that_aborts_opencv_is_named(variable, value):
    program = "from ppfcos.cli.infer import main; raise SystemExit(main(['--bundle=x', '--infer_img=y']))"
    root, variables = Path(__file__).parent.parent, {**os.environ, variable: value}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=variables, capture_output=True, text=True, check=False
    )
    [line] = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and f"{variable}={value!r}" in line
