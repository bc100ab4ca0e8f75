"""AdelaiDet's FCOS (adet/modeling/fcos, configs/FCOS-Detection), which is built on Detectron2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import (
    DLA_FIRST_CONV,
    PAIRED_CONVS,
    Resnet,
    dla_of,
    dla_rules,
    resnet_of,
    unused_dla_rules,
)
from ppfcos.convert.rules import (
    BATCH_COUNTER,
    IMAGENET_BGR_MEAN,
    IMAGENET_BGR_STD,
    NO_STD,
    REAL_TIME_BASES,
    Backbone,
    Format,
    Recipe,
    Rule,
    Translation,
    head_rules,
    pixels,
    translate,
)

BODY = r"backbone\.bottom_up\."
DLA = "backbone.bottom_up."
NECK = (
    Rule(r"backbone\.fpn_lateral(\d)\.(\w+)", lambda m: f"neck.laterals.{int(m[1]) - 3}.{m[2]}"),
    Rule(r"backbone\.fpn_output(\d)\.(\w+)", lambda m: f"neck.outputs.{int(m[1]) - 3}.{m[2]}"),
    Rule(r"backbone\.top_block\.p([67])\.(\w+)", lambda m: f"neck.extras.{int(m[1]) - 6}.{m[2]}"),
)
HEAD = head_rules(
    tower=r"proposal_generator\.fcos_head\.(cls|bbox|share)_tower",
    predictor=r"proposal_generator\.fcos_head\.",
    convs={"class_conv": "cls_logits", "box_conv": "bbox_pred", "quality_conv": "ctrness"},
    scale=r"proposal_generator\.fcos_head\.scales\.(\d)\.scale",
)
DECODE = {"class_threshold": 0.05, "score_threshold": 0.0, "sqrt_score": True, "clip": "after"}
IGNORED = (BATCH_COUNTER, Rule(r"pixel_(mean|std)", "the configuration says it"))
GROUPS_WITHOUT_STD = 64  # its X-101-64x4d takes pixels that were not divided, its X-101-32x8d does not


def _body(resnet: Resnet) -> list[Rule]:
    block = rf"{BODY}res(\d)\.(\d+)\."

    def place(match) -> str:
        return resnet.block(int(match[1]), int(match[2]))

    def branch(match) -> str:
        return f"{place(match)}.branch2{PAIRED_CONVS[int(match[3]) - 1]}"

    return [
        Rule(rf"{BODY}stem\.conv1\.weight", f"backbone.conv1.{resnet.stem}.conv.weight"),
        Rule(rf"{BODY}stem\.conv1\.norm\.(\w+)", rf"backbone.conv1.{resnet.stem}.norm.\1"),
        Rule(rf"{block}conv([123])\.weight", lambda m: f"{branch(m)}.conv.weight"),
        Rule(rf"{block}conv2_offset\.(\w+)", lambda m: f"{place(m)}.branch2b.conv_offset.{m[3]}"),
        Rule(rf"{block}conv([123])\.norm\.(\w+)", lambda m: f"{branch(m)}.norm.{m[4]}"),
        Rule(rf"{block}shortcut\.weight", lambda m: f"{place(m)}.short.conv.weight"),
        Rule(rf"{block}shortcut\.norm\.(\w+)", lambda m: f"{place(m)}.short.norm.{m[3]}"),
    ]


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    if DLA + DLA_FIRST_CONV in arrays:
        ignored = [*IGNORED, *unused_dla_rules(DLA)]
        return translate(arrays, dla_of(source, arrays, DLA), [*dla_rules(DLA), *NECK, *HEAD], ignored)
    pattern = BODY + r"res(?P<stage>\d)\.(?P<block>\d+)\."
    kernel = "backbone.bottom_up.res2.0.conv2.weight"
    resnet = resnet_of(source, arrays, pattern, kernel, first_stage=2)
    return translate(arrays, resnet, [*_body(resnet), *NECK, *HEAD], IGNORED)


def _sections(resnet: Resnet, quality: str) -> dict[str, dict[str, Any]]:
    divided = resnet.groups not in (1, GROUPS_WITHOUT_STD)
    return {
        "PPFCOS": pixels(IMAGENET_BGR_MEAN, IMAGENET_BGR_STD if divided else NO_STD),
        "ResNet": {"variant": "a" if resnet.groups == 1 else "b"},
        "PPFCOSLoss": {"quality": quality},
        "PPFCOSDecode": DECODE,
    }


def _real_time(backbone: Backbone) -> dict[str, dict[str, Any]]:
    stride = {"ResNet": {"variant": "a"}} if isinstance(backbone, Resnet) else {}
    return {"PPFCOS": pixels(IMAGENET_BGR_MEAN, NO_STD), **stride, "PPFCOSDecode": DECODE}


FORMAT = Format(
    "adelaidet",
    "AdelaiDet",
    lambda arrays: "proposal_generator.fcos_head.ctrness.weight" in arrays,
    _translate,
    {
        "real-time": Recipe(
            "FCOS_RT: MS_DLA_34_4x and MS_R_50_4x, also with shared towers or batch norm in the head",
            _real_time,
            bgr=True,
            files=("*_4x_syncbn*",),
            bases=REAL_TIME_BASES,
        ),
        "iou": Recipe(
            "R_50_1x_iou, MS_R_50_2x_iou, MS_R_101_2x_iou, MS_X_101_32x8d_2x_iou and _dcnv2_iou",
            lambda resnet: _sections(resnet, "iou"),
            bgr=True,
            files=("*_[12]x_iou*", "*_2x_dcnv2_iou*"),
        ),
        "centerness": Recipe(
            "R_50_1x, MS_R_50_2x, MS_R_101_2x, MS_X_101_32x8d_2x and 64x4d, and those with dcnv2",
            lambda resnet: _sections(resnet, "centerness"),
            bgr=True,
            files=("*_[12]x.*", "*_2x_dcnv2.*"),
        ),
    },
)
