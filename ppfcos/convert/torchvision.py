"""torchvision's fcos_resnet50_fpn (torchvision/models/detection/fcos.py), and its ImageNet ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import Resnet, resnet_of, torch_resnet_rules
from ppfcos.convert.rules import (
    BATCH_COUNTER,
    CLASSIFIER,
    Format,
    Recipe,
    Rule,
    Translation,
    head_rules,
    imagenet_pixels,
    translate,
)

BODY = "backbone.body."
BLOCKS = r"layer(?P<stage>\d)\.(?P<block>\d+)\."
# Its classes are COCO's category numbers from 0 to 90, of which these are nobody's.
CATEGORY_NUMBERS = 91
UNUSED_NUMBERS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
LEVELS = 5
NECK = (
    Rule(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.laterals.\1.\2"),
    Rule(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.outputs.\1.\2"),
    Rule(
        r"backbone\.fpn\.extra_blocks\.p([67])\.(weight|bias)",
        lambda m: f"neck.extras.{int(m[1]) - 6}.{m[2]}",
    ),
)
HEAD = head_rules(
    tower=r"head\.(classification|regression)_head\.conv",
    predictor=r"head\.(?:classification|regression)_head\.",
    convs={"class_conv": "cls_logits", "box_conv": "bbox_reg", "quality_conv": "bbox_ctrness"},
    scale=r"no scales (\d)",
)


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    resnet = resnet_of(
        source, arrays, r"backbone\.body\." + BLOCKS, f"{BODY}layer1.0.conv2.weight", first_stage=1
    )
    rules = [*torch_resnet_rules(resnet, BODY), *NECK, *HEAD]
    done = translate(arrays, resnet, rules, [BATCH_COUNTER])
    _keep_named_classes(done.weights)
    for level in range(LEVELS):
        name = f"head.scales.{level}"
        done.weights[name] = np.ones(1, np.float32)
        done.sources[name] = "1: there is no such factor"
    return done


def _keep_named_classes(weights: dict[str, np.ndarray]) -> None:
    for name in ("head.class_conv.weight", "head.class_conv.bias"):
        if name in weights and len(weights[name]) == CATEGORY_NUMBERS:
            weights[name] = np.delete(weights[name], UNUSED_NUMBERS, axis=0)


def _translate_backbone(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    resnet = resnet_of(source, arrays, BLOCKS, "layer1.0.conv2.weight", first_stage=1)
    ignored = [BATCH_COUNTER, CLASSIFIER]
    return translate(arrays, resnet, torch_resnet_rules(resnet, ""), ignored)


def _sections(resnet: Resnet) -> dict[str, dict[str, Any]]:
    return {
        "PPFCOS": {**imagenet_pixels(), "locations": "anchors"},
        "ResNet": {"variant": "b"},
        "PPFCOSDecode": {"score_threshold": 0.2, "sqrt_score": True},
    }


def _backbone_sections(resnet: Resnet) -> dict[str, dict[str, Any]]:
    return {"PPFCOS": imagenet_pixels(), "ResNet": {"variant": "b"}}


FORMAT = Format(
    "torchvision",
    "torchvision",
    lambda arrays: (
        "head.classification_head.cls_logits.weight" in arrays
        and "head.regression_head.bbox_ctrness.weight" in arrays
    ),
    _translate,
    {"coco": Recipe("fcos_resnet50_fpn", _sections)},
)
BACKBONE = Format(
    "torchvision-backbone",
    "torchvision's ImageNet ResNets",
    lambda arrays: {"conv1.weight", "layer1.0.conv1.weight"} <= set(arrays),
    _translate_backbone,
    {"imagenet": Recipe("resnet50, resnet101, resnext101", _backbone_sections)},
    backbone_only=True,
)
