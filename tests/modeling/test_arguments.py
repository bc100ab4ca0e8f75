"""Arguments that a part of the network refuses."""

from __future__ import annotations

import pytest

from ppfcos.modeling import (
    PPFCOSDLA,
    PPFCOSBiFPN,
    PPFCOSDecode,
    PPFCOSEfficientNet,
    PPFCOSHead,
    PPFCOSLoss,
    PPFCOSMobileNetV2,
    PPFCOSTargets,
)

LEVELS = {"in_channels": 32, "strides": [8]}
FEATURES = {"in_channels": (5, 7, 9), "strides": [8, 16, 32]}


@pytest.mark.parametrize(
    ("part", "option", "value", "others"),
    [
        (PPFCOSHead, "centerness_on", "both", LEVELS),
        (PPFCOSHead, "distance", "softplus", LEVELS),
        (PPFCOSHead, "norm_type", "ln", LEVELS),
        (PPFCOSHead, "deformable_convs", -1, LEVELS),
        (PPFCOSHead, "deformable_convs", 3, {**LEVELS, "num_convs": 2}),
        (PPFCOSLoss, "box_loss", "diou", {}),
        (PPFCOSLoss, "quality", "none", {}),
        (PPFCOSLoss, "iou_smoothing", -0.1, {}),
        (PPFCOSLoss, "iou_smoothing", float("nan"), {}),
        (PPFCOSDecode, "rank_by", "quality", {}),
        (PPFCOSDecode, "clip", True, {}),
        (PPFCOSBiFPN, "fusion", "mean", FEATURES),
        (PPFCOSBiFPN, "norm_type", "gn", FEATURES),
        (PPFCOSEfficientNet, "scale", "b8", {}),
        (PPFCOSEfficientNet, "activation", "gelu", {}),
        (PPFCOSEfficientNet, "norm_type", "gn", {}),
        (PPFCOSMobileNetV2, "norm_type", "gn", {}),
        (PPFCOSDLA, "norm_type", "gn", {}),
    ],
)
def test_unknown_values_are_named(part, option, value, others):
    with pytest.raises(ValueError, match=rf"{part.__name__}\.{option} is {value!r}"):
        part(**others, **{option: value})


def test_size_ranges_must_fit_the_levels():
    with pytest.raises(ValueError, match=r"PPFCOSTargets\.size_ranges has 2 upper ends: 5 levels need 4"):
        PPFCOSTargets(size_ranges=[64, 128]).check_levels([8, 16, 32, 64, 128])
