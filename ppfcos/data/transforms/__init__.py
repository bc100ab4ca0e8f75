"""Transforms for `sample_transforms` that PaddleDetection lacks or has wrong.

Importing this package registers them with PaddleDetection under their class names. They draw from the global
generators of Python and numpy, which the loader seeds for every sample.

Boxes are in pixel edges: the pixel in column i covers i to i + 1. A box is dropped where less than
`min_visible` of its area is left after the transform, or where one of its sides is shorter than a pixel; the
area before is that of the box when it reached the transform.
"""

import ppfcos.paddledetection  # noqa: F401  # isort: skip

from ppfcos.data.transforms.augment import (
    PPFCOSCutOut,
    PPFCOSRandomAffine,
    PPFCOSRandomVerticalFlip,
    PPFCOSScaleJitterCrop,
)
from ppfcos.data.transforms.base import register_transform
from ppfcos.data.transforms.mix import MixTransform, PPFCOSMixup, PPFCOSMosaic

__all__ = [
    "MixTransform",
    "PPFCOSCutOut",
    "PPFCOSMixup",
    "PPFCOSMosaic",
    "PPFCOSRandomAffine",
    "PPFCOSRandomVerticalFlip",
    "PPFCOSScaleJitterCrop",
    "register_transform",
]
