"""What lies in a bundle folder, and how its description is read.

`bundle.yml` describes the network's inputs and outputs, what is done before and after it, the classes and the
files. `infer_cfg.yml` beside it is for PaddleDetection's own deployment scripts; nothing of it is read here.
docs/predictor.md explains the keys.
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

from ppfcos.deploy.manifest import Section, is_text, read_manifest, shown
from ppfcos.deploy.onnx_files import OnnxFile, checked_onnx
from ppfcos.errors import BundleError
from ppfcos.fileio import require_regular, sha256

FORMAT_VERSION = 1

MANIFEST_FILE = "bundle.yml"
CONFIG_FILE = "infer_cfg.yml"
MODEL_PREFIX = "model"
PROGRAM_FILE = MODEL_PREFIX + ".json"
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
# Of what a bundle may ask for; each is far above what a detector needs.
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
    """The name of the ONNX file of a precision: `model.onnx` for fp32, else such as `model_fp16.onnx`."""
    return f"{MODEL_PREFIX}.onnx" if precision == "fp32" else f"{MODEL_PREFIX}_{precision}.onnx"


# Whatever an export may have written; a folder with other files is not a bundle's.
FILES = (PROGRAM_FILE, WEIGHTS_FILE, CONFIG_FILE, MANIFEST_FILE, *(onnx_file(each) for each in PRECISIONS))


@dataclass(frozen=True)
class NetworkInput:
    """The network's `image`.

    Attributes:
        type: `float32`, `uint8` or `nv12`.
        channels: `rgb` or `bgr`; of no meaning for NV12.
        layout: `nchw` or `nhwc`; of no meaning for NV12.
        batch: images at once; None: any number.
        height: of the picture in pixels; None: any.
        width: likewise.
    """

    type: str = FLOAT32
    channels: str = RGB
    layout: str = NCHW
    batch: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every picture, where it is fixed."""
        return None if self.height is None else (self.height, self.width)

    def picture_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) of the pictures in an `image` of this shape."""
        if self.type == NV12:
            return shape[1] * 2 // 3, shape[2]
        return (shape[2], shape[3]) if self.layout == NCHW else (shape[1], shape[2])


@dataclass(frozen=True)
class Level:
    """One level of the pyramid in a network of the kind `heads`.

    Attributes:
        stride: in pixels.
        outputs: the name of the network's output by what it is: `class_logits`, `distances`,
            `quality_logits`.
        scales: of integer outputs, by the same names: what each channel is multiplied by.
    """

    stride: int
    outputs: Mapping[str, str]
    scales: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Heads:
    """The outputs of a network of the kind `heads`.

    Attributes:
        layout: `nchw` or `nhwc`.
        locations: `centers` of the cells, or `anchors` as torchvision lays them (see modeling/fcos.py).
        distances: in `pixels` of the network's input, or in `strides` of their level.
        levels: the finest first.
    """

    layout: str
    locations: str
    distances: str
    levels: tuple[Level, ...]

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs, kind by kind and level by level: their order where a program does not name them."""
        return tuple(level.outputs[kind] for kind in HEAD_OUTPUTS for level in self.levels)


@dataclass(frozen=True)
class DecodeOptions:
    """The arguments of PPFCOSDecode (ppfcos/modeling/postprocess.py)."""

    pre_nms_top_k: int = 1000
    score_threshold: float = 0.025
    nms_threshold: float = 0.6
    keep_top_k: int = 100
    sqrt_score: bool = False
    class_threshold: float = 0.0
    rank_by: str = "score"
    class_top_k: int = -1
    clip: str = "before"
    inclusive: bool = False


