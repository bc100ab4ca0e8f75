"""Where a network is quantised while it trains, and the networks that are exported of it.

One activation of the exported file in eight bits is one range here: what a convolution gives, with its norm
and its ReLU, what a sum gives, with its ReLU, and the image. Pooling and resizing pass on values that are
there already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import paddle
from paddle import Tensor, nn

from ppfcos.modeling.fuse import norms_behind_convolutions, replace_layer, smallest_batch
from ppfcos.modeling.layers import Sum
from ppfcos.modeling.necks.bifpn import Fusion
from ppfcos.modeling.qat.layers import FoldedNorm, Limits, Quantized, QuantizedConv2D, Quantizer, Ranges

ACTIVATIONS = (nn.ReLU, nn.ReLU6)
UNKNOWN = (
    "what it takes is not made by a convolution, a sum or ReLU; take PPFCOSMobileNetV2, or "
    "PPFCOSEfficientNet with activation: relu and squeeze_excitation: false"
)
NAME = "quantization"  # of the ranges in the model, and so in its checkpoint


class Call(NamedTuple):
    """A layer at work once."""

    layer: nn.Layer
    inputs: tuple
    output: Tensor


def make_quantization_aware(model: nn.Layer, momentum: float, freeze_after: int) -> nn.Layer:
    """Let a network compute with the eight bits that it will be exported in. Its norms are frozen.

    Args:
        model: a PPFCOS; changed in place. Its weights keep their names.
        momentum: of the activations' ranges, as `Ranges` takes it.
        freeze_after: likewise.

    Returns:
        The same model.

    Raises:
        ValueError: a part of the network is not one that can be quantised.
    """
    training = model.training
    model.eval()
    _check_parts(model)
    norms = {conv: norm for norm, conv in norms_behind_convolutions(model)}
    _check_norms(model, set(norms.values()))
    sources, results, count = _rows(model, norms)
    ranges = Ranges(count, momentum, freeze_after)
    for layer in list(model.sublayers()):
        source = Quantizer(ranges, sources[layer]) if layer in sources else None
        result = Quantizer(ranges, results[layer]) if layer in results else None
        if isinstance(layer, nn.Conv2D):
            folded = None
            if layer in norms:
                folded = FoldedNorm(norms[layer])
                replace_layer(model, norms[layer], folded)
            replace_layer(model, layer, QuantizedConv2D(layer, folded, source, result))
        elif result is not None:
            replace_layer(model, layer, Quantized(layer, result))
    setattr(model, NAME, ranges)
    if training:
        model.train()
    return model


def ranges_of(model: nn.Layer) -> Ranges | None:
    """The ranges of a model's activations; None where it is not quantisation-aware."""
    return getattr(model, NAME, None)


def is_range(name: str) -> bool:
    """Whether something in a model's state belongs to the ranges of its activations."""
    return name.startswith(f"{NAME}.")


def float_copy(model: nn.Layer) -> nn.Layer:
    """A quantisation-aware network's weights in a plain network, in evaluation mode, norms folded.

    Args:
        model: it stays as it is.

    Returns:
        The copy.
    """
    return _copy(model, lambda layer, quantizer: layer)


def limited_copy(model: nn.Layer) -> nn.Layer:
    """As `float_copy`, with every range in it as an operation that limits values to it.

    So the ranges go through any conversion, and stand where they belong in what comes out.

    Args:
        model: it stays as it is.

    Returns:
        The copy.
    """
    return _copy(model, lambda layer, quantizer: Quantized(layer, Limits(quantizer.limits())))


def _copy(model: nn.Layer, joined: Callable[[nn.Layer, Quantizer], nn.Layer]) -> nn.Layer:
    model = copy.deepcopy(model)
    model.eval()
    for layer in list(model.sublayers()):
        if isinstance(layer, QuantizedConv2D):
            plain = layer.plain()
            if layer.source is not None:
                plain = nn.Sequential(joined(nn.Identity(), layer.source), plain)
            if layer.result is not None:
                plain = joined(plain, layer.result)
            replace_layer(model, layer, plain)
        elif isinstance(layer, Quantized):
            replace_layer(model, layer, joined(layer.layer, layer.quantizer))
        elif isinstance(layer, FoldedNorm):
            replace_layer(model, layer, nn.Identity())
    delattr(model, NAME)
    return model


def _check_parts(model: nn.Layer) -> None:
    for name, layer in model.named_sublayers():
        if isinstance(layer, Fusion) and layer.weights is not None:
            raise ValueError(f"{name} cannot be trained in eight bits: set PPFCOSBiFPN.fusion: sum")


def _check_norms(model: nn.Layer, folded: set[nn.Layer]) -> None:
    for name, layer in model.named_sublayers():
        if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm)) and layer not in folded:
            raise ValueError(
                f"{name} cannot be trained in eight bits, for it is not the norm of one convolution: "
                "set PPFCOSHead.norm_per_level: false"
            )


def _rows(
    model: nn.Layer, norms: dict[nn.Layer, nn.Layer]
) -> tuple[dict[nn.Layer, list], dict[nn.Layer, list], int]:
    """For each layer and each time that it runs, the rows of what comes in and of what goes out."""
    calls = _watched(model, norms)
    takers: dict[int, list[nn.Layer]] = {}
    for call in calls:
        for tensor in call.inputs:
            takers.setdefault(id(tensor), []).append(call.layer)
    made: set[int] = set()
    sources: dict[nn.Layer, list] = {}
    results: dict[nn.Layer, list] = {}
    count = 0
    for call in calls:
        if isinstance(call.layer, nn.Conv2D) and id(call.inputs[0]) not in made:
            if count:
                raise ValueError(f"{_name(model, call.layer)} cannot be trained in eight bits: {UNKNOWN}")
            sources[call.layer], count = [0], 1  # the image
        taken_by = takers.get(id(call.output), [])
        passes = not isinstance(call.layer, ACTIVATIONS) and taken_by
        rectified = passes and all(isinstance(layer, ACTIVATIONS) for layer in taken_by)
        results.setdefault(call.layer, []).append(None if rectified else count)
        count += not rectified
        made.add(id(call.output))
    return sources, {layer: rows for layer, rows in results.items() if set(rows) != {None}}, count


def _watched(model: nn.Layer, norms: dict[nn.Layer, nn.Layer]) -> list[Call]:
    """The convolutions with their norms, the sums and the activations of a forward pass, in their order."""
    calls: list[Call] = []
    pending: dict[nn.Layer, tuple] = {}  # inputs of convolutions whose norm is still to come

    def after(layer: nn.Layer, inputs: tuple, output: Tensor) -> None:
        if layer in norms:
            pending[norms[layer]] = layer, inputs
        elif layer in pending:
            conv, inputs = pending.pop(layer)
            calls.append(Call(conv, inputs, output))
        else:
            calls.append(Call(layer, inputs, output))

    watched = [
        layer
        for layer in model.sublayers()
        if isinstance(layer, (nn.Conv2D, Sum, *ACTIVATIONS)) or layer in set(norms.values())
    ]
    hooks = [layer.register_forward_post_hook(after) for layer in watched]
    batch = smallest_batch()
    with paddle.no_grad():
        model.network(batch["image"], batch["im_shape"])
    for hook in hooks:
        hook.remove()
    return calls


def _name(model: nn.Layer, wanted: nn.Layer) -> str:
    return next(name for name, layer in model.named_sublayers() if layer is wanted)
