"""What feature pyramids have in common: how the workspace builds them, and what they tell the head."""

from __future__ import annotations

from paddle import ParamAttr, nn
from paddle.nn.initializer import KaimingUniform
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.convolution import Conv2D


class Pyramid(nn.Layer):
    """A neck whose levels have the same number of channels.

    Attributes:
        out_channels: of every level.
        strides: of the levels in pixels, finest first.
    """

    out_channels: int
    strides: list

    @classmethod
    def from_config(cls, cfg, input_shape: list) -> dict:
        """What the workspace takes from the backbone's `out_shape`.

        Raises:
            ValueError: a feature map has not twice the stride of the one before.
        """
        strides = [shape.stride for shape in input_shape]
        if any(second != 2 * first for first, second in zip(strides, strides[1:])):
            raise ValueError(
                f"the backbone's feature maps have the strides {strides}, and each should be twice the one "
                "before: change the backbone's return_idx"
            )
        return {
            "in_channels": [shape.channels for shape in input_shape],
            "strides": strides,
        }

    @property
    def out_shape(self) -> list:
        """Channels and stride of each level, finest first."""
        return [ShapeSpec(channels=self.out_channels, stride=stride) for stride in self.strides]


def pyramid_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> Conv2D:
    """A convolution of a feature pyramid, padded by half its kernel.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        kernel_size: odd.
        stride: of the convolution.

    Returns:
        The layer.
    """
    # Uniform within ±sqrt(3 / fan_in), as the authors' code initialises its pyramid.
    initializer = KaimingUniform(negative_slope=1.0, nonlinearity="leaky_relu")
    return Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        weight_attr=ParamAttr(initializer=initializer),
    )
