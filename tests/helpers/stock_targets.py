"""PaddleDetection's Gt2FCOSTarget with numpy 2, whose `reshape` has no `newshape` any more."""

from __future__ import annotations

from typing import Any

import numpy as np
from ppdet.data.transform import batch_operators
from ppdet.data.transform.batch_operators import Gt2FCOSTarget


class _Numpy:
    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def reshape(values: np.ndarray, newshape: list[int]) -> np.ndarray:
        return np.reshape(values, newshape)


batch_operators.np = _Numpy()

__all__ = ["Gt2FCOSTarget"]
