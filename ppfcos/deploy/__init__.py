"""From a bundle to boxes: `Predictor(bundle).predict(images)`.

Needs NumPy, OpenCV, PyYAML and one runtime. Imports neither PaddleDetection nor the training packages, and
Paddle only if a Paddle runtime is created. The names below are imported on first use, to keep `--help` fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ppfcos import environment

if TYPE_CHECKING:
    from ppfcos.deploy.detections import Detections
    from ppfcos.deploy.images import NV12Image
    from ppfcos.deploy.predictor import Detector, ImageDetections, Predictor

__all__ = ["Detections", "Detector", "ImageDetections", "NV12Image", "Predictor"]
_MODULES = {"Detections": "detections", "NV12Image": "images"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    environment.require_usable_opencv()
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'predictor')}"), name)
