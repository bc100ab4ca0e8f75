"""From a bundle to boxes: `Predictor(bundle).predict(images)`.

This package needs numpy, OpenCV, PyYAML and one runtime. It imports neither PaddleDetection nor the training
rooms, and it imports Paddle only when a Paddle runtime is made. What it offers is imported when it is asked
for: a command that only explains its options needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ppfcos import environment

if TYPE_CHECKING:
    from ppfcos.deploy.detections import Detections
    from ppfcos.deploy.images import NV12Image
    from ppfcos.deploy.predictor import Detector, Found, Predictor

__all__ = ["Detections", "Detector", "Found", "NV12Image", "Predictor"]
_PLACES = {
    "Detections": "detections",
    "Detector": "predictor",
    "Found": "predictor",
    "NV12Image": "images",
    "Predictor": "predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    environment.require_usable_opencv()
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
