"""A model as a Paddle program: input specs, preprocessing of pixels, and the exported networks."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.environment import temporary_home
from ppfcos.errors import BundleError, ConfigError
from ppfcos.modeling.fcos import STRIDE

DYNAMIC = -1  # a dimension of an InputSpec


def network_input(
    kind: str = names.FLOAT32,
    channels: str = names.RGB,
    batch: int | None = None,
    size: Sequence[int] | None = None,
) -> NetworkInput:
    """The spec of an exported network's `image`.

    Args:
        kind: `float32` [B, 3, H, W] from 0 to 255; `uint8` [B, H, W, 3]; `nv12` uint8 [B, H·3/2, W], the Y
            plane followed by interleaved U and V, BT.601 in limited range.
        channels: `rgb` or `bgr`, except for `nv12`.
        batch: fixed batch size; None: any.
        size: fixed height and width; None: any.

    Raises:
        ConfigError: the network cannot take that input.
    """
    if batch is not None and batch < 1:
        raise ConfigError(f"--batch {batch}: a fixed batch size must be at least 1")
    if kind == names.NV12 and channels != names.RGB:
        raise ConfigError(f"--channels {channels}: NV12 has no channel order; leave it out")
    if size is not None and any(side < STRIDE or side % STRIDE for side in size):
        possible = ",".join(str(max(1, math.ceil(side / STRIDE)) * STRIDE) for side in size)
        raise ConfigError(
            f"--fixed_size {','.join(map(str, size))}: height and width must be multiples of {STRIDE}, "
            f"such as {possible}"
        )
    height, width = (None, None) if size is None else size
    layout = names.NCHW if kind == names.FLOAT32 else names.NHWC
    return NetworkInput(kind, channels, layout, batch, height, width)


def _image_spec(spec: NetworkInput) -> InputSpec:
    batch, height, width = (
        DYNAMIC if side is None else side for side in (spec.batch, spec.height, spec.width)
    )
    if spec.type == names.FLOAT32:
        return InputSpec([batch, 3, height, width], "float32", names.IMAGE)
    if spec.type == names.UINT8:
        return InputSpec([batch, height, width, 3], "uint8", names.IMAGE)
    rows = DYNAMIC if height == DYNAMIC else height * 3 // 2
    return InputSpec([batch, rows, width], "uint8", names.IMAGE)


def _pair_spec(spec: NetworkInput, name: str) -> InputSpec:
    """The spec of `im_shape` or `scale_factor`."""
    return InputSpec([DYNAMIC if spec.batch is None else spec.batch, 2], "float32", name)


def pixels_layer(spec: NetworkInput) -> nn.Layer:
    """The layer from `image` to RGB pixels [B, 3, H, W] float32, 0 to 255."""
    if spec.type == names.NV12:
        return Nv12ToRGB()
    return PackedToRGB(spec.layout == names.NHWC, spec.channels == names.BGR)


class PackedToRGB(nn.Layer):
    """From [B, H, W, 3] or [B, 3, H, W] pixels, RGB or BGR, to [B, 3, H, W] RGB float32."""

    def __init__(self, channels_last: bool, is_bgr: bool):
        super().__init__()
        self.channels_last = channels_last
        self.is_bgr = is_bgr

    def forward(self, image: Tensor) -> Tensor:
        """Convert a batch."""
        image = image.astype("float32")
        if self.channels_last:
            image = image.transpose([0, 3, 1, 2])
        if self.is_bgr:
            image = image.index_select(paddle.to_tensor([2, 1, 0]), axis=1)
        return image


class Nv12ToRGB(nn.Layer):
    """From NV12 [B, H·3/2, W] uint8 to [B, 3, H, W] RGB float32.

    Rounds as OpenCV's COLOR_YUV2RGB_NV12 (ITU-R BT.601, limited range); four pixels share one U and V.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Convert a batch."""
        # Three parts of H/2 rows each: the upper and lower half of Y, and U and V.
        thirds = image.astype("float32").unsqueeze(1).reshape([0, 3, -1, 0])
        y = thirds[:, :2].reshape([0, 1, -1, 0])
        y = (y - 16.0).clip(min=0.0) * 1.164
        u, v = (
            F.interpolate(thirds[:, 2:, :, start::2] - 128.0, scale_factor=2, mode="nearest")
            for start in (0, 1)
        )
        red = y + 1.596 * v
        green = y - 0.813 * v - 0.391 * u
        blue = y + 2.018 * u
        return paddle.floor(paddle.concat([red, green, blue], axis=1) + 0.5).clip(0.0, 255.0)


