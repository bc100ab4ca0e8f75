"""Operators for `sample_transforms` beside PaddleDetection's: what that lacks, or has wrong.

Importing this package makes them known to PaddleDetection by name. All of them draw from Python's and numpy's
global generators only, which the loader seeds for every sample.

Boxes count from edge to edge: the pixel in column i reaches from i to i + 1. A box is dropped where less than
`min_visible` of its area is left after the operator, or where one of its sides is shorter than a pixel; the
area before is that of the box as the operator met it, whatever an earlier one had cut away.
"""

from ppfcos.data.transforms.cutout import PPFCOSCutOut
from ppfcos.data.transforms.geometry import (
    PPFCOSRandomAffine,
    PPFCOSRandomVerticalFlip,
    PPFCOSScaleJitterCrop,
)
from ppfcos.data.transforms.mix import MixTransform, PPFCOSMixup, PPFCOSMosaic

__all__ = [
    "MixTransform",
    "PPFCOSCutOut",
    "PPFCOSMixup",
    "PPFCOSMosaic",
    "PPFCOSRandomAffine",
    "PPFCOSRandomVerticalFlip",
    "PPFCOSScaleJitterCrop",
]
