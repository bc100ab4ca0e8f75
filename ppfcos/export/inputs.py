"""The image as an exported network takes it, and what turns that into the pixels that the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppfcos.errors import ConfigError
from ppfcos.modeling.fcos import STRIDE

TYPES = ("float32", "uint8", "nv12")
CHANNELS = ("rgb", "bgr")


@dataclass(frozen=True)
class InputForm:
    """What the exported network's `image` is.

    Attributes:
        type: `float32` [B, 3, H, W] from 0 to 255; `uint8` [B, H, W, 3]; `nv12` uint8 [B, H·3/2, W], the
            plane of Y and below it U and V by turns, BT.601 of limited range.
        channels: `rgb` or `bgr`, the order of the first two types.
        batch: B; None leaves it free.
        height: H, None leaves it free.
        width: W, likewise.

    Raises:
        ConfigError: a value is none of those named, or the network cannot take that size.
    """

    type: str = "float32"
    channels: str = "rgb"
    batch: int | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self):
        if self.type not in TYPES:
            raise ConfigError(f"--input {self.type} is not known; take {', '.join(TYPES)}")
        if self.channels not in CHANNELS:
            raise ConfigError(f"--channels {self.channels} is not known; take {', '.join(CHANNELS)}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: a fixed batch holds at least one image")
        sides = (self.height, self.width)
        if (self.height is None) != (self.width is None):
            raise ConfigError("--fixed_size takes the height and the width, or is left out")
        if self.height is not None and any(side < STRIDE or side % STRIDE for side in sides):
            raise ConfigError(
                f"--fixed_size {self.height},{self.width}: both must be multiples of {STRIDE}, "
                f"such as {_next_multiple(self.height)},{_next_multiple(self.width)}"
            )

    @property
    def layout(self) -> str | None:
        """`nchw`, `nhwc`, or None where an image is two planes."""
        return {"float32": "nchw", "uint8": "nhwc", "nv12": None}[self.type]

    def image_spec(self) -> InputSpec:
        """Shape and type of the `image`; -1 is free."""
        batch, height, width = (-1 if side is None else side for side in (self.batch, self.height, self.width))
        if self.type == "float32":
            return InputSpec([batch, 3, height, width], "float32", "image")
        if self.type == "uint8":
            return InputSpec([batch, height, width, 3], "uint8", "image")
        return InputSpec([batch, -1 if height < 0 else height * 3 // 2, width], "uint8", "image")

    def pair_spec(self, name: str) -> InputSpec:
        """Shape and type of `im_shape` and `scale_factor`."""
        return InputSpec([-1 if self.batch is None else self.batch, 2], "float32", name)

    def layer(self) -> nn.Layer:
        """What makes [B, 3, H, W] from 0 to 255, red first, of the `image`."""
        if self.type == "nv12":
            return Nv12Image()
        return PackedImage(channels_last=self.type == "uint8", blue_first=self.channels == "bgr")

    def inputs_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch as this input takes it.

        Args:
            batch: `image` [B, 3, H, W] float32 of whole numbers from 0 to 255, red first, and whatever else.

        Returns:
            The same with another `image`.
        """
        image = batch["image"]
        if self.type == "nv12":
            image = np.stack([nv12_of(picture.transpose(1, 2, 0).astype(np.uint8)) for picture in image])
        else:
            image = image[:, ::-1] if self.channels == "bgr" else image
            image = image.transpose(0, 2, 3, 1).astype(np.uint8) if self.type == "uint8" else image
        return {**batch, "image": np.ascontiguousarray(image)}


def _next_multiple(side: int) -> int:
    return max(1, -(-side // STRIDE)) * STRIDE


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
        thirds = image.astype("float32").unsqueeze(1).reshape([0, 3, -1, image.shape[-1]])
        luma = thirds[:, :2].flatten(1, 2).unsqueeze(1)
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


def nv12_of(picture: np.ndarray) -> np.ndarray:
    """A picture as NV12.

    Args:
        picture: [H, W, 3] uint8, red first, H and W even.

    Returns:
        [H·3/2, W] uint8.
    """
    height, width = picture.shape[:2]
    planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    chroma = planes[height:].reshape(2, -1)
    return np.concatenate([planes[:height], chroma.T.reshape(height // 2, width)])
