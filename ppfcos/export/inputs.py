"""The image as an exported network takes it, and what turns that into the pixels that the model takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.errors import ConfigError
from ppfcos.modeling.fcos import STRIDE

FREE = -1  # a size in Paddle's words


def network_input(
    kind: str = names.FLOAT32,
    channels: str = names.RGB,
    batch: int | None = None,
    size: Sequence[int] | None = None,
) -> NetworkInput:
    """What an exported network's `image` shall be.

    Args:
        kind: `float32` [B, 3, H, W] from 0 to 255; `uint8` [B, H, W, 3]; `nv12` uint8 [B, H·3/2, W], the
            plane of Y and below it U and V by turns, BT.601 of limited range.
        channels: `rgb` or `bgr`, the order of the first two kinds.
        batch: B; None leaves it free.
        size: H and W; None leaves them free.

    Returns:
        The description.

    Raises:
        ConfigError: the network cannot take that.
    """
    if batch is not None and batch < 1:
        raise ConfigError(f"--batch {batch}: a fixed batch holds at least one image")
    if kind == names.NV12 and channels != names.RGB:
        raise ConfigError(f"--channels {channels}: NV12 has no channels to be ordered; leave it out")
    if size is not None and any(side < STRIDE or side % STRIDE for side in size):
        possible = ",".join(str(max(1, math.ceil(side / STRIDE)) * STRIDE) for side in size)
        raise ConfigError(
            f"--fixed_size {','.join(map(str, size))}: height and width must be multiples of {STRIDE}, "
            f"such as {possible}"
        )
    height, width = (None, None) if size is None else size
    order = names.NCHW if kind == names.FLOAT32 else names.NHWC
    return NetworkInput(kind, channels, order, batch, height, width)


def image_spec(form: NetworkInput) -> InputSpec:
    """Shape and type of the `image`; -1 is free."""
    batch, height, width = (FREE if side is None else side for side in (form.batch, form.height, form.width))
    if form.type == names.FLOAT32:
        return InputSpec([batch, 3, height, width], "float32", names.IMAGE)
    if form.type == names.UINT8:
        return InputSpec([batch, height, width, 3], "uint8", names.IMAGE)
    rows = FREE if height == FREE else height * 3 // 2
    return InputSpec([batch, rows, width], "uint8", names.IMAGE)


def pair_spec(form: NetworkInput, name: str) -> InputSpec:
    """Shape and type of `im_shape` and `scale_factor`, which go with that image."""
    return InputSpec([FREE if form.batch is None else form.batch, 2], "float32", name)


def image_layer(form: NetworkInput) -> nn.Layer:
    """What makes [B, 3, H, W] float32 from 0 to 255, red first, of the `image`."""
    if form.type == names.NV12:
        return Nv12Image()
    return PackedImage(form.layout == names.NHWC, form.channels == names.BGR)


class PackedImage(nn.Layer):
    """Three values a pixel, in any order.

    Args:
        channels_last: the image is [B, H, W, 3], else [B, 3, H, W].
        blue_first: its channels are blue, green, red.
    """

    def __init__(self, channels_last: bool, blue_first: bool):
        super().__init__()
        self.channels_last = channels_last
        self.blue_first = blue_first

    def forward(self, image: Tensor) -> Tensor:
        """To [B, 3, H, W] float32, red first."""
        image = image.astype("float32")
        if self.channels_last:
            image = image.transpose([0, 3, 1, 2])
        if self.blue_first:
            image = image.index_select(paddle.to_tensor([2, 1, 0]), axis=1)
        return image


class Nv12Image(nn.Layer):
    """NV12, as cameras and video decoders give it.

    The conversion is OpenCV's COLOR_YUV2RGB_NV12 (ITU-R BT.601, limited range), whole numbers and all: four
    pixels share a U and a V.
    """

    def forward(self, image: Tensor) -> Tensor:
        """From [B, H·3/2, W] uint8 to [B, 3, H, W] float32, red first."""
        # Three parts of H/2 rows each: upper and lower half of Y, and the rows of U and V.
        thirds = image.astype("float32").unsqueeze(1).reshape([0, 3, -1, 0])
        luma = thirds[:, :2].reshape([0, 1, -1, 0])
        luma = (luma - 16.0).clip(min=0.0) * 1.164
        blueness = _doubled(thirds[:, 2:, :, 0::2] - 128.0)
        redness = _doubled(thirds[:, 2:, :, 1::2] - 128.0)
        red = luma + 1.596 * redness
        green = luma - 0.813 * redness - 0.391 * blueness
        blue = luma + 2.018 * blueness
        return paddle.floor(paddle.concat([red, green, blue], axis=1) + 0.5).clip(0.0, 255.0)


def _doubled(plane: Tensor) -> Tensor:
    """[B, 1, H, W] to [B, 1, 2H, 2W], every value four times."""
    return F.interpolate(plane, scale_factor=2, mode="nearest")