@dataclass(frozen=True)
class HeadsSpec:
    """The outputs of a network of kind `heads`.

    Attributes:
        layout: `nchw` or `nhwc`.
        distances: in `pixels` of the network's input, or in `strides` of their level.
        image_only: there is no input im_shape, so that images must fill the input: padding counts as black.
    """

    layout: str = names.NCHW
    distances: str = names.PIXELS
    image_only: bool = False


class EndToEndNetwork(nn.Layer):
    """A PPFCOS model from `image` to boxes."""

    def __init__(self, model: nn.Layer, input_spec: NetworkInput):
        super().__init__()
        self.model = model
        self.input_spec = input_spec
        self.pixels = pixels_layer(input_spec)

    def specs(self) -> list[InputSpec]:
        """The input specs."""
        pairs = [_pair_spec(self.input_spec, name) for name in (names.IM_SHAPE, names.SCALE_FACTOR)]
        return [_image_spec(self.input_spec), *pairs]

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> tuple:
        """Detect objects in a batch.

        Args:
            image: as of the input spec, padded with zeros.
            im_shape: [B, 2] float32, height and width of each image without padding.
            scale_factor: [B, 2] float32, vertical and horizontal scale of each image.

        Returns:
            bbox [N, 6] float32 (label, score, x0, y0, x1, y1 in pixels of the original images), bbox_num [B].
        """
        outputs = self.model(self._batch(image, im_shape, scale_factor))
        return outputs["bbox"], outputs["bbox_num"]

    def _batch(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> dict:
        return {"image": self.pixels(image), "im_shape": im_shape, "scale_factor": scale_factor}


class CandidatesNetwork(EndToEndNetwork):
    """An end-to-end network without NMS."""

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> tuple:
        """The fields of `ppfcos.modeling.postprocess.Candidates`."""
        return tuple(self.model.candidates(self._batch(image, im_shape, scale_factor)))


class HeadsNetwork(nn.Layer):
    """A PPFCOS model from `image` to the outputs of the head."""

    def __init__(self, model: nn.Layer, input_spec: NetworkInput, heads: HeadsSpec):
        super().__init__()
        self.model = model
        self.input_spec = input_spec
        self.heads = heads
        self.pixels = pixels_layer(input_spec)

    def specs(self) -> list[InputSpec]:
        """The input specs."""
        image = _image_spec(self.input_spec)
        return [image] if self.heads.image_only else [image, _pair_spec(self.input_spec, names.IM_SHAPE)]

    def forward(self, image: Tensor, im_shape: Tensor | None = None) -> list:
        """Run the network on a batch.

        Args:
            image: as of the input spec.
            im_shape: [B, 2] float32, height and width of each image without padding; None: without padding.

        Returns:
            Class logits of all levels, the finest first; distances; quality logits: [B, K, H_l, W_l] or
            [B, H_l, W_l, K].
        """
        pixels = self.pixels(image)
        if im_shape is None and self.input_spec.size is not None:
            im_shape = paddle.to_tensor([self.input_spec.size], "float32")
        elif im_shape is None:
            im_shape = paddle.shape(pixels)[2:].astype("float32").unsqueeze(0)
        outputs = self.model.network(pixels, im_shape)
        distances = outputs.distances
        if self.heads.distances == names.STRIDES:
            distances = [each / stride for each, stride in zip(distances, self.model.head.strides)]
        maps = [*outputs.class_logits, *distances, *outputs.quality_logits]
        if self.heads.layout == names.NHWC:
            maps = [each.transpose([0, 2, 3, 1]) for each in maps]
        return maps


def save_program(network: nn.Layer, prefix: Path) -> Path:
    """Save a network of this file as a program and `prefix`.pdiparams; a `BundleError` if impossible.

    Returns:
        The program: `prefix`.json in the form of Paddle 3.0, which later versions read too; `prefix`.pdmodel
        if Paddle has no PIR (2.6), which all versions from 2.6 read.
    """
    network.eval()
    try:
        with warnings.catch_warnings(), temporary_home():  # Paddle keeps the traced source in ~/.cache
            warnings.simplefilter("ignore")  # about operators with another argument order in PyTorch
            program = paddle.jit.to_static(network, input_spec=network.specs(), full_graph=True)
            paddle.jit.save(program, str(prefix))
    except OSError:
        raise
    except Exception as error:  # errors of Paddle's tracing and serialization have no common base
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(
            f"Paddle {paddle.__version__} could not export the model ({lines[-1].strip()}); "
            "export a model of ppfcos without changes, or change the operator that is named"
        ) from error
    if not paddle.framework.use_pir_api():
        # Names of the parameters, which no runtime reads.
        prefix.with_suffix(".pdiparams.info").unlink(missing_ok=True)
        return prefix.with_suffix(names.OLD_PROGRAM_SUFFIX)
    file = prefix.with_suffix(names.PROGRAM_SUFFIX)
    program = json.loads(file.read_text(encoding="utf-8"))
    make_readable_by_3_0(program)
    file.write_text(json.dumps(program, separators=(",", ":")), encoding="utf-8")
    return file


# Paddle reads programs of older versions, but not of newer ones: it has no step back. These are the changes
# since 3.0 in its paddle/fluid/pir/serialize_deserialize/patch, for the operators of networks.
FLOATS_UNTIL_3_2 = {
    *("bicubic_interp", "bilinear_interp", "group_norm", "leaky_relu", "leaky_relu_", "linear_interp"),
    *("logit", "nearest_interp", "pad3d", "softplus", "trilinear_interp"),
}
INT32_UNTIL_3_0 = {
    "pool2d": ("strides", "paddings"),
    "pool3d": ("kernel_size", "strides", "paddings"),
    "expand_as": ("target_shape",),
}
NEW_IN_3_2 = {"repeat_interleave": ("output_size",)}


def make_readable_by_3_0(program: dict[str, Any]) -> None:
    """Change a program, the content of a .json file, to the form in which Paddle 3.0 writes it."""
    program["base_code"]["version"] = names.FIRST_PIR_VERSION
    pending: list[Any] = [program["program"]]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
            attributes = value.get("A")
            if "#" in value and isinstance(attributes, list):
                _make_attributes_readable(value, value["#"].rpartition(".")[2])
        elif isinstance(value, list):
            pending += value


def _make_attributes_readable(operator: dict[str, Any], name: str) -> None:
    if name in FLOATS_UNTIL_3_2:
        _replace_type(operator["A"], "0.a_f64", "0.a_f32")
    for attribute in operator["A"]:
        if name in INT32_UNTIL_3_0 and attribute["N"] in INT32_UNTIL_3_0[name]:
            _replace_type(attribute, "0.a_i64", "0.a_i32")
    if name in NEW_IN_3_2:
        operator["A"] = [each for each in operator["A"] if each["N"] not in NEW_IN_3_2[name]]


def _replace_type(value: Any, old: str, new: str) -> None:
    """Replace the type of attributes in nested lists and dicts."""
    if isinstance(value, list):
        for each in value:
            _replace_type(each, old, new)
    elif isinstance(value, dict):
        if value.get("#") == old:
            value["#"] = new
        _replace_type(list(value.values()), old, new)
