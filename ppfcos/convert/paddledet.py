"""PaddleDetection's FCOS (ppdet/modeling/heads/fcos_head.py, configs/fcos), and its ImageNet backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import Resnet, resnet_of
from ppfcos.convert.rules import CLASSIFIER, Format, Recipe, Rule, Translation, imagenet_pixels, translate

HEAD = r"fcos_head\.fcos_feat\.fcos_head_"
RULES = (
    Rule(r"backbone\..*", r"\g<0>"),
    Rule(r"neck\.fpn_inner_res5_sum\.(\w+)", r"neck.laterals.2.\1"),
    Rule(r"neck\.fpn_inner_res([34])_sum_lateral\.(\w+)", lambda m: f"neck.laterals.{int(m[1]) - 3}.{m[2]}"),
    Rule(r"neck\.fpn_res([345])_sum\.(\w+)", lambda m: f"neck.outputs.{int(m[1]) - 3}.{m[2]}"),
    Rule(r"neck\.fpn_([67])\.(\w+)", lambda m: f"neck.extras.{int(m[1]) - 6}.{m[2]}"),
    Rule(rf"{HEAD}cls_tower_conv_(\d)\.(conv|norm)\.(\w+)", r"head.class_tower.\2s.\1.\3"),
    Rule(rf"{HEAD}reg_tower_conv_(\d)\.(conv|norm)\.(\w+)", r"head.box_tower.\2s.\1.\3"),
    Rule(rf"{HEAD}cls_tower_conv_(\d)\.conv\.(conv_\w+\.\w+)", r"head.class_tower.convs.\1.\2"),
    Rule(rf"{HEAD}reg_tower_conv_(\d)\.conv\.(conv_\w+\.\w+)", r"head.box_tower.convs.\1.\2"),
    Rule(r"fcos_head\.fcos_head_cls\.(\w+)", r"head.class_conv.\1"),
    Rule(r"fcos_head\.fcos_head_reg\.(\w+)", r"head.box_conv.\1"),
    Rule(r"fcos_head\.fcos_head_centerness\.(\w+)", r"head.quality_conv.\1"),
    Rule(r"fcos_head\.p(\d)_feat\.scale_reg", lambda m: f"head.scales.{int(m[1]) - 3}"),
)


def _resnet(source: str, arrays: Mapping[str, np.ndarray], prefix: str) -> Resnet:
    """PaddleDetection letters its blocks, and numbers them behind the letter b where there are many."""
    numbered = {}
    for name, array in arrays.items():
        stage, _, rest = name[len(prefix) :].partition(".")
        block = rest.partition(".")[0][len(stage) :]
        if name.startswith(f"{prefix}res") and block:
            index = int(block[1:]) if block[1:] else ord(block[0]) - ord("a")
            numbered[f"{stage[3:]}.{index}.{rest.partition('.')[2]}"] = array
    pattern = r"(?P<stage>\d)\.(?P<block>\d+)\."
    return resnet_of(source, numbered, pattern, "2.0.branch2b.conv.weight", first_stage=2)


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    return translate(arrays, _resnet(source, arrays, "backbone."), RULES)


def _translate_backbone(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    ignored = [CLASSIFIER]
    rules = [Rule(r"(conv1|res\d)\..*", r"backbone.\g<0>")]
    return translate(arrays, _resnet(source, arrays, ""), rules, ignored)


def _sections(quality: str) -> dict[str, dict[str, Any]]:
    return {
        "PPFCOS": imagenet_pixels(),
        "ResNet": {"variant": "b"},
        "PPFCOSLoss": {"quality": quality},
        # PaddleDetection sends every candidate on, and cuts by class. One level sends more than these only
        # where so many of its scores are above the threshold.
        "PPFCOSDecode": {"pre_nms_top_k": 4000, "class_top_k": 1000, "clip": "never"},
    }


def _backbone_sections(resnet: Resnet) -> dict[str, dict[str, Any]]:
    return {"PPFCOS": imagenet_pixels(), "ResNet": {"variant": "b"}}


FORMAT = Format(
    "paddledet",
    "PaddleDetection",
    lambda arrays: "fcos_head.fcos_head_cls.weight" in arrays,
    _translate,
    {
        "iou": Recipe("fcos_r50_fpn_iou", lambda resnet: _sections("iou"), files=("*fcos*iou*",)),
        "centerness": Recipe(
            "fcos_r50_fpn, fcos_dcn_r50_fpn",
            lambda resnet: _sections("centerness"),
            pad_to_stride=128,
            files=("*fcos_r50_fpn_*", "*fcos_dcn_r50_fpn_*"),
        ),
    },
)
BACKBONE = Format(
    "paddledet-backbone",
    "PaddleDetection's ImageNet backbones",
    lambda arrays: "res2.res2a.branch2a.conv.weight" in arrays,
    _translate_backbone,
    {"imagenet": Recipe("ResNet of variant b", _backbone_sections)},
    backbone_only=True,
)
