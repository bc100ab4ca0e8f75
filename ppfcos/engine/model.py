"""The model that a configuration describes."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import paddle
from paddle import nn
from ppdet.core.workspace import create

from ppfcos.config.keys import NESTED_KEYS
from ppfcos.errors import ConfigError, PPFCOSError, one_line
from ppfcos.modeling.quantization.placement import make_quantization_aware

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
    return make_quantization_aware(model, settings["range_momentum"], settings["freeze_ranges_after"])


def has_synchronized_backbone(cfg: Mapping[str, Any]) -> bool:
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
