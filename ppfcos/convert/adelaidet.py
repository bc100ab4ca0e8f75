"""AdelaiDet's FCOS (adet/modeling/fcos, configs/FCOS-Detection), which is built on Detectron2."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppfcos.convert.backbones import DLA_FIRST_CONV, ResnetNames, dla, resnet
from ppfcos.convert.rules import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NO_STD,
    REAL_TIME_BASES,
    Backbone,
    Format,
    Recipe,
    Rule,
    Sections,
    Translation,
    head_rules,
    numbered,
    pixels,
    translate,
)

BODY = "backbone.bottom_up."
DETECTRON2_RESNET = ResnetNames(
    stem_conv=r"stem\.conv1",
    stem_norm=r"stem\.conv1\.norm",
    block=r"res(?P<stage>\d)\.(?P<block>\d+)\.",
    conv=r"conv(?P<branch>[123])",
    norm=r"conv(?P<branch>[123])\.norm",
    short_conv="shortcut",
    short_norm=r"shortcut\.norm",
    offset="conv2_offset",
)
RULES = (
    numbered(r"backbone\.fpn_lateral(\d)", "neck.laterals", 3),
    numbered(r"backbone\.fpn_output(\d)", "neck.outputs", 3),
    numbered(r"backbone\.top_block\.p([67])", "neck.extras", 6),
    *head_rules(
        tower=r"proposal_generator\.fcos_head\.(cls|bbox|share)_tower",
        predictor=r"proposal_generator\.fcos_head\.",
        convs={"class_conv": "cls_logits", "box_conv": "bbox_pred", "quality_conv": "ctrness"},
        scale=r"proposal_generator\.fcos_head\.scales\.(\d)\.scale",
    ),
)
IGNORED = (Rule(r"pixel_(mean|std)", "the configuration has it"),)
DECODE = {"class_threshold": 0.05, "score_threshold": 0.0, "sqrt_score": True, "clip": "after"}
REAL_TIME_LEVELS = 3
GROUPS_WITHOUT_STD = 64  # pixels of X-101-64x4d are not divided by a deviation, those of X-101-32x8d are


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    if BODY + DLA_FIRST_CONV in arrays:
        backbone = dla(source, arrays, BODY)
    else:
        backbone = resnet(source, arrays, DETECTRON2_RESNET, BODY)
    return translate(arrays, backbone, RULES, IGNORED)


def _sections(backbone: Backbone, quality: str = "centerness") -> Sections:
    std = IMAGENET_STD if backbone.groups not in (0, 1, GROUPS_WITHOUT_STD) else NO_STD
    variant = {"ResNet": {"variant": "a" if backbone.groups == 1 else "b"}} if backbone.groups else {}
    return {
        "PPFCOS": pixels(IMAGENET_MEAN, std),
        **variant,
        "PPFCOSLoss": {"quality": quality},
        "PPFCOSDecode": DECODE,
    }


def _levels(expected: int):
    def contradiction(done: Translation) -> str | None:
        count = sum(name.startswith("head.scales.") for name in done.weights)
        return None if count == expected else f"it is for {expected} levels, and the weights are for {count}"

    return contradiction


FORMAT = Format(
    "adelaidet",
    "AdelaiDet",
    ("proposal_generator.fcos_head.ctrness.weight",),
    _translate,
    {
        "real-time": Recipe(
            "FCOS_RT: MS_DLA_34_4x and MS_R_50_4x, also with shared towers or batch norm in the head",
            _sections,
            bgr=True,
            files=("*_4x_syncbn*",),
            bases=REAL_TIME_BASES,
            contradiction=_levels(REAL_TIME_LEVELS),
        ),
        "iou": Recipe(
            "R_50_1x_iou, MS_R_50_2x_iou, MS_R_101_2x_iou, MS_X_101_32x8d_2x_iou and _dcnv2_iou",
            lambda backbone: _sections(backbone, "iou"),
            bgr=True,
            files=("*_[12]x_iou*", "*_2x_dcnv2_iou*"),
            contradiction=_levels(5),
        ),
        "centerness": Recipe(
            "R_50_1x, MS_R_50_2x, MS_R_101_2x, MS_X_101_32x8d_2x and 64x4d, and those with dcnv2",
            _sections,
            bgr=True,
            files=("*_[12]x.*", "*_2x_dcnv2.*"),
            contradiction=_levels(5),
        ),
    },
    rounding="nearest",
)
