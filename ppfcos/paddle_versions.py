"""Differences between the supported versions of Paddle, 2.6 and 3.0 to 3.3.

Those before the import of Paddle are in ppfcos/environment.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor

# A build from source is 0.0.0, which counts as new.
_VERSION = tuple(int(part) if part.isdigit() else 0 for part in paddle.__version__.split(".")[:2])
_OLDER_THAN_3_0, _OLDER_THAN_3_1 = ((0, 0) < _VERSION < newer for newer in ((3, 0), (3, 1)))

# The new intermediate representation (PIR), which bundles use.
HAS_NEW_IR = not _OLDER_THAN_3_0

# Versions of the format of programs, and the Paddle that introduced each. A later Paddle reads older formats.
PROGRAM_FORMATS = {0: (2, 6), 1: (3, 0), 2: (3, 1), 3: (3, 2), 4: (3, 3)}
NEWEST_PROGRAM = next((number for number, paddle in PROGRAM_FORMATS.items() if paddle == _VERSION), math.inf)

# Whether some float attributes of programs are doubles, which Paddle's oneDNN operators do not accept.
HAS_DOUBLES_IN_PROGRAMS = _VERSION == (0, 0) or _VERSION >= (3, 3)


def operator_name(operator: Any) -> str:
    """Return the name of an operator of a static program, such as `conv2d`."""
    return operator.name().removeprefix("pd_op.") if HAS_NEW_IR else operator.type


def convolution_shapes(operator: Any, kernel: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the shapes of the kernel and the output of a convolution in a static program.

    Args:
        operator: the convolution.
        kernel: index of the kernel among the inputs. (Before 3.0 inputs have names.)
    """
    if HAS_NEW_IR:
        return operator.operands_source()[kernel].shape, operator.results()[0].shape
    names = operator.input("Filter")[0], operator.output("Output")[0]
    return tuple(operator.block.var(name).shape for name in names)


def is_autocast_enabled() -> bool:
    """Whether automatic mixed precision is active. Paddle has a public function since 3.2."""
    if hasattr(paddle.amp, "is_autocast_enabled"):
        return paddle.amp.is_autocast_enabled()
    return paddle.base.framework._dygraph_tracer()._amp_level != paddle.base.core.AmpLevel.O0


def max_memory_reserved(plugin_device: str) -> int:
    """Return the peak reserved memory of a plug-in device in bytes; 0 before Paddle 3.2."""
    if not hasattr(paddle.device, "max_memory_reserved"):
        return 0
    return paddle.device.max_memory_reserved(plugin_device)


def round_half_to_even(values: Tensor) -> Tensor:
    """Round non-negative float32 values half to even, as OpenCV does. Before 3.1 Paddle rounds half up."""
    if not _OLDER_THAN_3_1:
        return paddle.round(values)
    above_even = values - 2 * paddle.floor(values / 2)
    return paddle.floor(values + 0.5) - (above_even == 0.5).astype(values.dtype)
