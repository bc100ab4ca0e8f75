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


def find_conv_norm_pairs(model: nn.Layer) -> list[tuple[nn.Layer, nn.Layer]]:
    """Norms and the convolutions that they always follow, found by watching one image go through.

    Args:
        model: a PPFCOS in evaluation mode.

    Returns:
        Pairs of norm and convolution. A norm that is not behind one convolution alone is in none.
    """
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
    with paddle.no_grad():
        model(example_batch())
    for hook in hooks:
        hook.remove()
    return [pair for pair, count in meetings.items() if count == calls[pair[0]] == calls[pair[1]]]


def example_batch() -> dict[str, Tensor]:
    """One black image, for watching a model at work."""
    size = paddle.full([1, 2], float(SMALLEST_IMAGE))
    image = paddle.zeros([1, 3, SMALLEST_IMAGE, SMALLEST_IMAGE])
    return {"image": image, "im_shape": size, "scale_factor": paddle.ones([1, 2])}


def fused_weights(conv: nn.Layer, norm: nn.Layer) -> tuple[Tensor, Tensor]:
    """norm(conv(x)) = (w·f) x + (b − mean)·f + shift, where f is the norm's weight by its deviation.

    Args:
        conv: the convolution.
        norm: behind it, with the attributes of a batch norm; its stored statistics count.

    Returns:
        The kernel w·f and the bias [out_channels] of a convolution that does both.
    """
    factor = 1 / paddle.sqrt(norm._variance + norm._epsilon)
    factor = factor if norm.weight is None else norm.weight * factor
    shift = -norm._mean if conv.bias is None else conv.bias - norm._mean
    shift = shift * factor if norm.bias is None else shift * factor + norm.bias
    return conv.weight * factor.reshape([-1, 1, 1, 1]), shift


def replace_layer(model: nn.Layer, old: nn.Layer, new: nn.Layer) -> None:
    """Put a layer into another's place, wherever that is in a model.

    Args:
        model: changed in place.
        old: the layer that goes.
        new: the one that comes, under the same name.
    """
    for parent in model.sublayers(include_self=True):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def fuse_batch_norms(model: nn.Layer) -> nn.Layer:
    """A copy of a model for inference, in which convolutions do the work of the batch norms behind them.

    Args:
        model: a PPFCOS; it stays as it is.

    Returns:
        The copy, in evaluation mode. A norm that is not behind one convolution alone stays.
    """
    model = copy.deepcopy(model)
    model.eval()
    for norm, conv in find_conv_norm_pairs(model):
        _fold(norm, conv)
        replace_layer(model, norm, nn.Identity())
    return model


def _fold(norm: nn.Layer, conv: nn.Layer) -> None:
    weight, bias = fused_weights(conv, norm)
    conv.weight.set_value(weight)
    if conv.bias is None:
        conv.bias = conv.create_parameter([len(bias)], is_bias=True)
    conv.bias.set_value(bias)
