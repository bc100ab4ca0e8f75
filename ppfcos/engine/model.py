"""Builds the model of a configuration."""

from __future__ import annotations

import ppfcos.paddledetection  # noqa: F401  # isort: skip

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import paddle
from paddle import nn
from ppdet.core.workspace import create

from ppfcos.config.keys import NESTED_KEYS
from ppfcos.config.workspace import use_config
from ppfcos.errors import ConfigError, PPFCOSError, one_line
from ppfcos.modeling.qat import prepare_qat

STATISTICS = ("_mean", "_variance")  # of batch norms: Paddle has them among the parameters
QUANTIZATION = "quantization_aware_training"


class WeightCount(NamedTuple):
    """Numbers of weights, without running statistics."""

    total: int
    trained: int


def count_weights(model: nn.Layer) -> WeightCount:
    """Count all weights and the trainable ones."""
    sizes = [
        (int(parameter.size), parameter.trainable)
        for name, parameter in model.named_parameters()
        if not name.endswith(STATISTICS)
    ]
    return WeightCount(sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable))


def build_model(cfg: Mapping[str, Any]) -> nn.Layer:
    """Build the architecture with random weights, for QAT if `quantization_aware_training` is set.

    Raises:
        ConfigError: the architecture or one of its parts rejects its configuration.
    """
    if cfg.get("num_classes") is None:  # the workspace would silently take PaddleDetection's 80
        raise ConfigError("num_classes is not set, and no data set was read that says it: set num_classes")
    use_config(cfg)
    with construction_errors(cfg):
        model = create(cfg["architecture"])
        if hasattr(getattr(model, "targets", None), "check_levels"):
            model.targets.check_levels(model.head.strides)
        return model if cfg.get(QUANTIZATION) is None else _prepare_qat(model, cfg)


@contextlib.contextmanager
def construction_errors(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Turn any exception of a constructor into a ConfigError that names its section of the configuration."""
    try:
        yield
    except PPFCOSError:
        raise
    except Exception as error:  # whatever a constructor of PaddleDetection or Paddle raises for an odd value
        # The section is the innermost registered class whose method was running.
        scopes = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
        owners = [scope.get("cls", type(scope.get("self"))).__name__ for scope in scopes]
        sections = (name for name in reversed(owners) if isinstance(cfg.get(name), dict))
        section = next(sections, cfg["architecture"])
        raise ConfigError(f"{section} cannot be built from the configuration: {one_line(error)}") from error


def _prepare_qat(model: nn.Layer, cfg: Mapping[str, Any]) -> nn.Layer:
    for key in ("to_static", "amp"):
        if cfg.get(key):
            raise ConfigError(f"{QUANTIZATION} supports neither to_static nor amp: set {key}: false")
    options = {key: plain.default for key, plain in NESTED_KEYS[QUANTIZATION].items()}
    options.update(cfg[QUANTIZATION])
    passes = options["freeze_ranges_after"] * (cfg.get("TrainReader") or {}).get("accumulate_steps", 1)
    return prepare_qat(model, options["range_momentum"], passes)


def has_sync_bn_backbone(cfg: Mapping[str, Any]) -> bool:
    """Whether the backbone's `norm_type`, or the shared one, is `sync_bn`. QAT freezes the norms."""
    if cfg.get(QUANTIZATION) is not None:
        return False
    backbone = cfg.get(cfg[cfg["architecture"]].get("backbone")) or {}
    return (backbone.get("norm_type") or cfg.get("norm_type")) == "sync_bn"


def compile_network(model: nn.Layer) -> None:
    """Compile `model.network` into a static graph; the assigner, losses and post-processing stay dynamic."""
    model.network = paddle.jit.to_static(model.network, full_graph=True)
