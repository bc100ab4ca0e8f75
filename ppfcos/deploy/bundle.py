"""The bundle folder and its manifest.

`bundle.yml` describes the network's inputs and outputs, the pre- and postprocessing, the classes and the
files; docs/predictor.md explains its keys. `infer_cfg.yml` is for PaddleDetection's deployment scripts and is
not read here.
"""

from __future__ import annotations

import hashlib
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppfcos.decode_options import DecodeOptions
from ppfcos.deploy.manifest import EXPORT_AGAIN, Section, is_text, read_manifest, shown
from ppfcos.deploy.onnx_files import OnnxFile, checked_onnx
from ppfcos.errors import BundleError
from ppfcos.fileio import require_regular, sha256

FORMAT_VERSION = 1

MANIFEST_FILE = "bundle.yml"
CONFIG_FILE = "infer_cfg.yml"
MODEL_PREFIX = "model"
# Programs of Paddle 3.0 and later, and of Paddle 2.6, which all later versions read too.
PROGRAM_SUFFIX, OLD_PROGRAM_SUFFIX = ".json", ".pdmodel"
PROGRAM_FILES = (MODEL_PREFIX + PROGRAM_SUFFIX, MODEL_PREFIX + OLD_PROGRAM_SUFFIX)
FIRST_PIR_VERSION = 1  # in a .json program of Paddle 3.0
WEIGHTS_FILE = MODEL_PREFIX + ".pdiparams"

