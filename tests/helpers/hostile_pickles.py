"""Hostile pickles, written by hand and drawn at random, and a process that reads them and measures itself.

python tests/helpers/hostile_pickles.py FILE...   one JSON line a file: outcome, peak bytes, CPU seconds
"""

from __future__ import annotations

import io
import json
import pickle
import random
import signal
import struct
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ppfcos.convert.torch_file import OLD_FORMAT_MAGIC, OLD_FORMAT_PROTOCOL, is_torch_file, read_torch
from ppfcos.engine.weights import read_state
from ppfcos.errors import WeightsError

MEMORY_RATIO = 10
MEMORY_CONSTANT = 24 << 20
SECONDS = 60  # of one file, before the process ends itself

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
OBJECT_DTYPE = DTYPE + b"X\x02\x00\x00\x00O8K\x00K\x01\x87R"
FLOAT = DTYPE + b"X\x02\x00\x00\x00f4\x89\x88\x87R"
NEW_ARRAY = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"


def plain(value) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def state_of(opcodes: bytes, protocol: int = 4) -> bytes:
    """A state whose one weight is what the opcodes leave on the stack."""
    return b"\x80" + bytes([protocol]) + b"}X\x01\x00\x00\x00w" + opcodes + b"s."


def array(shape: bytes, dtype: bytes, data: bytes, order: bytes = b"\x89") -> bytes:
    """The opcodes of an array, with any shape, dtype, data and order."""
    return NEW_ARRAY + b"(K\x01" + shape + dtype + order + data + b"tb"


def old_format(
    content: bytes, keys: bytes = b"].", machine: bytes | None = None, numbers: bytes = b""
) -> bytes:
    """A file of PyTorch's old format around the pickle of its content."""
    start = [pickle.dumps(value, 2) for value in (OLD_FORMAT_MAGIC, OLD_FORMAT_PROTOCOL)]
    return b"".join([*start, machine or pickle.dumps({"little_endian": True}, 2), content, keys, numbers])


def zipped(
    content: bytes, entries: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    """A file of PyTorch's zip format around the pickle of its content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in {"data.pkl": content, **(entries or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def tensor(count: int, shape, strides, offset=0, name: bytes = b"FloatStorage") -> bytes:
    """The opcodes of a tensor."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\n" + name + b"\n" + plain("0") + plain("cpu") + plain(count) + b"tQ"
    )
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + b"(" + storage + plain(offset) + plain(shape) + plain(strides) + b"\x89}tR"


