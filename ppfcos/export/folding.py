"""Batch norms that follow a convolution, folded into it."""

from __future__ import annotations

import copy
from collections import Counter

import paddle
from paddle import Tensor, nn
from paddle.nn.layer.norm import _BatchNormBase
from paddle.vision.ops import DeformConv2D

CONVOLUTIONS = (nn.Conv2D, DeformConv2D)
SMALLEST_IMAGE = 64


def folded_copy(model: nn.Layer) -> nn.Layer:
    """A copy of a model for inference, in which convolutions do the work of the batch norms behind them.

    Args:
        model: a PPFCOS; it stays as it is.

    Returns:
        The copy, in evaluation mode. A norm that is not behind one convolution alone stays.
    """
    model = copy.deepcopy(model)
    model.eval()
    for norm, conv in _pairs(model):
        _fold(norm, conv)
        _replace(model, norm, nn.Identity())
    return model


def _pairs(model: nn.Layer) -> list[tuple[nn.Layer, nn.Layer]]:
    """Norms and the convolutions that they always follow, found by watching one image go through."""
    made_by: dict[int, tuple[nn.Layer, Tensor]] = {}  # holds the tensors, or a number would be given twice
    calls, meetings = Counter(), Counter()

    def convolved(conv: nn.Layer, inputs: tuple, output: Tensor) -> None:
        calls[conv] += 1
        made_by[id(output)] = conv, output

    def normalises(norm: nn.Layer, inputs: tuple) -> None:
        calls[norm] += 1
        if id(inputs[0]) in made_by:
            meetings[norm, made_by[id(inputs[0])][0]] += 1

    hooks = []
    for layer in model.sublayers():
        if isinstance(layer, CONVOLUTIONS):
            hooks.append(layer.register_forward_post_hook(convolved))
        elif isinstance(layer, _BatchNormBase):
            hooks.append(layer.register_forward_pre_hook(normalises))
    image = paddle.zeros([1, 3, SMALLEST_IMAGE, SMALLEST_IMAGE])
    size = paddle.full([1, 2], float(SMALLEST_IMAGE))
    with paddle.no_grad():
        model({"image": image, "im_shape": size, "scale_factor": paddle.ones([1, 2])})
    for hook in hooks:
        hook.remove()
    return [pair for pair, count in meetings.items() if count == calls[pair[0]] == calls[pair[1]]]


def _fold(norm: nn.Layer, conv: nn.Layer) -> None:
    """norm(conv(x)) = (w·f) x + (b − mean)·f + shift, where f is the norm's weight by its deviation."""
    factor = 1 / paddle.sqrt(norm._variance + norm._epsilon)
    factor = factor if norm.weight is None else norm.weight * factor
    shift = -norm._mean if conv.bias is None else conv.bias - norm._mean
    shift = shift * factor if norm.bias is None else shift * factor + norm.bias
    conv.weight.set_value(conv.weight * factor.reshape([-1, 1, 1, 1]))
    if conv.bias is None:
        conv.bias = conv.create_parameter([len(factor)], is_bias=True)
    conv.bias.set_value(shift)


def _replace(model: nn.Layer, old: nn.Layer, new: nn.Layer) -> None:
    for parent in model.sublayers(include_self=True):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