END_TO_END, HEADS = KINDS = ("end_to_end", "heads")
FLOAT32, UINT8, NV12 = INPUT_TYPES = ("float32", "uint8", "nv12")
RGB, BGR = CHANNEL_ORDERS = ("rgb", "bgr")
NCHW, NHWC = LAYOUTS = ("nchw", "nhwc")
CENTERS, ANCHORS = LOCATIONS = ("centers", "anchors")
PIXELS, STRIDES = DISTANCE_UNITS = ("pixels", "strides")
PADDLE, ONNX = FORMATS = ("paddle", "onnx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

IMAGE, IM_SHAPE, SCALE_FACTOR = INPUTS = ("image", "im_shape", "scale_factor")
# Limits of what a bundle may ask for, each far above what a detector needs.
MAX_FILE_BYTES = 2**31 - 1  # an ONNX file cannot be larger
MAX_PIXELS = 2**27  # of a resized image, and of all images of a fixed batch
MAX_SIDE = 2**16  # of an image
MAX_STRIDE = 1024
MAX_BATCH = 1024
MAX_STEPS = 16  # of the preprocessing
MAX_LEVELS = 32
MAX_ID = 2**63 - 1

BBOX, BBOX_NUM = END_TO_END_OUTPUTS = ("bbox", "bbox_num")
CLASS_LOGITS, DISTANCES, QUALITY_LOGITS = HEAD_OUTPUTS = ("class_logits", "distances", "quality_logits")


def onnx_file(precision: str) -> str:
    """File name of the ONNX network of a precision: `model.onnx` for fp32, or such as `model_fp16.onnx`."""
    return f"{MODEL_PREFIX}.onnx" if precision == "fp32" else f"{MODEL_PREFIX}_{precision}.onnx"


# All files that an export may write; a folder with others is not replaced.
FILES = (*PROGRAM_FILES, WEIGHTS_FILE, CONFIG_FILE, MANIFEST_FILE, *(onnx_file(each) for each in PRECISIONS))


@dataclass(frozen=True)
class NetworkInput:
    """The network's `image` input.

    Attributes:
        type: `float32` (0 to 255), `uint8` or `nv12`.
        channels: `rgb` or `bgr`; ignored for NV12.
        layout: `nchw` or `nhwc`; ignored for NV12.
        batch: fixed batch size; None: any.
        height: fixed image height in pixels; None: any.
        width: fixed image width in pixels; None: any.
    """

    type: str = FLOAT32
    channels: str = RGB
    layout: str = NCHW
    batch: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images if fixed, otherwise None."""
        return None if self.height is None else (self.height, self.width)

    def image_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) of the images in an `image` array of this shape."""
        if self.type == NV12:
            return shape[1] * 2 // 3, shape[2]
        return (shape[2], shape[3]) if self.layout == NCHW else (shape[1], shape[2])


@dataclass(frozen=True)
class Level:
    """One pyramid level of a network of kind `heads`.

    Attributes:
        stride: in pixels.
        outputs: the names of the network's outputs, by `class_logits`, `distances` and `quality_logits`.
        scales: factor of each channel of integer outputs, by the same keys; empty for floats.
    """

    stride: int
    outputs: Mapping[str, str]
    scales: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Heads:
    """The outputs of a network of kind `heads`.

    Attributes:
        layout: `nchw` or `nhwc`.
        locations: points at the `centers` of the cells, or at torchvision's `anchors` (modeling/fcos.py).
        distances: in `pixels` of the network's input, or in `strides` of their level.
        levels: the finest first.
    """

    layout: str
    locations: str
    distances: str
    levels: tuple[Level, ...]

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs in the order of a Paddle program: kind by kind, level by level."""
        return tuple(level.outputs[kind] for kind in HEAD_OUTPUTS for level in self.levels)


@dataclass(frozen=True)
class Bundle:
    """An exported model.

    Attributes:
        directory: the folder.
        kind: `end_to_end` (the network outputs boxes) or `heads` (it outputs the head's maps).
        input: the network's `image` input.
        preprocess: PaddleDetection's `Preprocess` list: one dict per step, with its name under `type`.
        postprocess: decode options.
        heads: the outputs of a network of kind `heads`, otherwise None.
        class_names: by label.
        category_ids: by label, the category of the data set.
        networks: file names by format (`paddle`, `onnx`), precision and role.
        files: size in bytes and SHA-256 of every file but the manifest.
        source: configuration and weights that the bundle was exported from.
    """

    directory: Path
    kind: str
    input: NetworkInput
    preprocess: list[dict[str, Any]]
    postprocess: DecodeOptions
    heads: Heads | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    networks: Mapping[str, Mapping[str, Mapping[str, str]]]
    files: Mapping[str, tuple[int, str]]
    source: Mapping[str, Any]

    @property
    def output_names(self) -> tuple[str, ...]:
        """The network's outputs in the order of a Paddle program, which does not name them."""
        return END_TO_END_OUTPUTS if self.heads is None else self.heads.output_names

    def onnx_network(self, precision: str) -> OnnxFile:
        """The ONNX file of a precision in `networks["onnx"]`.

        Raises:
            BundleError: the checksum differs, the file is not ONNX, or it refers to other files.
        """
        name = self.networks[ONNX][precision]["file"]
        return checked_onnx(self.directory / name, self._content(name))

    def paddle_network(self, precision: str) -> tuple[Path, Path]:
        """Program and weights files of a precision in `networks["paddle"]`; checksums are verified."""
        files = self.networks[PADDLE][precision]
        self.verify(files.values())
        return self.directory / files["program"], self.directory / files["weights"]

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files (by default all) with their checksums; a difference is a `BundleError`."""
        for name in self.files if names is None else names:
            path = self.directory / name
            try:
                require_regular(path)
                found = sha256(path)
            except OSError as error:
                raise _unreadable(path, error) from error
            if found != self.files[name][1]:
                raise _damaged(path)

    def _content(self, name: str) -> bytes:
        path = self.directory / name
        size, checksum = self.files[name]
        try:
            require_regular(path)
            with open(path, "rb") as file:
                content = file.read(size + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
        if hashlib.sha256(content).hexdigest() != checksum:
            raise _damaged(path)
        return content


def read_bundle(directory: str | os.PathLike) -> Bundle:
    """Read a bundle's manifest, and check that its files exist with their sizes; their content is not read.

    Raises:
        BundleError: the folder or a file is missing or damaged, or `bundle.yml` is invalid.
    """
    folder = Path(directory)
    _require_bundle(folder)
    manifest = read_manifest(folder / MANIFEST_FILE)
    version = manifest.whole("format_version", 1)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: format_version {version} is newer than this ppfcos reads "
            f"({FORMAT_VERSION}); install ppfcos {manifest.text('ppfcos', default='unknown')}, which wrote it"
        )
    kind = manifest.text("kind", KINDS)
    classes = manifest.sections("classes")
    input_spec = _input(manifest.section("input"))
    bundle = Bundle(
        directory=folder,
        kind=kind,
        input=input_spec,
        preprocess=_preprocess(manifest, input_spec),
        postprocess=manifest.section("postprocess").options(DecodeOptions),
        heads=_heads(manifest.section("heads"), len(classes)) if kind == HEADS else None,
        class_names=tuple(each.text("name") for each in classes),
        category_ids=_category_ids(classes),
        networks=_networks(manifest.section("networks")),
        files=_files(manifest.section("files")),
        source={} if manifest.values.get("source") is None else manifest.section("source").values,
    )
    for files in (files for group in bundle.networks.values() for files in group.values()):
        for name in files.values():
            problem = f"`networks` names {shown(name)}, which is not in `files`"
            manifest.check(name in bundle.files, problem)
    _check_files(bundle)
    return bundle


def _require_bundle(folder: Path) -> None:
    if not stat.S_ISDIR(_mode(folder)):
        raise BundleError(
            f"{folder}: there is no such bundle folder; "
            "create one with `python tools/export_model.py -c CONFIG -o weights=FILE`"
        )
    if _is_file(folder / MANIFEST_FILE):
        return
    if _is_file(folder / CONFIG_FILE):
        raise BundleError(f"{folder}: this bundle is too old, it has no {MANIFEST_FILE}; export it again")
    raise BundleError(f"{folder}: this is not a bundle, it lacks {MANIFEST_FILE}; export it again")


def _mode(path: Path) -> int:
    """st_mode of a path, links followed; 0 if there is none."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: impossible names
        return 0


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path))


