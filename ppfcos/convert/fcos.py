"""The FCOS authors' own code (tianzhi0549/FCOS, fcos_core/modeling), which grew from maskrcnn-benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import MobilenetV2, Resnet, resnet_of, torch_mobilenet_rules, torch_resnet_rules
from ppfcos.convert.rules import (
    BATCH_COUNTER,
    CAFFE_MEAN,
    NO_STD,
    Backbone,
    Format,
    Recipe,
    Rule,
    Translation,
    head_rules,
    pixels,
    remove_norm_epsilon,
    translate,
)

BODY = "backbone.body."
BLOCKS = r"backbone\.body\.layer(?P<stage>\d)\.(?P<block>\d+)\."
NECK = (
    Rule(r"backbone\.fpn\.fpn_inner(\d)\.(\w+)", lambda m: f"neck.laterals.{int(m[1]) - 2}.{m[2]}"),
    Rule(r"backbone\.fpn\.fpn_layer(\d)\.(\w+)", lambda m: f"neck.outputs.{int(m[1]) - 2}.{m[2]}"),
    Rule(r"backbone\.fpn\.top_blocks\.p([67])\.(\w+)", lambda m: f"neck.extras.{int(m[1]) - 6}.{m[2]}"),
)
HEAD = head_rules(
    tower=r"rpn\.head\.(cls|bbox)_tower",
    predictor=r"rpn\.head\.",
    convs={"class_conv": "cls_logits", "box_conv": "bbox_pred", "quality_conv": "centerness"},
    scale=r"rpn\.head\.scales\.(\d)\.scale",
)


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    if f"{BODY}features.0.0.weight" in arrays:  # its batch norms are PyTorch's, with an epsilon
        rules = [*torch_mobilenet_rules(BODY), *NECK, *HEAD]
        return translate(arrays, MobilenetV2(), rules, [BATCH_COUNTER])
    resnet = resnet_of(source, arrays, BLOCKS, f"{BODY}layer1.0.conv2.weight", first_stage=1)
    rules = [*torch_resnet_rules(resnet, BODY, "stem."), *NECK, *HEAD]
    done = translate(arrays, resnet, rules)
    remove_norm_epsilon(done.weights)
    return done


def _common(backbone: Backbone) -> dict[str, dict[str, Any]]:
    is_resnet = isinstance(backbone, Resnet)
    return {
        "PPFCOS": pixels(CAFFE_MEAN, NO_STD),
        **({"ResNet": {"variant": "a" if backbone.groups == 1 else "b"}} if is_resnet else {}),
        "PPFCOSDecode": {
            "class_threshold": 0.05,
            "score_threshold": 0.0,
            "sqrt_score": True,
            "inclusive": True,
        },
    }


def _original(backbone: Backbone) -> dict[str, dict[str, Any]]:
    return {
        **_common(backbone),
        "PPFCOSHead": {"centerness_on": "class", "distance": "exp"},
        "PPFCOSTargets": {"center_sampling_radius": 0},
        "PPFCOSLoss": {"box_loss": "iou"},
    }


FORMAT = Format(
    "fcos",
    "the authors' FCOS",
    lambda arrays: "rpn.head.centerness.weight" in arrays,
    _translate,
    {
        "imprv": Recipe(
            "FCOS_imprv_R_50, R_101, X_101, and those with dcnv2",
            _common,
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
