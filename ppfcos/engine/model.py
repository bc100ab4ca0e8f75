"""The model that a configuration describes."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import paddle
from paddle import nn
from paddle.static import InputSpec
from ppdet.core.workspace import create

from ppfcos.config.keys import NESTED_KEYS
from ppfcos.errors import ConfigError, PPFCOSError, one_line
from ppfcos.modeling.qat import prepare_qat
from ppfcos.paddle_versions import convolution_shapes, operator_name

STATISTICS = ("_mean", "_variance")  # of batch norms: Paddle counts them among the parameters

# Where each operator has its kernel among its inputs.
KERNELS = {
    "conv2d": 1,
    "depthwise_conv2d": 1,
    "deformable_conv": 2,
    "deformable_conv_v1": 2,  # without a mask, before 3.0
}
UNCOUNTED = ("conv", "matmul", "attention")  # parts of names of operators whose work would be missed


class WeightCount(NamedTuple):
    """Numbers of weights; statistics are none.

    Attributes:
        total: all of them.
        trained: those that learn.
    """

    total: int
    trained: int


def count_weights(model: nn.Layer) -> WeightCount:
    """Count a model's weights.

    Args:
        model: any.

    Returns:
        The numbers.
    """
    sizes = [
        (int(parameter.size), parameter.trainable)
        for name, parameter in model.named_parameters()
        if not name.endswith(STATISTICS)
    ]
    return WeightCount(sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable))


def count_multiply_adds(model: nn.Layer, height: int, width: int) -> int:
    """Count the multiply-adds of one image's way through the network, which the literature calls its FLOPs.

    Those of convolutions count, deformable ones among them, as often as they run: a tower that five levels
    share, five times. Norms, activations, sums and resizing (together about a hundredth) do not, as in
    torchvision's figures, nor does what happens to the head's answers. Nothing is computed: the operators of
    the traced network are looked at.

    Args:
        model: a PPFCOS, in evaluation mode.
        height: of the network's input.
        width: likewise.

    Returns:
        The number.

    Raises:
        ValueError: the network has an operator that this does not know how to count.
    """
    inputs = [InputSpec([1, 3, height, width], "float32"), InputSpec([1, 2], "float32")]
    network = paddle.jit.to_static(model.network, input_spec=inputs, full_graph=True)
    operators = network.concrete_program.main_program.global_block().ops
    return sum(_multiply_adds(operator) for operator in operators)


def _multiply_adds(operator: Any) -> int:
    name = operator_name(operator)
    if name not in KERNELS:
        if any(part in name for part in UNCOUNTED):
            raise ValueError(f"the multiply-adds of {name} are not known here")
        return 0
    # [out, in of a group, height, width] and [1, out, H, W]
    kernel, outputs = convolution_shapes(operator, KERNELS[name])
    if min(outputs) < 0:
        raise ValueError(f"{name}: the size of its output is not known before it runs")
    return math.prod(outputs) * math.prod(kernel[1:])


QUANTIZATION = "quantization_aware_training"


def build_model(cfg: Mapping[str, Any]) -> nn.Layer:
    """Make the architecture with all its parts, and random weights.

    Args:
        cfg: the configuration, which is loaded into PaddleDetection's workspace.

    Returns:
        The model; with `quantization_aware_training`, one that computes in eight bits.

    Raises:
        ConfigError: the architecture or one of its parts does not take what the configuration gives it.
    """
    if cfg.get("num_classes") is None:  # the workspace would silently take PaddleDetection's 80
        raise ConfigError("num_classes is not set, and no data set was read that says it: set num_classes")
    with construction_errors(cfg):
        model = create(cfg["architecture"])
        if hasattr(getattr(model, "targets", None), "check_levels"):
            model.targets.check_levels(model.head.strides)
        return model if cfg.get(QUANTIZATION) is None else _quantization_aware(model, cfg)


@contextlib.contextmanager
def construction_errors(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever a constructor raises into a ConfigError that names its section of the configuration."""
    try:
        yield
    except PPFCOSError:
        raise
    except Exception as error:  # whatever a constructor of PaddleDetection or Paddle raises for an odd value
        section = _section_at_fault(cfg, error)
        raise ConfigError(f"{section} cannot be built from the configuration: {one_line(error)}") from error


def _section_at_fault(cfg: Mapping[str, Any], error: Exception) -> str:
    """The innermost registered class whose method was running."""
    scopes = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [scope.get("cls", type(scope.get("self"))).__name__ for scope in scopes]
    return next((name for name in reversed(owners) if isinstance(cfg.get(name), dict)), cfg["architecture"])


def _quantization_aware(model: nn.Layer, cfg: Mapping[str, Any]) -> nn.Layer:
    for key in ("to_static", "amp"):
        if cfg.get(key):
            raise ConfigError(f"{QUANTIZATION} goes with float32 step by step: set {key}: false")
    settings = {key: plain.default for key, plain in NESTED_KEYS[QUANTIZATION].items()}
    settings.update(cfg[QUANTIZATION])
    return prepare_qat(model, settings["range_momentum"], settings["freeze_ranges_after"])


def has_sync_bn_backbone(cfg: Mapping[str, Any]) -> bool:
    """Whether the backbone's batch norms take their statistics over all processes. The head sees to its own.

    Args:
        cfg: the configuration.

    Returns:
        True where the backbone's `norm_type`, or the shared one, is `sync_bn`. In a quantisation-aware
        training norms are frozen.
    """
    if cfg.get(QUANTIZATION) is not None:
        return False
    backbone = cfg.get(cfg[cfg["architecture"]].get("backbone")) or {}
    return (backbone.get("norm_type") or cfg.get("norm_type")) == "sync_bn"


def compile_network(model: nn.Layer) -> None:
    """Turn the part that has weights into a static graph; targets, losses and boxes stay as they are.

    Args:
        model: with a method `network`; changed in place.
    """
    model.network = paddle.jit.to_static(model.network, full_graph=True)