def _input(section: Section) -> NetworkInput:
    kind = section.text("type", INPUT_TYPES)
    default_layout = NCHW if kind == FLOAT32 else NHWC
    height, width = (section.whole(side, 1, None, MAX_SIDE) for side in ("height", "width"))
    section.check((height is None) == (width is None), "height and width must both be numbers or both null")
    is_odd = height is not None and (height % 2 or width % 2)
    section.check(kind != NV12 or not is_odd, "height and width must be even for NV12")
    return NetworkInput(
        type=kind,
        channels=section.text("channels", CHANNEL_ORDERS, RGB),
        layout=section.text("layout", LAYOUTS, default_layout),
        batch=section.whole("batch", 1, None, MAX_BATCH),
        height=height,
        width=width,
    )


def _preprocess(manifest: Section, spec: NetworkInput) -> list[dict[str, Any]]:
    from ppfcos.deploy.preprocess import Preprocess

    steps = [step.values for step in manifest.sections("preprocess")]
    manifest.check(len(steps) <= MAX_STEPS, f"`preprocess` has more than {MAX_STEPS} steps")
    try:
        largest = Preprocess(steps, spec).max_pixels
    except BundleError as error:
        raise BundleError(f"{manifest.where}: {error}; {EXPORT_AGAIN}") from error
    pixels = largest * (spec.batch or 1)
    manifest.check(pixels <= MAX_PIXELS, f"a batch of `input` has more than {MAX_PIXELS} pixels")
    return steps


def _category_ids(classes: list[Section]) -> tuple[int, ...]:
    ids = [each.whole("id", 0, i, MAX_ID) for i, each in enumerate(classes)]
    known: set[int] = set()
    for each, number in zip(classes, ids):
        if number in known:
            raise each.refuse("id", "a unique number")
        known.add(number)
    return tuple(ids)


def _heads(section: Section, num_classes: int) -> Heads:
    levels = tuple(_level(each, num_classes) for each in section.sections("levels"))
    outputs = [name for level in levels for name in level.outputs.values()]
    section.check(len(levels) <= MAX_LEVELS, f"there must be at most {MAX_LEVELS} levels")
    section.check(len(set(outputs)) == len(outputs), "each output must have its own name")
    return Heads(
        layout=section.text("layout", LAYOUTS),
        locations=section.text("locations", LOCATIONS, CENTERS),
        distances=section.text("distances", DISTANCE_UNITS),
        levels=levels,
    )


def _level(section: Section, num_classes: int) -> Level:
    scales = {}
    if section.values.get("scales") is not None:
        listed = section.section("scales")
        scales = {kind: listed.scales(kind) for kind in HEAD_OUTPUTS}
        for kind, channels in zip(HEAD_OUTPUTS, (num_classes, 4, 1)):
            count = len(scales[kind])
            listed.check(count == channels, f"{kind} has {channels} channels but {count} scales")
    outputs = {kind: section.text(kind) for kind in HEAD_OUTPUTS}
    return Level(section.whole("stride", 1, most=MAX_STRIDE), outputs, scales)


def _networks(section: Section) -> dict[str, dict[str, dict[str, str]]]:
    roles = {PADDLE: ("program", "weights"), ONNX: ("file",)}
    networks: dict[str, dict[str, dict[str, str]]] = {}
    for name in FORMATS:
        if name not in section.values:
            continue
        precisions = section.section(name)
        networks[name] = {}
        for precision in precisions.values:
            problem = f"{shown(precision)} is not a precision ({', '.join(PRECISIONS)})"
            precisions.check(precision in PRECISIONS, problem)
            files = precisions.section(precision)
            networks[name][precision] = {role: files.text(role) for role in roles[name]}
    section.check(any(networks.values()), "names no network")
    return networks


def _files(section: Section) -> dict[str, tuple[int, str]]:
    files = {}
    for name in section.values:
        is_file_name = is_text(name) and name not in (".", "..") and not set(name) & set("/\\")
        section.check(is_file_name, f"{reprlib.repr(name)} is not a file name")
        entry = section.section(name)
        checksum = entry.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise entry.refuse("sha256", "64 hexadecimal digits")
        files[name] = (entry.whole("bytes", 0, most=MAX_FILE_BYTES), checksum)
    return files


def _check_files(bundle: Bundle) -> None:
    """Check types and sizes of the files: it is free, and finds incomplete copies."""
    missing = [name for name in bundle.files if not _is_file(bundle.directory / name)]
    if missing:
        raise BundleError(
            f"{bundle.directory}: the bundle is incomplete, {', '.join(missing[:5])} is missing; "
            "copy or export it again"
        )
    for name, (size, _) in bundle.files.items():
        if (bundle.directory / name).stat().st_size != size:
            raise _damaged(bundle.directory / name)


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path}: cannot be read ({error.strerror}); export it again")


def _damaged(path: Path) -> BundleError:
    return BundleError(f"{path}: the file is damaged, its checksum or size differs; copy or export it again")
