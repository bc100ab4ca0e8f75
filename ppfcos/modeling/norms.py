"""Batch norms, over this process's images or over all processes'."""

from __future__ import annotations

import paddle
from paddle import nn

BATCH_NORMS = ("bn", "sync_bn")


def batch_norm(norm_type: str, channels: int, momentum: float = 0.9, epsilon: float = 1e-5) -> nn.Layer:
    """A batch norm.

    Args:
        norm_type: `bn`, or `sync_bn` for statistics over all processes.
        channels: of the feature map.
        momentum: share of the running statistics that a step keeps.
        epsilon: added to the variance.

    Returns:
        The layer.
    """
    # SyncBatchNorm exists on accelerators only; in one process on a CPU it is the same as BatchNorm.
    synchronized = norm_type == "sync_bn" and paddle.get_device() != "cpu"
    kind = nn.SyncBatchNorm if synchronized else nn.BatchNorm2D
    return kind(channels, momentum=momentum, epsilon=epsilon)