def lying_entry() -> bytes:
    """An archive whose deflated entry expands to 200 MB, and says that it has 8 bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(200)) + deflate.flush()
    data = zipped(state_of(tensor(2, (2,), (1,))), {"data/0": bytes(8)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo("archive/data/0")
        start = archive.start_dir
    local = b"PK\x03\x04" + struct.pack("<5H3I2H", 20, 0, 8, 0, 33, 0, len(bomb), 8, len(info.filename), 0)
    name = info.filename.encode()
    before, directory = data[: info.header_offset], data[start:]
    old = struct.pack("<2I", info.compress_size, info.file_size)
    moved = len(before) + len(local) + len(name) + len(bomb)
    directory = directory.replace(old, struct.pack("<2I", len(bomb), 8))
    end = directory.rindex(b"PK\x05\x06")
    directory = directory[: end + 16] + struct.pack("<I", moved) + directory[end + 20 :]
    return before + local + name + bomb + directory


def large_directory() -> bytes:
    """An archive of nothing but 200,000 names."""
    entry = b"PK\x01\x02" + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    count = 200_000
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count % 65536, count % 65536, len(entry) * count, 4, 0)
    return b"PK\x03\x04" + entry * count + end


def several_disks(archive: bytes) -> bytes:
    """An archive that states to be one of seven."""
    end = archive.rindex(b"PK\x05\x06")
    return archive[:end] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 7) + archive[end:]


def fan(levels: int, opcode_new: bytes, opcode_add: bytes) -> bytes:
    """Containers that each hold the next one twice: 2 to the number of levels, for who visits all paths."""
    return opcode_new * levels + opcode_add * (levels - 1)


def hostile_states() -> dict[str, bytes]:
    """Files that `read_state` must refuse, by what they try."""
    window = (
        NDARRAY
        + b"(K\x08\x85"
        + DTYPE
        + b"X\x02\x00\x00\x00u1\x85RC\x10"
        + bytes(16)
        + b"J\x00\xf0\xff\xfftR"
    )
    colliding = b"".join(plain(number * (2**61 - 1)) + b"N" for number in range(21_000))
    deep = 200_000
    cases = {
        "window on any address": window,
        "write through a window": window + b"K\x00K\x41s",
        "write into an array": array(b"K\x02\x85", FLOAT, b"C\x08" + bytes(8)) + b"K\x00K\x41s",
        "object array with a short list": array(b"M\xe8\x03\x85", OBJECT_DTYPE, b"]"),
        "object array": array(b"K\x01\x85", OBJECT_DTYPE, b"](K\x01e"),
        "void dtype": array(b"K\x01\x85", DTYPE + b"X\x02\x00\x00\x00V8\x89\x88\x87R", b"C\x08" + bytes(8)),
        "void dtype with flags": array(
            b"K\x01\x85",
            DTYPE + b"X\x02\x00\x00\x00V8\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNNK\x08K\x01K\x3ftb",
            b"C\x08" + bytes(8),
        ),
        "numeric dtype with fields": array(
            b"K\x01\x85", FLOAT + b"(K\x03X\x01\x00\x00\x00<N)}K\x08K\x01K\x3ftb", b"C\x04" + bytes(4)
        ),
        "object scalar": b"cnumpy.core.multiarray\nscalar\n" + OBJECT_DTYPE + b"C\x08" + b"A" * 8 + b"\x86R",
        "void scalar": b"cnumpy.core.multiarray\nscalar\n"
        + DTYPE
        + b"X\x02\x00\x00\x00V8\x85RC\x08"
        + b"A" * 8
        + b"\x86R",
        "second state of an array": array(b"K\x02\x85", FLOAT, b"C\x08" + bytes(8))
        + b"(K\x01K\x04\x85"
        + FLOAT
        + b"\x89C\x10"
        + bytes(16)
        + b"tb",
        "negative shape": array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", FLOAT, b"C\x04" + bytes(4)),
        "boolean shape": array(b"\x88\x85", FLOAT, b"C\x04" + bytes(4)),
        "float shape": array(b"G?\xf0\x00\x00\x00\x00\x00\x00\x85", FLOAT, b"C\x04" + bytes(4)),
        "list as a shape": array(b"](K\x01e", FLOAT, b"C\x04" + bytes(4)),
        "too few bytes": array(b"K\x09\x85", FLOAT, b"C\x08" + bytes(8)),
        "too many bytes": array(b"K\x01\x85", FLOAT, b"C\x08" + bytes(8)),
        "thousands of huge dimensions": array(b"(" + plain(2**2000) * 5000 + b"t", FLOAT, b"C\x00"),
        "empty but huge": array(b"K\x00" + plain(2**62) + b"\x86", FLOAT, b"C\x00"),
        **{
            f"dtype {text}": array(b"K\x01\x85", DTYPE + plain(text) + b"\x85R", b"C\x08" + bytes(8))
            for text in ("O", "|O", "S8", "U2", "M8[s]", "m8", "V8", "f4,f4", "(2,)f4", "", "float32,O")
        },
        "structured dtype": array(b"K\x01\x85", DTYPE + plain([("a", "O")]) + b"\x85R", b"C\x08" + bytes(8)),
        "memo index of 2^28": b"Nr\x00\x00\x00\x100r\xff\xff\xff\x7f" + b"r\x00\x00\x00\xf0" * 4,
        "number of 2 GB": b"\x8b\xff\xff\xff\x7f" + b"1" * 100,
        "text of 2^40 bytes": b"\x8d" + struct.pack("<Q", 1 << 40),
        "bytes of 2^40 bytes": b"\x8e" + struct.pack("<Q", 1 << 40),
        "bytearray of 2^40 bytes": b"\x96" + struct.pack("<Q", 1 << 40),
        "bytearray of 4 GB": b"\x96" + struct.pack("<Q", 1 << 32),
        "frame of 2^62 bytes": b"\x95" + struct.pack("<Q", 1 << 62),
        "number of a million digits": b"I" + b"9" * 1_000_000 + b"\n",
        "long of a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
        "long of 400 KB": b"\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000,
        "colliding keys": b"}(" + colliding + b"u",
        "colliding items": b"\x8f(" + colliding.replace(b"N", b"") + b"\x90",
        "deep dictionaries": b"}X\x01\x00\x00\x00k" * 9_000 + b"}" + b"s" * 9_000,
        "deep lists": b"]" * 20_000 + b"a" * 19_999,
        "deep tuples": b")" + b"\x85" * 20_000,
        "deep tuple as a key": b"})" + b"\x85" * deep + b"Ns",
        "deep tuple in a set": b"\x8f()" + b"\x85" * deep + b"\x90",
        "deep tuple in a frozenset": b"()" + b"\x85" * deep + b"\x91",
        "dictionary in itself": b"}\x94X\x01\x00\x00\x00kh\x00s",
        "list in itself": b"]\x94h\x00a",
        "tuple in itself": b"]\x94h\x00\x85a",
        "long chain of short paths": b"](" + b"".join(
            (b"h" + bytes([index - 1]) if index else b")") + b"\x85" * 40 + b"\x94" for index in range(200)
        ) + b"e",
        "many sets": b"(" + b"\x8f" * 300_000 + b"t",
        "many dictionaries": b"(" + b"}" * 300_000 + b"t",
        "many marks": b"(" * 300_000,
        "many repeats": b"N" + b"2" * 200_000 + b"0" * 400_000,
        "many memo entries": b"N" + b"\x94" * 300_000,
        "arrays that share a buffer": b"B" + struct.pack("<I", 60_000) + bytes(60_000) + b"\x94("
        + b"c_codecs\nencode\nX" + struct.pack("<I", 60_000) + b"a" * 60_000 + plain("latin1") + b"\x86\x94"
        + b"".join(b"c_codecs\nencode\nh\x01R" for _ in range(20_000)) + b"t",
        "copies of a list": b"(" + b"N" * 50_000 + b"l\x85\x940]"
        + b"cbuiltins\ntuple\nh\x00Ra" * 20_000,
        "extension registry": b"\x82\x01",
        "long extension registry": b"\x84\x01\x00\x00\x00",
        "external buffer": b"\x97",
        "read-only buffer": b"C\x01a\x98",
        "persistent name": b"Pname\n",
        "persistent object": b"NQ",
        "attribute of a class": b"cbuiltins\ngetattr\n" + NDARRAY + plain("dumps") + b"\x86R",
        "state of a function": RECONSTRUCT + b"}b",
        "state of a list": b"]}b",
        "append to a function": RECONSTRUCT + b"Na",
        "append to a dictionary": b"}Na",
        "items of a list": b"](K\x00Nu",
        "call of a list": b"])R",
        "call of a text": b"X\x01\x00\x00\x00a)R",
        "call without a tuple": DTYPE + b"}R",
        "call with keywords": DTYPE + b")}\x92",
        "class of an instance": b"(X\x01\x00\x00\x00ao",
        "old instance": b"(ios\nsystem\n",
        "newline in a name": plain("os\n\x1b[2Jx") + plain("y\nz") + b"\x93",
        "another codec": b"c_codecs\nencode\n" + plain("text") + plain("rot13") + b"\x86R",
        "codec that is a fan": b"c_codecs\nencode\n" + plain("text") + fan(60, b"]", b"2a") + b"\x86R",
    }  # fmt: skip
    whole = {name: state_of(opcodes) for name, opcodes in cases.items()}
    slices = {"UnpackBigParamInfor@@": {"w": {"slices": ["w@@.0"] * 9, "OriginShape": (1,)}}}
    return {
        **whole,
        "state that is itself": b"\x80\x04}\x94X\x01\x00\x00\x00kh\x00s.",
        "slices that are missing": pickle.dumps(slices, 4),
        "slices with a hostile name": pickle.dumps(
            {"UnpackBigParamInfor@@": {"w": {"slices": [(1, 2)], "OriginShape": (1,)}}}, 4
        ),
    }


def hostile_checkpoints() -> dict[str, bytes]:
    """Files that `read_torch` must refuse, by what they try."""
    cases = {
        "negative offset": tensor(2, (2,), (1,), -4),
        "negative strides": tensor(2, (2,), (-1,)),
        "negative shape": tensor(2, (-2,), (1,)),
        "boolean shape": tensor(2, (True,), (1,)),
        "float shape": tensor(2, (2.0,), (1,)),
        "boolean offset": tensor(2, (1,), (1,), True),
        "fewer strides": tensor(2, (1, 2), (1,)),
        "beyond the storage": tensor(2, (3,), (1,)),
        "a billion from one": tensor(2, (1 << 30,), (0,)),
        "negative count": tensor(-2, (1,), (1,)),
        "boolean count": tensor(True, (1,), (1,)),
        "float count": tensor(2.0, (1,), (1,)),
        "huge count": tensor(1 << 60, (1 << 60,), (1,)),
        "two sizes": tensor(2, (1 << 40, 1 << 40), (0, 0)),
        "state of a tensor": tensor(2, (2,), (1,))
        + b"(K\x01K\x04\x85" + FLOAT + b"\x89C\x10" + bytes(16) + b"tb",
        "attributes of a tensor": tensor(2, (2,), (1,)) + b"}" + plain("shape") + plain((9,)) + b"sb",
        "item of a tensor": tensor(2, (2,), (1,)) + b"K\x00K\x01s",
        "state of a storage": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + plain("0") + plain("cpu") + plain(2) + b"tQ}" + plain("count") + plain(99) + b"sb",
        "storage of no type": b"(X\x07\x00\x00\x00storageX\x01\x00\x00\x00O"
        + plain("0") + plain("cpu") + plain(2) + b"tQ",
        "placeholder as storage": b"(X\x07\x00\x00\x00storagecmmcv\na\n)\x81"
        + plain("0") + plain("cpu") + plain(2) + b"tQ",
        "window on any address": NDARRAY
        + b"(K\x08\x85" + FLOAT + b"C\x10" + bytes(16) + b"J\x00\xf0\xff\xfftR",
        "attribute of a class": b"cmmcv\na\n}\x86" + b"R",
    }  # fmt: skip
    numbers = {"data/0": bytes(8)}
    files = {f"zip: {name}": zipped(state_of(opcodes, 2), numbers) for name, opcodes in cases.items()}
    for name, opcodes in cases.items():
        keys = pickle.dumps(["0"], 2)
        number = struct.pack("<q", 2) + bytes(8)
        files[f"old: {name}"] = old_format(state_of(opcodes, 2), keys, numbers=number)
    one = state_of(tensor(2, (2,), (1,)), 2)
    million = state_of(tensor(1 << 25, (1 << 25,), (1,)), 2)
    return {
        **files,
        "zip: deflated bomb": zipped(million, {"data/0": bytes(1 << 27)}, zipfile.ZIP_DEFLATED),
        "zip: bzip2 bomb": zipped(one, {"data/0": bytes(1 << 25)}, zipfile.ZIP_BZIP2),
        "zip: bzip2": zipped(one, numbers, zipfile.ZIP_BZIP2),
        "zip: lzma": zipped(one, numbers, zipfile.ZIP_LZMA),
        "zip: deflated pickle": zipped(
            state_of(b"(" + b"N" * 20_000_000 + b"t"), method=zipfile.ZIP_DEFLATED
        ),
        "zip: no pickle": zipped(b"", {}).replace(b"data.pkl", b"data.pkk"),
        "zip: no storage": zipped(one),
        "zip: large directory": large_directory(),
        "zip: several disks": several_disks(zipped(one, numbers)),
        "old: machine that is a list": old_format(one, machine=b"\x80\x02]."),
        "old: keys that are a dictionary": old_format(one, keys=b"\x80\x02}."),
        "old: keys that are deep": old_format(one, keys=b"\x80\x02])" + b"\x85" * 200_000 + b"a."),
        "old: no keys": old_format(one),
        "old: key twice": old_format(
            one, pickle.dumps(["0", "0"], 2), numbers=(struct.pack("<q", 2) + bytes(8)) * 2
        ),
        "old: unknown key": old_format(one, pickle.dumps(["1"], 2), numbers=struct.pack("<q", 2) + bytes(8)),
        "old: another count": old_format(
            one, pickle.dumps(["0"], 2), numbers=struct.pack("<q", 3) + bytes(12)
        ),
        "old: cut off": old_format(one, pickle.dumps(["0"], 2), numbers=struct.pack("<q", 2) + bytes(7)),
    }


def write_real_files(folder: Path) -> list[Path]:
    """Small files as Paddle, NumPy and, where it is installed, PyTorch write them."""
    import numpy as np
    import paddle

    layer = paddle.nn.Linear(2, 3)
    state = {"weight": np.arange(6, dtype="f4").reshape(2, 3), "step": np.int64(3), "names": {"a": "b"}}
    for protocol in (2, 4):
        paddle.save(layer.state_dict(), str(folder / f"layer{protocol}.pdparams"), protocol=protocol)
        paddle.save({"nested": {"m": layer.weight}, "epoch": 3}, str(folder / f"nested{protocol}.pdopt"))
    for protocol in range(6):
        (folder / f"numpy{protocol}.pkl").write_bytes(pickle.dumps(state, protocol))
    try:
        import torch
    except ImportError:
        return sorted(folder.iterdir())
    model = torch.nn.BatchNorm1d(2)
    content = {
        "state_dict": model.state_dict(),
        "half": torch.ones(3, 2).t().bfloat16(),
        "meta": {"epoch": 1},
    }
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
    return sorted(folder.iterdir())


# Random ones ------------------------------------------------------------------------------------------------

GLOBALS = (
    *(
        RECONSTRUCT,
        NDARRAY,
        DTYPE,
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy.core.numeric\n_frombuffer\n",
    ),
    *(b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n", b"cbuiltins\ntuple\n", b"cbuiltins\nset\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cmmcv\nConfig\n"),
    *(b"cbuiltins\ngetattr\n", b"ccollections\nCounter\n", b"cbuiltins\neval\n"),
)
VALUES = ("storage", "0", "cpu", "latin1", "f4", "O", (), (2,), (0,), (1, 2), [], {}, 0, 1, 2, -1, 1 << 40)
PLAIN = (
    *map(plain, VALUES),
    *(b"C\x08" + bytes(8), b"B\x00\x01\x00\x00" + bytes(256), b"G" + bytes(8), b"\x88", b"N", b"\x8f", FLOAT),
)
# Opcodes of few bytes that take memory.
GROWING = (
    b"(",
    b"}",
    b"]",
    b"\x8f",
    b"\x85",
    b"\x94",
    b"2",
    b")\x94",
    b"}\x94",
    b"K\x01\x85",
    b"(]}\x8ft",
    b"h\x00h\x00s",
)
WITHOUT_ARGUMENT = b"(012)]}NaRbdelostuQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"


def random_opcodes(source: random.Random, count: int) -> bytes:
    """A pickle of so many opcodes, of which many have plausible arguments."""
    parts = []
    for _ in range(count):
        kind = source.random()
        if kind < 0.2:
            parts.append(source.choice(GLOBALS))
        elif kind < 0.5:
            parts.append(source.choice(PLAIN))
        elif kind < 0.6:
            parts.append(
                source.choice(
                    (NEW_ARRAY, array(b"K\x02\x85", FLOAT, b"C\x08" + bytes(8)), tensor(2, (2,), (1,)))
                )
            )
        elif kind < 0.9:
            parts.append(bytes([source.choice(WITHOUT_ARGUMENT)]))
        elif kind < 0.96:
            parts.append(b"h" + bytes([source.randrange(8)]))
        else:
            parts.append(bytes(source.randrange(256) for _ in range(source.randrange(1, 10))))
    return b"\x80" + bytes([source.randrange(6)]) + b"".join(parts) + b"."


def mutated(source: random.Random, data: bytes) -> bytes:
    """A real file with a few changes: flipped, removed, repeated and exchanged bytes."""
    changed = bytearray(data)
    for _ in range(source.randrange(1, 6)):
        if not changed:
            break
        start = source.randrange(len(changed))
        end = start + source.choice((1, 1, 2, 4, 8, 40))
        kind = source.randrange(5)
        if kind == 0:
            changed[start] ^= 1 << source.randrange(8)
        elif kind == 1:
            changed[start] = source.choice(WITHOUT_ARGUMENT)
        elif kind == 2:
            changed[start:end] = bytes(source.choice((0, 1, 127, 255)) for _ in range(end - start))
        elif kind == 3:
            del changed[start:end]
        else:
            changed[start:start] = source.choice((*GLOBALS, *PLAIN, bytes(changed[start:end]) * 20))
    return bytes(changed)


def random_file(source: random.Random, real: list[bytes], repeats: int) -> bytes:
    """Opcodes, also within the formats of PyTorch or repeated so many times, or a mutated real file."""
    kind = source.random()
    if real and kind < 0.5:
        return mutated(source, source.choice(real))
    content = random_opcodes(source, source.choice((3, 10, 40, 200)))
    if kind < 0.55:  # cheap opcodes again and again, without the end of the pickle between
        body = b"".join(source.choice((*GROWING, *GLOBALS, *PLAIN)) for _ in range(source.randrange(1, 6)))
        content = content[:2] + b"}(" + body * source.randrange(repeats) + content[2:]
    if kind < 0.7:
        return content
    if kind < 0.85:
        return zipped(content, {"data/0": bytes(8)})
    return old_format(content, pickle.dumps(["0"], 2), numbers=struct.pack("<q", 2) + bytes(8))


# Reading them -----------------------------------------------------------------------------------------------


def read(path: Path) -> dict:
    """Read a file of either project."""
    return read_torch(path) if is_torch_file(path) else read_state(path)


def measure(path: Path) -> dict:
    """What reading a file gives and takes. tracemalloc must run."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.process_time()
    message = None
    try:
        content = read(path)
        outcome = "dict" if type(content) is dict else f"a {type(content).__name__}"
        del content
    except WeightsError as error:
        outcome, message = "refused", str(error)
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1] - before
    return {"file": path.name, "outcome": outcome, "message": message, "peak": peak, "seconds": seconds}


def within_limits(result: dict, size: int) -> bool:
    """Whether a result is a dictionary or a refusal, in bounded memory."""
    return result["outcome"] in ("dict", "refused") and (
        result["peak"] <= MEMORY_RATIO * size + MEMORY_CONSTANT
    )


if __name__ == "__main__":
    tracemalloc.start()
    for name in sys.argv[1:]:
        signal.alarm(SECONDS)
        print(json.dumps(measure(Path(name))), flush=True)
