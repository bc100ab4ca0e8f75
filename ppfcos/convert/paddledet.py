"""PaddleDetection's FCOS (ppdet/modeling/heads/fcos_head.py, configs/fcos), and its ImageNet backbones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppfcos.convert.backbones import ResnetNames, resnet
from ppfcos.convert.rules import (
    CLASSIFIER,
    IMAGENET_PIXELS,
    Format,
    Recipe,
    Rule,
    Sections,
    Translation,
    numbered,
    translate,
)

# Ours are the same names; the patterns recognize the network.
PADDLEDET_RESNET = ResnetNames(
    stem_conv=r"conv1\.(?:res_)?conv1\.conv",
    stem_norm=r"conv1\.(?:res_)?conv1\.norm",
    block=r"res(?P<stage>\d)\.res\d(?P<block>[a-z]\d*)\.",
    conv=r"branch2(?P<branch>[abc])\.conv",
    norm=r"branch2(?P<branch>[abc])\.norm",
    short_conv=r"short\.conv",
    short_norm=r"short\.norm",
    offset=r"branch2b\.conv_offset",
)
TOWER = r"fcos_head\.fcos_feat\.fcos_head_"
RULES = (
    Rule(r"neck\.fpn_inner_res5_sum\.(\w+)", r"neck.laterals.2.\1"),
    numbered(r"neck\.fpn_inner_res([34])_sum_lateral", "neck.laterals", 3),
    numbered(r"neck\.fpn_res([345])_sum", "neck.outputs", 3),
    numbered(r"neck\.fpn_([67])", "neck.extras", 6),
    Rule(rf"{TOWER}cls_tower_conv_(\d)\.(conv|norm)\.(\w+)", r"head.class_tower.\2s.\1.\3"),
    Rule(rf"{TOWER}reg_tower_conv_(\d)\.(conv|norm)\.(\w+)", r"head.box_tower.\2s.\1.\3"),
    Rule(rf"{TOWER}cls_tower_conv_(\d)\.conv\.(conv_\w+\.\w+)", r"head.class_tower.convs.\1.\2"),
    Rule(rf"{TOWER}reg_tower_conv_(\d)\.conv\.(conv_\w+\.\w+)", r"head.box_tower.convs.\1.\2"),
    Rule(r"fcos_head\.fcos_head_cls\.(\w+)", r"head.class_conv.\1"),
    Rule(r"fcos_head\.fcos_head_reg\.(\w+)", r"head.box_conv.\1"),
    Rule(r"fcos_head\.fcos_head_centerness\.(\w+)", r"head.quality_conv.\1"),
    Rule(r"fcos_head\.p(\d)_feat\.scale_reg", lambda m: f"head.scales.{int(m[1]) - 3}"),
)
BACKBONE_SECTIONS = {"PPFCOS": IMAGENET_PIXELS, "ResNet": {"variant": "b"}}


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    return translate(arrays, resnet(source, arrays, PADDLEDET_RESNET, "backbone."), RULES)


def _translate_backbone(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    return translate(arrays, resnet(source, arrays, PADDLEDET_RESNET), ignored=[CLASSIFIER])


def _sections(quality: str) -> Sections:
    return {
        **BACKBONE_SECTIONS,
        "PPFCOSLoss": {"quality": quality},
        # PaddleDetection passes every candidate on, and limits them by class. One level passes more than
        # these only where so many of its scores are above the threshold.
        "PPFCOSDecode": {"pre_nms_top_k": 4000, "class_top_k": 1000, "clip": "never"},
    }


FORMAT = Format(
    "paddledet",
    "PaddleDetection",
    ("fcos_head.fcos_head_cls.weight",),
    _translate,
    {
        "iou": Recipe("fcos_r50_fpn_iou", lambda backbone: _sections("iou"), files=("*fcos*iou*",)),
        "centerness": Recipe(
            "fcos_r50_fpn, fcos_dcn_r50_fpn",
            lambda backbone: _sections("centerness"),
            pad_to_stride=128,
            files=("*fcos_r50_fpn_*", "*fcos_dcn_r50_fpn_*"),
        ),
    },
    rounding="nearest",
)
BACKBONE = Format(
    "paddledet-backbone",
    "PaddleDetection's ImageNet backbones",
    ("res2.res2a.branch2a.conv.weight",),
    _translate_backbone,
    {"imagenet": Recipe("ResNet of variant b", lambda backbone: BACKBONE_SECTIONS)},
    backbone_only=True,
)
