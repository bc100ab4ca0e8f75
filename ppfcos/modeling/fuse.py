"""Fuses batch norms into the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter

import paddle
from paddle import Tensor, nn
from paddle.vision.ops import DeformConv2D

EXAMPLE_SIZE = 64


def find_conv_norm_pairs(model: nn.Layer) -> list[tuple[nn.Layer, nn.Layer]]:
    """Find batch norms that always follow the same convolution, by tracing one image.

    Args:
        model: a PPFCOS in evaluation mode.

    Returns:
        Pairs of norm and convolution.
    """
    outputs: dict[int, tuple[nn.Layer, Tensor]] = {}  # keeps the tensors alive, so that ids are unique
    calls, pairs = Counter(), Counter()

    def after_conv(conv: nn.Layer, inputs: tuple, output: Tensor) -> None:
        calls[conv] += 1
        outputs[id(output)] = conv, output

    def before_norm(norm: nn.Layer, inputs: tuple) -> None:
        calls[norm] += 1
        if id(inputs[0]) in outputs:
            pairs[norm, outputs[id(inputs[0])][0]] += 1

    hooks = []
    for layer in model.sublayers():
        if isinstance(layer, (nn.Conv2D, DeformConv2D)):
            hooks.append(layer.register_forward_post_hook(after_conv))
        elif isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm)):
            hooks.append(layer.register_forward_pre_hook(before_norm))
    with paddle.no_grad():
        model(example_batch())
    for hook in hooks:
        hook.remove()
    return [pair for pair, count in pairs.items() if count == calls[pair[0]] == calls[pair[1]]]


def example_batch() -> dict[str, Tensor]:
    """Return a black image for tracing a model."""
    size = paddle.full([1, 2], float(EXAMPLE_SIZE))
    image = paddle.zeros([1, 3, EXAMPLE_SIZE, EXAMPLE_SIZE])
    return {"image": image, "im_shape": size, "scale_factor": paddle.ones([1, 2])}


def fused_weights(conv: nn.Layer, norm: nn.Layer) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that equals norm(conv(x)) with the running statistics."""
    factor = 1 / paddle.sqrt(norm._variance + norm._epsilon)
    factor = factor if norm.weight is None else norm.weight * factor
    shift = -norm._mean if conv.bias is None else conv.bias - norm._mean
    shift = shift * factor if norm.bias is None else shift * factor + norm.bias
    return conv.weight * factor.reshape([-1, 1, 1, 1]), shift


def replace_layer(model: nn.Layer, old: nn.Layer, new: nn.Layer) -> None:
    """Replace a layer everywhere in a model, in place."""
    for parent in model.sublayers(include_self=True):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def fuse_batch_norms(model: nn.Layer) -> nn.Layer:
    """Return a copy of a PPFCOS, in evaluation mode, with batch norms fused into convolutions.

    A norm that does not follow exactly one convolution stays.
    """
    model = copy.deepcopy(model)
    model.eval()
    for norm, conv in find_conv_norm_pairs(model):
        weight, bias = fused_weights(conv, norm)
        conv.weight.set_value(weight)
        if conv.bias is None:
            conv.bias = conv.create_parameter([len(bias)], is_bias=True)
        conv.bias.set_value(bias)
        replace_layer(model, norm, nn.Identity())
    return model
