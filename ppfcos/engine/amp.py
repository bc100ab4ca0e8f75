"""Mixed precision: what a step computes in 16 bits, and how its small gradients survive that."""

from __future__ import annotations

import contextlib
import io
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

    At level O1 the operators that gain most from 16 bits (convolutions) compute in them, at O2 all but those
    that Paddle's lists except. The weights are float32 at either level, and cast where they are used: they
    are the master weights, and checkpoints, averages and the optimizer are those of full precision.

    Args:
        cfg: `amp` switches it on; `amp_level` is O1 or O2; `amp_dtype` is float16, bfloat16 or auto, which
            takes bfloat16 where the device has it; `custom_white_list` and `custom_black_list` name operators
            that do and do not compute in 16 bits; `init_loss_scaling` is the first factor by which float16's
            loss is scaled.
        device: as Paddle names it, and selected. On one without mixed precision, such as a CPU, this is
            logged and float32 used.

    Attributes:
        dtype: `float16`, `bfloat16`, or None in full precision.

    Raises:
        ConfigError: the keys contradict one another, or the device has not got the 16 bits asked for.
    """

    def __init__(self, cfg: Mapping[str, Any], device: str):
        self.dtype = None
        if cfg.get("amp"):
            self.dtype = _chosen_dtype(cfg.get("amp_dtype") or "auto", device)
            self._options = _autocast_options(cfg, self.dtype)
        # bfloat16 has the exponents of float32: nothing that is a number there falls to zero here.
        scales = self.dtype == "float16"
        first = cfg.get("init_loss_scaling") or FIRST_LOSS_SCALE
        self._scaler = paddle.amp.GradScaler(init_loss_scaling=first) if scales else None

    def autocast(self) -> contextlib.AbstractContextManager:
        """Within it, operators that can take it compute in 16 bits.

        Returns:
            A context manager.
        """
        return contextlib.nullcontext() if self.dtype is None else paddle.amp.auto_cast(**self._options)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those there are, scaled so that 16 bits can hold them.

        Args:
            loss: scalar, computed within `autocast`.
        """
        self._scaled(loss).backward()

    @property
    def handles_overflow(self) -> bool:
        """Whether `update` leaves out a step whose gradient is not finite, and scales the next loss less."""
        return self._scaler is not None

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Length of all gradients as one vector, without the scale, before `update` clears them.

        Args:
            parameters: of the model; those without a gradient count as zero.

        Returns:
            Scalar, the L2 norm; not finite where float16 has overflowed.
        """
        with paddle.no_grad():
            gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
            # The operator of Paddle's own clipping: one pass, where a square and a sum are two.
            squares = [
                paddle._C_ops.squared_l2_norm(gradient.astype("float32")).squeeze() for gradient in gradients
            ]
            if not squares:
                return paddle.zeros([])
            return paddle.stack(squares).sum().sqrt() / self._scaled(paddle.ones([]))

    def update(self, optimizer: Optimizer) -> None:
        """Move the weights, unless a gradient overflowed, and clear the gradients.

        Args:
            optimizer: whose parameters have the gradients of one `backward` or the sum of several.
        """
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                self._scaler.update()
            if printed.getvalue():  # by Paddle in every process, where it makes the scale smaller
                logger.info("a gradient overflowed float16: the step is left out, and the loss scale halved")
        optimizer.clear_grad(set_to_zero=False)

    def state_dict(self) -> dict[str, float]:
        """What a resumed training has to know.

        Returns:
            The loss scale, and the steps since it last changed; empty without one.
        """
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {"loss_scale": float(state["scale"][0]), "good_steps": int(state["incr_count"])}

    def set_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on where a training stood.

        Args:
            state: of `state_dict`; if that training scaled no loss, or this one does not, nothing is done.
        """
        if self._scaler is None or not state:
            return
        scale = np.array([state["loss_scale"]], "float32")
        settings = self._scaler.state_dict()
        self._scaler.load_state_dict({**settings, "scale": scale, "incr_count": int(state["good_steps"])})

    def _scaled(self, value: Tensor) -> Tensor:
        return value if self._scaler is None else self._scaler.scale(value)


def _chosen_dtype(wanted: str, device: str) -> str | None:
    """The 16 bits to compute in; None where the device has none."""
    possible = [dtype for dtype in ("bfloat16", "float16") if _is_cast_to(dtype)]
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


def _is_cast_to(dtype: str) -> bool:
    """Whether Paddle casts to it on the selected device; where it does not, it only warns."""
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
        raise ConfigError(
            "master_weight: false would lose what a step changes by less than 16 bits can hold: leave it out"
        )
    return {
        "level": cfg.get("amp_level") or "O1",
        "dtype": dtype,
        "custom_white_list": white or None,
        "custom_black_list": black or None,
        # At O2 the float32 weights would otherwise draw everything that they touch back to float32.
        "use_promote": False,
    }
