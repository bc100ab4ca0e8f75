"""Quantization-aware training (QAT): fake quantization in training, and the networks that are exported.

Each uint8 activation of the exported file has one range here: the output of a convolution with its norm and
ReLU, the output of an addition with its ReLU, and the image. Pooling and resizing pass on existing values.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.autograd import PyLayer
from paddle.nn.initializer import Constant

from ppfcos.errors import ConfigError
from ppfcos.modeling.fuse import example_batch, find_conv_norm_pairs, fused_weights, replace_layer
from ppfcos.modeling.layers import Add
from ppfcos.modeling.necks.bifpn import Fusion

MAX_UINT8 = 255
MAX_INT8 = 127
MIN_SCALE = 1.1754943508222875e-38  # the smallest normal float32; below it ONNX Runtime uses a scale of 1
RELUS = (nn.ReLU, nn.ReLU6)
RANGES_NAME = "quantization"  # of the ranges in the model and its checkpoint


# Fake quantization ------------------------------------------------------------------------------------------


class _FakeQuantize(PyLayer):
    """Round to (integer − zero point)·scale, with a straight-through gradient inside the integer range."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, smallest: int, largest: int) -> Tensor:
        integers = paddle.round(x / scale) + zero_point
        ctx.save_for_backward((integers >= smallest) & (integers <= largest))
        return (integers.clip(smallest, largest) - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        (inside,) = ctx.saved_tensor()
        return gradient * inside.astype(gradient.dtype), None, None


def fake_quantize_activations(x: Tensor, limits: Tensor) -> Tensor:
    """Round float32 activations to uint8 values over the range `limits`: [2] minimum <= 0, maximum >= 0."""
    smallest, largest = limits.astype("float64")
    scale = _scale(largest - smallest, MAX_UINT8)
    zero_point = paddle.round(-smallest / scale)
    return _FakeQuantize.apply(x, scale.astype("float32"), zero_point.astype("float32"), 0, MAX_UINT8)


def fake_quantize_weights(weight: Tensor) -> Tensor:
    """Round weights [out_channels, in_channels, H, W] to int8 values with one scale per output channel."""
    largest = weight.detach().abs().amax(axis=[1, 2, 3], keepdim=True)
    scale = _scale(largest, MAX_INT8).astype("float32")
    return _FakeQuantize.apply(weight, scale, paddle.zeros_like(scale), -MAX_INT8, MAX_INT8)


def _scale(span: Tensor, steps: int) -> Tensor:
    """Return span / steps in float64, as ONNX Runtime's tools compute it."""
    span = span.astype("float64")
    scale = span / paddle.full_like(span, steps)  # Paddle divides by a Python number as x·(1/number)
    return paddle.where(scale < MIN_SCALE, paddle.ones_like(scale), scale)


class ActivationRanges(nn.Layer):
    """The ranges of all N quantized activations: moving averages over the training steps.

    The first step uses the ranges of its own batch, each other step those of the steps before it. All ranks
    have the same ranges, because the extremes of a step are taken over all of them.

    Args:
        count: N.
        momentum: fraction of the ranges that a step keeps.
        freeze_after: number of training forward passes after which the ranges no longer change: steps
            × accumulated micro-batches.

    Attributes:
        limits: [N, 2] float32 minimum <= 0 and maximum >= 0. In the checkpoint.
        observed: [1] int64 number of training forward passes. In the checkpoint.
    """

    def __init__(self, count: int, momentum: float, freeze_after: int):
        super().__init__()
        self.momentum = momentum
        self.freeze_after = freeze_after
        self.register_buffer("limits", paddle.zeros([count, 2]))
        self.register_buffer("observed", paddle.zeros([1], "int64"))
        self._extremes: dict[int, Tensor] = {}  # of this forward pass, by row
        self._initialized = False
        self.passes = 0  # started forward passes

    def is_initialized(self) -> bool:
        """Whether a step, here or before the checkpoint, has set the ranges."""
        self._initialized = self._initialized or bool(self.observed > 0)  # asks once: it waits for the device
        return self._initialized

    def quantize(self, row: int, x: Tensor) -> Tensor:
        """Fake-quantize an activation with the range of a row, and observe it in training.

        A network that was never trained computes in float.
        """
        if not self.training:
            return fake_quantize_activations(x, self.limits[row]) if self.is_initialized() else x
        with paddle.no_grad():
            zero = paddle.zeros([])
            # Not clip(), which turns infinity into the largest float.
            extremes = paddle.stack([paddle.minimum(x.amin(), zero), paddle.maximum(x.amax(), zero)])
        x = fake_quantize_activations(x, self.limits[row] if self.is_initialized() else extremes)
        self._extremes[row] = extremes
        if len(self._extremes) == len(self.limits):
            self._update()
        return x

    def start_pass(self) -> None:
        """Start a forward pass, and forget one that an exception interrupted."""
        self.passes += 1
        self._extremes = {}

    @paddle.no_grad()
    def _update(self) -> None:
        extremes = paddle.stack([self._extremes[row] for row in range(len(self.limits))])
        self._extremes = {}
        if dist.is_initialized() and dist.get_world_size() > 1:
            sign = paddle.to_tensor([-1.0, 1.0])
            outward = extremes * sign
            dist.all_reduce(outward, op=dist.ReduceOp.MAX)
            extremes = outward * sign
        rate = paddle.where(
            self.observed == 0,
            paddle.ones([1]),
            (self.observed < self.freeze_after).astype("float32") * (1 - self.momentum),
        )
        limits = self.limits + rate * (extremes - self.limits)
        # A step that is not finite changes no weights either.
        self.limits.set_value(paddle.where(paddle.isfinite(limits), limits, self.limits))
        self.observed.set_value(self.observed + 1)


class Quantizer(nn.Layer):
    """Fake-quantizes the outputs of a layer.

    Args:
        ranges: of all activations.
        rows: of the ranges, one for each call of the layer in a forward pass; None: output not quantized.
    """

    def __init__(self, ranges: ActivationRanges, rows: Sequence[int | None]):
        super().__init__()
        self.rows = list(rows)
        self._ranges = [ranges]  # in a list, since it is not a sublayer
        self._calls = self._pass = 0  # calls of this forward pass, and its number

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same shape."""
        if self._pass != self._ranges[0].passes:
            self._pass, self._calls = self._ranges[0].passes, 0
        row = self.rows[self._calls % len(self.rows)]
        self._calls += 1
        return x if row is None else self._ranges[0].quantize(row, x)

    def limits(self) -> list[tuple[float, float] | None]:
        """Return minimum and maximum for each call of the layer."""
        limits = self._ranges[0].limits.tolist()
        return [None if row is None else tuple(limits[row]) for row in self.rows]


class Clip(nn.Layer):
    """Clips to the ranges of a Quantizer, so that a converter can read them from the graph."""

    def __init__(self, limits: Sequence[tuple[float, float] | None]):
        super().__init__()
        self._limits = list(limits)
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same shape."""
        limits = self._limits[self._calls % len(self._limits)]
        self._calls += 1
        return x if limits is None else x.clip(*limits)


class QuantizedLayer(nn.Layer):
    """A layer without weights, such as ReLU, followed by a Quantizer or Clip."""

    def __init__(self, layer: nn.Layer, quantizer: nn.Layer):
        super().__init__()
        self.layer = layer
        self.quantizer = quantizer

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the layer."""
        return self.quantizer(self.layer(*inputs))


class FusedNorm(nn.Layer):
    """An identity that holds weights and statistics of a fused batch norm under their names."""

    def __init__(self, norm: nn.Layer):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._mean, self._variance = norm._mean, norm._variance
        self._epsilon = norm._epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x


class QuantizedConv2D(nn.Conv2D):
    """A convolution with fake-quantized weights, after the norm that follows it is fused into them.

    Args:
        conv: provides the weights.
        norm: the batch norm after it; None if there is none.
        source: quantizes the inputs; None if they are quantized already.
        result: quantizes the outputs; None if the activation after it does.
    """

    def __init__(
        self, conv: nn.Conv2D, norm: FusedNorm | None, source: Quantizer | None, result: Quantizer | None
    ):
        attributes = {"weight_attr": ParamAttr(initializer=Constant(0.0)), "bias_attr": False}
        super().__init__(**_conv_arguments(conv), **attributes)
        self.weight = conv.weight
        self.bias = conv.bias
        self._norm = [norm]  # in a list, since the model holds it under its own name
        self.source = source
        self.result = result

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        inputs = inputs if self.source is None else self.source(inputs)
        weight, bias = self._fused()
        out = F.conv2d(
            inputs,
            fake_quantize_weights(weight),
            bias,
            self._stride,
            self._padding,
            self._dilation,
            self._groups,
        )
        return out if self.result is None else self.result(out)

    def _fused(self) -> tuple[Tensor, Tensor | None]:
        norm = self._norm[0]
        return (self.weight, self.bias) if norm is None else fused_weights(self, norm)

    def to_float(self) -> nn.Conv2D:
        """Return a float convolution with the norm fused."""
        weight, bias = self._fused()
        conv = nn.Conv2D(**_conv_arguments(self), bias_attr=None if bias is not None else False)
        conv.weight.set_value(weight)
        if bias is not None:
            conv.bias.set_value(bias)
        return conv


def _conv_arguments(conv: nn.Conv2D) -> dict:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, f"_{name}") for name in names}


# Models -----------------------------------------------------------------------------------------------------


def prepare_qat(model: nn.Layer, momentum: float, freeze_after: int) -> nn.Layer:
    """Insert fake quantization into a PPFCOS, in place. Norms are frozen; weights keep their names.

    Args:
        model: a PPFCOS.
        momentum: of ActivationRanges.
        freeze_after: of ActivationRanges.

    Raises:
        ConfigError: a part of the network cannot be quantized.
    """
    training = model.training
    model.eval()
    norms = {conv: norm for norm, conv in find_conv_norm_pairs(model)}
    _check_layers(model, set(norms.values()))
    sources, results, count = _assign_rows(model, norms)
    ranges = ActivationRanges(count, momentum, freeze_after)
    for layer in list(model.sublayers()):
        source = Quantizer(ranges, sources[layer]) if layer in sources else None
        result = Quantizer(ranges, results[layer]) if layer in results else None
        if isinstance(layer, nn.Conv2D):
            norm = None
            if layer in norms:
                norm = FusedNorm(norms[layer])
                replace_layer(model, norms[layer], norm)
            replace_layer(model, layer, QuantizedConv2D(layer, norm, source, result))
        elif result is not None:
            replace_layer(model, layer, QuantizedLayer(layer, result))
    setattr(model, RANGES_NAME, ranges)
    # A deep copy of the model copies the arguments of the hook, too.
    model.backbone.register_forward_pre_hook(functools.partial(_start_pass, ranges))
    if training:
        model.train()
    return model


def _start_pass(ranges: ActivationRanges, *_: object) -> None:
    ranges.start_pass()


def get_ranges(model: nn.Layer) -> ActivationRanges | None:
    """Return the activation ranges of a model; None without quantization-aware training."""
    return getattr(model, RANGES_NAME, None)


def is_range(name: str) -> bool:
    """Whether an entry of a state dict belongs to the activation ranges."""
    return name.startswith(f"{RANGES_NAME}.")


def float_copy(model: nn.Layer) -> nn.Layer:
    """Return a plain float copy of a QAT model, in evaluation mode, with fused norms."""
    return _copy(model, lambda layer, quantizer: layer)


def clipped_copy(model: nn.Layer) -> nn.Layer:
    """Return a `float_copy` that clips each activation to its range.

    The ranges thus pass through any conversion, to the right places of its result.
    """
    return _copy(model, lambda layer, quantizer: QuantizedLayer(layer, Clip(quantizer.limits())))


def _copy(model: nn.Layer, join: Callable[[nn.Layer, Quantizer], nn.Layer]) -> nn.Layer:
    model = copy.deepcopy(model)
    model.eval()
    for layer in list(model.sublayers()):
        if isinstance(layer, QuantizedConv2D):
            new = layer.to_float()
            if layer.source is not None:
                new = nn.Sequential(join(nn.Identity(), layer.source), new)
            if layer.result is not None:
                new = join(new, layer.result)
            replace_layer(model, layer, new)
        elif isinstance(layer, QuantizedLayer):
            replace_layer(model, layer, join(layer.layer, layer.quantizer))
        elif isinstance(layer, FusedNorm):
            replace_layer(model, layer, nn.Identity())
    delattr(model, RANGES_NAME)
    return model


def _check_layers(model: nn.Layer, fused_norms: set[nn.Layer]) -> None:
    for name, layer in model.named_sublayers():
        if isinstance(layer, Fusion) and layer.weights is not None:
            raise ConfigError(f"{name} cannot be quantized: set PPFCOSBiFPN.fusion: sum")
        if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm)) and layer not in fused_norms:
            raise ConfigError(
                f"{name} cannot be quantized, because it does not follow exactly one convolution: "
                "set PPFCOSHead.norm_per_level: false"
            )


class _Call(NamedTuple):
    layer: nn.Layer
    inputs: tuple
    output: Tensor


def _assign_rows(
    model: nn.Layer, norms: dict[nn.Layer, nn.Layer]
) -> tuple[dict[nn.Layer, list], dict[nn.Layer, list], int]:
    """Return the rows of the inputs and of the outputs of each layer, one a call, and the number of rows."""
    calls = _trace(model, norms)
    consumers: dict[int, list[nn.Layer]] = {}
    for call in calls:
        for tensor in call.inputs:
            consumers.setdefault(id(tensor), []).append(call.layer)
    produced: set[int] = set()
    sources: dict[nn.Layer, list] = {}
    results: dict[nn.Layer, list] = {}
    count = 0
    for call in calls:
        if isinstance(call.layer, nn.Conv2D) and id(call.inputs[0]) not in produced:
            if count:
                name = next(name for name, layer in model.named_sublayers() if layer is call.layer)
                raise ConfigError(
                    f"{name} cannot be quantized: its input is not the output of a convolution, addition or "
                    "ReLU; use PPFCOSMobileNetV2, or PPFCOSEfficientNet with activation: relu and "
                    "squeeze_excitation: false"
                )
            sources[call.layer], count = [0], 1  # the image
        next_layers = consumers.get(id(call.output), [])
        before_relu = (
            not isinstance(call.layer, RELUS)
            and next_layers
            and all(isinstance(layer, RELUS) for layer in next_layers)
        )
        results.setdefault(call.layer, []).append(None if before_relu else count)
        count += not before_relu
        produced.add(id(call.output))
    return sources, {layer: rows for layer, rows in results.items() if set(rows) != {None}}, count


def _trace(model: nn.Layer, norms: dict[nn.Layer, nn.Layer]) -> list[_Call]:
    """Return the calls of convolutions with their norms, additions and ReLUs of a forward pass, in order."""
    calls: list[_Call] = []
    pending: dict[nn.Layer, tuple] = {}  # convolutions and their inputs, by the norm that is still to come

    def after(layer: nn.Layer, inputs: tuple, output: Tensor) -> None:
        if layer in norms:
            pending[norms[layer]] = layer, inputs
        elif layer in pending:
            conv, inputs = pending.pop(layer)
            calls.append(_Call(conv, inputs, output))
        else:
            calls.append(_Call(layer, inputs, output))

    fused_norms = set(norms.values())
    hooks = [
        layer.register_forward_post_hook(after)
        for layer in model.sublayers()
        if isinstance(layer, (nn.Conv2D, Add, *RELUS)) or layer in fused_norms
    ]
    batch = example_batch()
    with paddle.no_grad():
        model.network(batch["image"], batch["im_shape"])
    for hook in hooks:
        hook.remove()
    return calls