@dataclass(frozen=True)
class Bundle:
    """An exported model.

    Attributes:
        directory: the folder.
        kind: `end_to_end` or `heads`.
        input: the network's `image`.
        preprocess: PaddleDetection's `Preprocess` list: a dict a step, its kind under `type`.
        postprocess: what becomes a box.
        heads: the outputs where the kind is `heads`, else None.
        class_names: the name of every class, in the order of the labels.
        category_ids: the number that each class has in the data set that the model was trained for.
        networks: by format (`paddle`, `onnx`) and precision, the names of the files by their role.
        files: size in bytes and SHA-256 of every file but the manifest.
        source: what is known of the training run it came from.
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
        """The network's outputs, in the order of a program that does not name them."""
        return END_TO_END_OUTPUTS if self.heads is None else self.heads.output_names

    def onnx_network(self, precision: str) -> OnnxFile:
        """The content of an ONNX network. It is the file that was exported, and needs no other file.

        Args:
            precision: one that `networks["onnx"]` has.

        Raises:
            BundleError: the file is not the one that was exported, is not ONNX, or names other files.
        """
        name = self.networks[ONNX][precision]["file"]
        return checked_onnx(self.directory / name, self._content(name))

    def paddle_network(self, precision: str) -> tuple[Path, Path]:
        """The program and the weights of a Paddle network. They are the files that were exported.

        Args:
            precision: one that `networks["paddle"]` has.

        Raises:
            BundleError: a file is not the one that was exported.
        """
        files = self.networks[PADDLE][precision]
        self.verify(files.values())
        return self.directory / files["program"], self.directory / files["weights"]

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files with their checksums.

        Args:
            names: of files; None: all of them.

        Raises:
            BundleError: one is not the one that was exported.
        """
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
    """Read the description of a bundle. All files are there and of their sizes; their content is not read.

    Raises:
        BundleError: the folder or a file of it is missing or damaged, or `bundle.yml` is not what an export
            of this version writes.
    """
    folder = Path(directory)
    _require_bundle(folder)
    manifest = read_manifest(folder / MANIFEST_FILE)
    version = manifest.whole("format_version", 1)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: format_version {version} is newer than this ppfcos reads "
            f"({FORMAT_VERSION}); install the one that wrote it, {manifest.text('ppfcos', default='unknown')}"
        )
    kind = manifest.text("kind", KINDS)
    classes = manifest.sections("classes")
    form = _input(manifest.section("input"))
    bundle = Bundle(
        directory=folder,
        kind=kind,
        input=form,
        preprocess=_preprocess(manifest, form),
        postprocess=_postprocess(manifest.section("postprocess")),
        heads=_heads(manifest.section("heads"), len(classes)) if kind == HEADS else None,
        class_names=tuple(each.text("name") for each in classes),
        category_ids=_category_ids(classes),
        networks=_networks(manifest.section("networks")),
        files=_files(manifest.section("files")),
        source={} if manifest.values.get("source") is None else manifest.section("source").values,
    )
    _check_files(bundle)
    return bundle


def _require_bundle(folder: Path) -> None:
    if not stat.S_ISDIR(_mode(folder)):
        raise BundleError(
            f"{folder}: there is no such bundle folder; "
            "`python tools/export_model.py -c CONFIG -o weights=FILE` makes one"
        )
    if _is_file(folder / MANIFEST_FILE):
        return
    if _is_file(folder / CONFIG_FILE):
        raise BundleError(
            f"{folder}: this bundle was written before bundles had a {MANIFEST_FILE}; export it again"
        )
    raise BundleError(f"{folder}: this is not a bundle, it lacks {MANIFEST_FILE}; export it again")


def _mode(path: Path) -> int:
    """What lies under a name: its st_mode, links followed, or 0."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):  # also names that cannot be any, such as those that are too long
        return 0


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path))


def _input(section: Section) -> NetworkInput:
    kind = section.text("type", INPUT_TYPES)
    default_layout = NCHW if kind == FLOAT32 else NHWC
    height, width = (section.whole(side, 1, None, MAX_SIDE) for side in ("height", "width"))
    if (height is None) != (width is None):
        raise BundleError(f"{section.where}: height and width are both numbers or both null; export it again")
    if kind == NV12 and height is not None and (height % 2 or width % 2):
        raise BundleError(f"{section.where}: an NV12 picture has an even height and width; export it again")
    return NetworkInput(
        type=kind,
        channels=section.text("channels", CHANNEL_ORDERS, RGB),
        layout=section.text("layout", LAYOUTS, default_layout),
        batch=section.whole("batch", 1, None, MAX_BATCH),
        height=height,
        width=width,
    )


def _preprocess(manifest: Section, form: NetworkInput) -> list[dict[str, Any]]:
    from ppfcos.deploy.preprocess import Preprocess

    steps = [step.values for step in manifest.sections("preprocess")]
    if len(steps) > MAX_STEPS:
        raise BundleError(f"{manifest.where}: `preprocess` has more than {MAX_STEPS} steps; export it again")
    try:
        largest = Preprocess(steps, form).most_pixels
    except BundleError as error:
        raise BundleError(f"{manifest.where}: {error}; export the bundle again") from error
    if largest * (form.batch or 1) > MAX_PIXELS:
        raise BundleError(
            f"{manifest.where}: a batch of `input` has more than {MAX_PIXELS} pixels; export it again"
        )
    return steps


