"""From a bundle to boxes: `Predictor(bundle).predict(images)`.

This package needs numpy, OpenCV, PyYAML and one runtime. It imports neither PaddleDetection nor the training
rooms, and it imports Paddle only when a Paddle runtime is made.
"""

from __future__ import annotations

from ppfcos.deploy.detections import Detections
from ppfcos.deploy.images import NV12Image
from ppfcos.deploy.predictor import Detector, Found, Predictor

__all__ = ["Detections", "Detector", "Found", "NV12Image", "Predictor"]
