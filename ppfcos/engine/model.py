"""The model that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle
from paddle import nn
from ppdet.core.workspace import create

from ppfcos.errors import ConfigError


def build_model(cfg: Mapping[str, Any]) -> nn.Layer:
    """Make the architecture with all its parts, and random weights.

    Args:
        cfg: the configuration, which is loaded into PaddleDetection's workspace.

    Returns:
        The model.

    Raises:
        ConfigError: the architecture or one of its parts does not take what the configuration gives it.
    """
    if cfg.get("num_classes") is None:  # the workspace would silently take PaddleDetection's 80
        raise ConfigError("num_classes is not set, and no data set was read that says it: set num_classes")
    try:
        return create(cfg["architecture"])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the model cannot be built ({type(error).__name__}: {error})") from error


def has_synchronized_backbone(cfg: Mapping[str, Any]) -> bool:
    """Whether the backbone's batch norms take their statistics over all processes. The head sees to its own.

    Args:
        cfg: the configuration.

    Returns:
        True where the backbone's `norm_type`, or the shared one, is `sync_bn`.
    """
    backbone = cfg.get(cfg[cfg["architecture"]].get("backbone")) or {}
    return (backbone.get("norm_type") or cfg.get("norm_type")) == "sync_bn"


def compile_network(model: nn.Layer) -> None:
    """Turn the part that has weights into a static graph; targets, losses and boxes stay as they are.

    Args:
        model: with a method `network`; changed in place.
    """
    model.network = paddle.jit.to_static(model.network, full_graph=True)
