"""Mixed precision: what a step computes in 16 bits, and how its small gradients survive that."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer

from ppfcos.errors import ConfigError

logger = logging.getLogger(__name__)

FIRST_LOSS_SCALE = 1024.0  # PaddleDetection's; Paddle's 65536 overflows in the first steps of a detector


class Precision:
    """Full precision, or Paddle's mixed precision of level O1 with float16.

    Args:
        cfg: `amp` switches it on, `amp_level` is its level.
        device: as Paddle names it. On a CPU Paddle has no mixed precision; this is logged, and float32 used.

    Raises:
        ConfigError: another level is asked for.
    """

    def __init__(self, cfg: Mapping[str, Any], device: str):
        level = cfg.get("amp_level") or "O1"
        if cfg.get("amp") and level != "O1":
            raise ConfigError(f"amp_level is {level!r}: mixed precision is trained at level O1")
        self.is_mixed = bool(cfg.get("amp")) and device != "cpu"
        if cfg.get("amp") and not self.is_mixed:
            logger.warning("amp: Paddle has no mixed precision on a CPU, going on in float32")
        self._scaler = paddle.amp.GradScaler(init_loss_scaling=FIRST_LOSS_SCALE) if self.is_mixed else None

    def autocast(self) -> contextlib.AbstractContextManager:
        """Within it, operators that can take it compute in 16 bits.

        Returns:
            A context manager.
        """
        return paddle.amp.auto_cast(level="O1") if self.is_mixed else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled so that 16 bits can hold them.

        Args:
            loss: scalar.
        """
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def update(self, optimizer: Optimizer) -> None:
        """Move the weights, unless a gradient overflowed.

        Args:
            optimizer: whose parameters have the gradients of `backward`.
        """
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.clear_grad(set_to_zero=False)

    @property
    def handles_overflow(self) -> bool:
        """Whether an update whose gradient is not finite is left out, and the next loss scaled less."""
        return self._scaler is not None

    def gradient_norm(self, weights: Iterable[Tensor]) -> Tensor:
        """L2 norm of the gradients of all weights together, before any clipping.

        Args:
            weights: those without a gradient count as zero.

        Returns:
            Scalar.
        """
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm = paddle.stack([gradient.astype("float32").norm() for gradient in gradients]).norm()
        return norm if self._scaler is None else norm / self._scaler.get_init_loss_scaling()

    def state_dict(self) -> dict[str, Any]:
        """What `set_state_dict` needs to go on with the scale that was found."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def set_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the scale of an earlier run.

        Args:
            state: of `state_dict`.
        """
        if self._scaler is not None:
            self._scaler.load_state_dict(dict(state))
