"""PaddleDetection's backbones, trained with frozen batch norms, at less time and memory.

A batch norm whose statistics and weights do not change is a factor and a shift per channel. Folded into the
convolution before it, the step needs neither the norm's pass over the feature map nor its copy of it, and the
ReLU behind can work in place: one feature map stays in memory for the backward pass, where PaddleDetection
keeps three. The weights and their names stay what they are.
"""

from __future__ import annotations

import types

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from ppdet.modeling.backbones.resnet import ConvNormLayer

from ppfcos.modeling.layers import scaled_conv


def fold_frozen_norms(backbone: nn.Layer) -> nn.Layer:
    """Let the convolutions of a ResNet apply their frozen batch norms themselves while training.

    Args:
        backbone: any backbone; only PaddleDetection's `ConvNormLayer` with a frozen norm is touched.

    Returns:
        The same backbone.
    """
    for layer in backbone.sublayers():
        if isinstance(layer, ConvNormLayer) and _is_foldable(layer):
            layer.forward = types.MethodType(_forward_folded, layer)
    return backbone


def _is_foldable(layer: ConvNormLayer) -> bool:
    frozen = (
        layer.norm._use_global_stats and layer.norm.weight.stop_gradient and layer.norm.bias.stop_gradient
    )
    return bool(frozen) and not layer.dcn_v2


def _forward_folded(self: ConvNormLayer, inputs: Tensor) -> Tensor:
    if not self.training:
        # An exported program should show convolution and norm: inference engines fold them for good.
        return ConvNormLayer.forward(self, inputs)
    norm = self.norm
    factor = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
    shift = norm.bias - norm._mean * factor
    out = scaled_conv(inputs, self.conv, factor, shift)
    return F.relu_(out) if self.act == "relu" else out
