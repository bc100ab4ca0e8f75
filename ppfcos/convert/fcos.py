"""The FCOS authors' own code (tianzhi0549/FCOS, fcos_core/modeling), which grew from maskrcnn-benchmark."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppfcos.convert.backbones import TORCH_RESNET, mobilenet_v2, resnet
from ppfcos.convert.rules import (
    CAFFE_MEAN,
    NO_STD,
    Backbone,
    Format,
    Recipe,
    Sections,
    Translation,
    head_rules,
    numbered,
    pixels,
    remove_norm_epsilon,
    translate,
)

BODY = "backbone.body."
RULES = (
    numbered(r"backbone\.fpn\.fpn_inner(\d)", "neck.laterals", 2),
    numbered(r"backbone\.fpn\.fpn_layer(\d)", "neck.outputs", 2),
    numbered(r"backbone\.fpn\.top_blocks\.p([67])", "neck.extras", 6),
    *head_rules(
        tower=r"rpn\.head\.(cls|bbox)_tower",
        predictor=r"rpn\.head\.",
        convs={"class_conv": "cls_logits", "box_conv": "bbox_pred", "quality_conv": "centerness"},
        scale=r"rpn\.head\.scales\.(\d)\.scale",
    ),
)
DECODE = {"class_threshold": 0.05, "score_threshold": 0.0, "sqrt_score": True, "inclusive": True}


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    if f"{BODY}features.0.0.weight" in arrays:  # its batch norms are PyTorch's, with an epsilon
        return translate(arrays, mobilenet_v2(BODY), RULES)
    done = translate(arrays, resnet(source, arrays, TORCH_RESNET, BODY), RULES)
    remove_norm_epsilon(done.weights)
    return done


def _improved(backbone: Backbone) -> Sections:
    variant = {"ResNet": {"variant": "a" if backbone.groups == 1 else "b"}} if backbone.groups else {}
    return {"PPFCOS": pixels(CAFFE_MEAN, NO_STD), **variant, "PPFCOSDecode": DECODE}


def _original(backbone: Backbone) -> Sections:
    return {
        **_improved(backbone),
        "PPFCOSHead": {"centerness_on": "class", "distance": "exp"},
        "PPFCOSTargets": {"center_sampling_radius": 0},
        "PPFCOSLoss": {"box_loss": "iou"},
    }


FORMAT = Format(
    "fcos",
    "the authors' FCOS",
    ("rpn.head.centerness.weight",),
    _translate,
    {
        "imprv": Recipe(
            "FCOS_imprv_R_50, R_101, X_101, and those with dcnv2",
            _improved,
            bgr=True,
            files=("*fcos_imprv_[rx]*", "*fcos_imprv_dcnv2_[rx]*"),
        ),
        "original": Recipe(
            "FCOS_R_50, R_101, X_101, MNV2",
            _original,
            bgr=True,
            files=("*fcos_[rx]_*", "*fcos_*bn_*mnv2_*"),
        ),
    },
)
