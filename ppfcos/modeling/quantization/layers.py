"""The layers that take the places of others in a network under quantisation-aware training."""

from __future__ import annotations

from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant

from ppfcos.modeling.norm_folding import folded_weights
from ppfcos.modeling.quantization.fake import quantized_weights
from ppfcos.modeling.quantization.ranges import Ranges


class Quantizer(nn.Layer):
    """Holds the results of a layer in eight bits.

    Args:
        ranges: of all activations.
        rows: for each time that the layer runs in a forward pass, the activation's row in the ranges; None
            where the result stays as it is.
    """

    def __init__(self, ranges: Ranges, rows: Sequence[int | None]):
        super().__init__()
        self.rows = list(rows)
        self._ranges = [ranges]  # in a list, for it is no part of this layer
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        row = self.rows[self._calls % len(self.rows)]
        self._calls += 1
        return x if row is None else self._ranges[0].quantized(row, x)

    def limits(self) -> list[tuple[float, float] | None]:
        """The smallest and the largest value, for each time that the layer runs."""
        known = self._ranges[0].limits.tolist()
        return [None if row is None else tuple(known[row]) for row in self.rows]


class Limits(nn.Layer):
    """What is left of a Quantizer for the export: its ranges, as limits that a converter can see.

    Args:
        limits: as `Quantizer.limits` gives them.
    """

    def __init__(self, limits: Sequence[tuple[float, float] | None]):
        super().__init__()
        self._limits = list(limits)
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        limits = self._limits[self._calls % len(self._limits)]
        self._calls += 1
        return x if limits is None else x.clip(*limits)


class Quantized(nn.Layer):
    """A layer without weights, and what holds its results in eight bits.

    Args:
        layer: such as ReLU.
        quantizer: a Quantizer, or Limits.
    """

    def __init__(self, layer: nn.Layer, quantizer: nn.Layer):
        super().__init__()
        self.layer = layer
        self.quantizer = quantizer

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the layer."""
        return self.quantizer(self.layer(*inputs))


class FoldedNorm(nn.Layer):
    """A batch norm whose work its convolution does: weights and frozen statistics, under their old names.

    Args:
        norm: the batch norm.
    """

    def __init__(self, norm: nn.Layer):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._mean, self._variance = norm._mean, norm._variance
        self._epsilon = norm._epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is left to do."""
        return x


class QuantizedConv2D(nn.Conv2D):
    """A convolution whose weights, after the norm behind it is folded into them, have eight bits.

    Args:
        conv: its weights are taken over.
        norm: behind it; None where there is none.
        source: quantises what comes in; None where something else has done it.
        result: quantises what comes out; None where the activation behind it does.
    """

    def __init__(
        self,
        conv: nn.Conv2D,
        norm: FoldedNorm | None,
        source: Quantizer | None,
        result: Quantizer | None,
    ):
        super().__init__(**_form(conv), weight_attr=ParamAttr(initializer=Constant(0.0)), bias_attr=False)
        self.weight = conv.weight
        self.bias = conv.bias
        self._norm = [norm]  # in a list, for it has a name of its own in the model
        self.source = source
        self.result = result

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        inputs = inputs if self.source is None else self.source(inputs)
        weight, bias = self._folded()
        out = F.conv2d(
            inputs,
            quantized_weights(weight),
            bias,
            self._stride,
            self._updated_padding,
            self._dilation,
            self._groups,
        )
        return out if self.result is None else self.result(out)

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        norm = self._norm[0]
        return (self.weight, self.bias) if norm is None else folded_weights(self, norm)

    def plain(self) -> nn.Conv2D:
        """A convolution in float that does what this one and the norm behind it do."""
        weight, bias = self._folded()
        plain = nn.Conv2D(**_form(self), bias_attr=None if bias is not None else False)
        plain.weight.set_value(weight)
        if bias is not None:
            plain.bias.set_value(bias)
        return plain


def _form(conv: nn.Conv2D) -> dict:
    """What a convolution is, its weights apart."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, f"_{name}") for name in names}
