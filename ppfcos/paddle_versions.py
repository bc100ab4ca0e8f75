"""Where the versions of Paddle differ that ppfcos runs on, 2.6 and 3.0 to 3.3. Nothing else asks for one.

What differs before Paddle is imported stands in ppfcos/environment.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor

# Of a build from Paddle's sources it is 0.0.0, and such a build is taken for a new one.
_VERSION = tuple(int(part) if part.isdigit() else 0 for part in paddle.__version__.split(".")[:2])
_OLDER_THAN_3_0, _OLDER_THAN_3_1 = ((0, 0) < _VERSION < newer for newer in ((3, 0), (3, 1)))

# The new intermediate representation, in which the programs of bundles are written.
HAS_NEW_IR = not _OLDER_THAN_3_0

# Whether programs hold floats as doubles, written or read: at those Paddle's own runtime stops where it uses
# oneDNN, and paddle2onnx 2.1.0, too.
HAS_DOUBLES_IN_PROGRAMS = _VERSION == (3, 3)

# Whether a backward operator can be called by itself.
HAS_CONV2D_GRAD = hasattr(paddle._C_ops, "conv2d_grad")  # not before 3.1


def operator_name(operator: Any) -> str:
    """How an operator of a static program is called, such as `conv2d`."""
    return operator.name().removeprefix("pd_op.") if HAS_NEW_IR else operator.type


def convolution_shapes(operator: Any, kernel: int) -> tuple[Sequence[int], Sequence[int]]:
    """Shapes of the kernel and of the result of a convolution in a static program.

    Args:
        operator: the convolution.
        kernel: where its kernel is among its inputs; before 3.0 these have names.
    """
    if HAS_NEW_IR:
        return operator.operands_source()[kernel].shape, operator.results()[0].shape
    names = operator.input("Filter")[0], operator.output("Output")[0]
    return tuple(operator.block.var(name).shape for name in names)


def is_autocast_enabled() -> bool:
    """Whether Paddle casts to half precision here. Before 3.2 there is no function that says so."""
    if hasattr(paddle.amp, "is_autocast_enabled"):
        return paddle.amp.is_autocast_enabled()
    return paddle.base.framework._dygraph_tracer()._amp_level != paddle.base.core.AmpLevel.O0


def max_memory_reserved(plugin_device: str) -> int:
    """The most bytes that Paddle has held of a plug-in's device; 0 before 3.2, which does not count them."""
    if not hasattr(paddle.device, "max_memory_reserved"):
        return 0
    return paddle.device.max_memory_reserved(plugin_device)


def round_half_to_even(values: Tensor) -> Tensor:
    """The nearest whole number, of two the even one, as OpenCV does; before 3.1 Paddle takes the larger.

    Args:
        values: float32 of any shape, none below zero.

    Returns:
        Likewise.
    """
    if not _OLDER_THAN_3_1:
        return paddle.round(values)
    above_even = values - 2 * paddle.floor(values / 2)
    return paddle.floor(values + 0.5) - (above_even == 0.5).astype(values.dtype)
