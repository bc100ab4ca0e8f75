"""torchvision's fcos_resnet50_fpn (torchvision/models/detection/fcos.py), and its ImageNet ResNets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppfcos.convert.backbones import TORCH_RESNET, resnet
from ppfcos.convert.rules import (
    CLASSIFIER,
    IMAGENET_PIXELS,
    Format,
    Recipe,
    Translation,
    head_rules,
    numbered,
    translate,
)

# Output 0 is the background, which no object has. The classes of the published model are COCO's category
# numbers from 0 to 90, of which these have no class.
CATEGORY_NUMBERS = 91
UNUSED_NUMBERS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
LEVELS = 5
RULES = (
    numbered(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?", "neck.laterals", 0),
    numbered(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?", "neck.outputs", 0),
    numbered(r"backbone\.fpn\.extra_blocks\.p([67])", "neck.extras", 6),
    *head_rules(
        tower=r"head\.(classification|regression)_head\.conv",
        predictor=r"head\.(?:classification|regression)_head\.",
        convs={"class_conv": "cls_logits", "box_conv": "bbox_reg", "quality_conv": "bbox_ctrness"},
    ),
)


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    done = translate(arrays, resnet(source, arrays, TORCH_RESNET, "backbone.body."), RULES)
    for name in ("head.class_conv.weight", "head.class_conv.bias"):
        outputs = len(done.weights.get(name, ()))
        if outputs > 1:
            unused = UNUSED_NUMBERS if outputs == CATEGORY_NUMBERS else (0,)
            done.weights[name] = np.delete(done.weights[name], unused, axis=0)
    for level in range(LEVELS):
        name = f"head.scales.{level}"
        done.weights[name] = np.ones(1, np.float32)
        done.sources[name] = "1: there is no such factor"
    return done


def _translate_backbone(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    return translate(arrays, resnet(source, arrays, TORCH_RESNET), ignored=[CLASSIFIER])


BACKBONE_SECTIONS = {"PPFCOS": IMAGENET_PIXELS, "ResNet": {"variant": "b"}}
SECTIONS = {
    "PPFCOS": {**IMAGENET_PIXELS, "locations": "anchors"},
    "ResNet": {"variant": "b"},
    "PPFCOSDecode": {"score_threshold": 0.2, "sqrt_score": True},
}
FORMAT = Format(
    "torchvision",
    "torchvision",
    ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_ctrness.weight"),
    _translate,
    {"coco": Recipe("fcos_resnet50_fpn", lambda backbone: SECTIONS)},
)
BACKBONE = Format(
    "torchvision-backbone",
    "torchvision's ImageNet ResNets",
    ("conv1.weight", "layer1.0.conv1.weight"),
    _translate_backbone,
    {"imagenet": Recipe("resnet50, resnet101, resnext101", lambda backbone: BACKBONE_SECTIONS)},
    backbone_only=True,
)