def _category_ids(classes: list[Section]) -> tuple[int, ...]:
    ids = [each.whole("id", 0, i, MAX_ID) for i, each in enumerate(classes)]
    known: set[int] = set()
    for each, number in zip(classes, ids):
        if number in known:
            raise each.refuse("id", "a number that no other class has")
        known.add(number)
    return tuple(ids)


def _postprocess(section: Section) -> DecodeOptions:
    known = DecodeOptions()
    return DecodeOptions(
        pre_nms_top_k=section.whole("pre_nms_top_k", 1, known.pre_nms_top_k),
        score_threshold=section.fraction("score_threshold", known.score_threshold),
        nms_threshold=section.fraction("nms_threshold", known.nms_threshold),
        keep_top_k=section.whole("keep_top_k", -1, known.keep_top_k),
        sqrt_score=section.flag("sqrt_score", known.sqrt_score),
        class_threshold=section.fraction("class_threshold", known.class_threshold),
        rank_by=section.text("rank_by", ("score", "class"), known.rank_by),
        class_top_k=section.whole("class_top_k", -1, known.class_top_k),
        clip=section.text("clip", ("before", "after", "never"), known.clip),
        inclusive=section.flag("inclusive", known.inclusive),
    )


def _heads(section: Section, num_classes: int) -> Heads:
    levels = tuple(_level(each, num_classes) for each in section.sections("levels"))
    outputs = [name for level in levels for name in level.outputs.values()]
    if len(levels) > MAX_LEVELS or len(set(outputs)) != len(outputs):
        raise BundleError(
            f"{section.where}: levels must be {MAX_LEVELS} at the most, no two with an output of one name; "
            "export the bundle again"
        )
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
        scales = {kind: listed.numbers(kind) for kind in HEAD_OUTPUTS}
        for kind, channels in zip(HEAD_OUTPUTS, (num_classes, 4, 1)):
            if len(scales[kind]) != channels:
                raise BundleError(
                    f"{listed.where}: {kind} has {channels} channels but {len(scales[kind])} scales; "
                    "export the bundle again"
                )
    outputs = {kind: section.text(kind) for kind in HEAD_OUTPUTS}
    return Level(section.whole("stride", 1, most=MAX_STRIDE), outputs, scales)


def _networks(section: Section) -> dict[str, dict[str, dict[str, str]]]:
    roles = {PADDLE: ("program", "weights"), ONNX: ("file",)}
    networks: dict[str, dict[str, dict[str, str]]] = {}
    for form in FORMATS:
        if form not in section.values:
            continue
        precisions = section.section(form)
        for precision in precisions.values:
            if precision not in PRECISIONS:
                raise BundleError(
                    f"{precisions.where}: {shown(precision)} is not a precision, which are "
                    f"{', '.join(PRECISIONS)}; export the bundle again"
                )
        networks[form] = {
            precision: {role: precisions.section(precision).text(role) for role in roles[form]}
            for precision in precisions.values
        }
    if not any(networks.values()):
        raise BundleError(f"{section.where}: names no network; export the bundle again")
    return networks


def _files(section: Section) -> dict[str, tuple[int, str]]:
    files = {}
    for name in section.values:
        if not _is_file_name(name):
            raise BundleError(f"{section.where}: {reprlib.repr(name)} is no name of a file of this folder")
        entry = section.section(name)
        checksum = entry.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise entry.refuse("sha256", "64 hexadecimal digits")
        files[name] = (entry.whole("bytes", 0, most=MAX_FILE_BYTES), checksum)
    return files


def _is_file_name(name: Any) -> bool:
    return is_text(name) and name not in (".", "..") and not set(name) & set("/\\")


def _check_files(bundle: Bundle) -> None:
    """Kinds and sizes only: that costs nothing, and finds what a broken copy leaves."""
    where = bundle.directory / MANIFEST_FILE
    missing = [name for name in bundle.files if not _is_file(bundle.directory / name)]
    if missing:
        raise BundleError(
            f"{bundle.directory}: this is not a complete bundle, it lacks {', '.join(missing[:5])}; "
            "export it again"
        )
    for name, (size, _) in bundle.files.items():
        if (bundle.directory / name).stat().st_size != size:
            raise _damaged(bundle.directory / name)
    named = (name for form in bundle.networks.values() for files in form.values() for name in files.values())
    for name in named:
        if name not in bundle.files:
            raise BundleError(
                f"{where}: `networks` names {shown(name)}, which `files` does not have; "
                "export the bundle again"
            )


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path}: cannot be read ({error.strerror}); export it again")


def _damaged(path: Path) -> BundleError:
    return BundleError(f"{path}: the file is damaged, it is not the one that was exported; export it again")
