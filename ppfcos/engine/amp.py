"""Automatic mixed precision (AMP): autocast, loss scaling, gradient norm and optimizer step."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer

from ppfcos.errors import ConfigError
from ppfcos.paddle_versions import is_autocast_enabled

logger = logging.getLogger(__name__)

FIRST_LOSS_SCALE = 1024.0  # PaddleDetection's; Paddle's 65536 overflows in the first steps of a detector


class Precision:
    """Full precision, or Paddle's mixed precision with float16 or bfloat16.

    At level O1 the operators that gain most (convolutions) compute in 16 bits, at O2 all but those on
    Paddle's block list. The weights stay float32 and are cast where they are used: they are the master
    weights, and checkpoints, EMA and optimizer are those of full precision.

    Args:
        cfg: `amp`; `amp_level` (O1, O2); `amp_dtype` (float16, bfloat16, or auto: bfloat16 where the device
            supports it); `custom_white_list` and `custom_black_list`, operators that do and do not compute in
            16 bits; `init_loss_scaling` of float16.
        device: as Paddle names it, and selected. Without mixed precision on it, float32 is used and logged.

    Attributes:
        dtype: `float16`, `bfloat16`, or None in full precision.

    Raises:
        ConfigError: the keys contradict one another, or the device does not support the type.
    """

    def __init__(self, cfg: Mapping[str, Any], device: str):
        self.dtype = None
        if cfg.get("amp"):
            self.dtype = _choose_dtype(cfg.get("amp_dtype") or "auto", device)
            self._options = _autocast_options(cfg, self.dtype)
        # bfloat16 has the exponent of float32: gradients do not underflow.
        self._scaler = None
        if self.dtype == "float16":
            scale = cfg.get("init_loss_scaling") or FIRST_LOSS_SCALE
            # `update` lowers the scale: Paddle prints that on every rank, which fails with NumPy 2.5.
            self._scaler = paddle.amp.GradScaler(init_loss_scaling=scale, decr_every_n_nan_or_inf=2**30)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the autocast context; in full precision it does nothing."""
        return contextlib.nullcontext() if self.dtype is None else paddle.amp.auto_cast(**self._options)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss to the existing ones."""
        self._scaled(loss).backward()

    @property
    def handles_overflow(self) -> bool:
        """Whether `update` skips a step with a gradient that is not finite, and lowers the loss scale."""
        return self._scaler is not None

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the L2 norm of all unscaled gradients, a scalar; not finite after a float16 overflow."""
        with paddle.no_grad():
            gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
            # The operator of Paddle's clipping: one pass, where a square and a sum are two.
            squares = [
                paddle._C_ops.squared_l2_norm(gradient.astype("float32")).squeeze() for gradient in gradients
            ]
            if not squares:
                return paddle.zeros([])
            return paddle.stack(squares).sum().sqrt() / self._scaled(paddle.ones([])).squeeze()

    def update(self, optimizer: Optimizer) -> None:
        """Take an optimizer step unless a gradient overflowed, and clear the gradients."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
            state = self._scaler.state_dict()
            if state["decr_count"]:
                lower = state["scale"] * self._scaler.get_decr_ratio()
                self._scaler.load_state_dict({**state, "scale": lower, "decr_count": 0})
        optimizer.clear_grad(set_to_zero=False)

    def state_dict(self) -> dict[str, float]:
        """Return the loss scale and the number of steps since it changed; empty without a loss scale."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {"loss_scale": float(state["scale"][0]), "good_steps": int(state["incr_count"])}

    def set_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore `state_dict`; does nothing if that run or this one has no loss scale."""
        if self._scaler is None or not state:
            return
        scale = np.array([state["loss_scale"]], "float32")
        current = self._scaler.state_dict()
        self._scaler.load_state_dict({**current, "scale": scale, "incr_count": int(state["good_steps"])})

    def _scaled(self, value: Tensor) -> Tensor:
        return value if self._scaler is None else self._scaler.scale(value)


def _choose_dtype(wanted: str, device: str) -> str | None:
    """The 16-bit type to compute in; None if the device has none."""
    possible = [dtype for dtype in ("bfloat16", "float16") if _supports_autocast(dtype)]
    if not possible:
        where = "a CPU" if device == "cpu" else device
        logger.warning("amp: Paddle has no mixed precision on %s, going on in float32", where)
        return None
    if wanted in possible:
        return wanted
    if wanted != "auto":
        raise ConfigError(f"amp_dtype: {device} has no {wanted}, but {possible[0]}: set that, or auto")
    # Paddle casts to bfloat16 on some devices whose operators for it are slow or missing.
    return "bfloat16" if "bfloat16" in possible and paddle.amp.is_bfloat16_supported() else possible[-1]


def _supports_autocast(dtype: str) -> bool:
    """Whether Paddle casts to `dtype` on the selected device; if not, it only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with paddle.amp.auto_cast(dtype=dtype):
            return is_autocast_enabled()


def _autocast_options(cfg: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Arguments of Paddle's `auto_cast`."""
    white, black = (set(cfg.get(f"custom_{colour}_list") or ()) for colour in ("white", "black"))
    if white & black:
        raise ConfigError(
            f"custom_white_list and custom_black_list both name {', '.join(sorted(white & black))}"
        )
    if cfg.get("master_weight") is False:
        raise ConfigError("master_weight: false would lose small updates of 16-bit weights: remove the key")
    return {
        "level": cfg.get("amp_level") or "O1",
        "dtype": dtype,
        "custom_white_list": white or None,
        "custom_black_list": black or None,
        # At O2 the float32 weights would otherwise promote all operators that use them to float32.
        "use_promote": False,
    }
