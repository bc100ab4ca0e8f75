"""MMDetection's FCOS (mmdet/models/dense_heads/fcos_head.py, configs/fcos)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import (
    HRNET_FINEST_CONV,
    Resnet,
    hrnet_of,
    hrnet_rules,
    resnet_of,
    torch_resnet_rules,
)
from ppfcos.convert.rules import (
    BATCH_COUNTER,
    CAFFE_MEAN,
    IMAGENET_BGR_MEAN,
    IMAGENET_BGR_STD,
    NO_STD,
    Format,
    Recipe,
    Rule,
    Translation,
    imagenet_pixels,
    pixels,
    translate,
)

BODY = "backbone."
BLOCKS = r"backbone\.layer(?P<stage>\d)\.(?P<block>\d+)\."
LEVELS_OF_BACKBONE = 3
PREDICTORS = {"cls": "class_conv", "reg": "box_conv", "centerness": "quality_conv"}
LAYERS = {"conv": "convs", "gn": "norms"}
TOWER_CONV = re.compile(r"(?P<conv>head\.\w+_tower\.convs\.\d\.(?:conv_dcn\.)?)(?P<part>weight|bias)")


def _pyramid(match) -> str:
    index = int(match[1])
    place = f"outputs.{index}" if index < LEVELS_OF_BACKBONE else f"extras.{index - LEVELS_OF_BACKBONE}"
    return f"neck.{place}.{match[2]}"


def _tower_place(match) -> str:
    return f"head.{'class' if match[1] == 'cls' else 'box'}_tower"


def _tower(match) -> str:
    return f"{_tower_place(match)}.{LAYERS[match[3]]}.{match[2]}.{match[4]}"


NECK = (
    Rule(r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"neck.laterals.\1.\2"),
    Rule(r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", _pyramid),
)
HRNET_NECK = (
    Rule(r"neck\.reduction_conv\.conv\.(\w+)", r"neck.reduction.\1"),
    Rule(r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", r"neck.outputs.\1.\2"),
)
HEAD = (
    Rule(r"bbox_head\.(cls|reg)_convs\.(\d)\.(conv|gn)\.(\w+)", _tower),
    # They were called fcos_cls, fcos_reg and fcos_centerness before version 2.4.
    Rule(
        r"bbox_head\.(?:conv|fcos)_(cls|reg|centerness)\.(\w+)", lambda m: f"head.{PREDICTORS[m[1]]}.{m[2]}"
    ),
    Rule(r"bbox_head\.scales\.(\d)\.scale", r"head.scales.\1"),
)


def _deformable_rules(arrays: Mapping[str, np.ndarray]) -> list[Rule]:
    """For the convolutions of the towers that hold a second one, which says their offsets."""
    pattern = re.compile(r"bbox_head\.cls_convs\.(\d)\.conv\.conv_offset\.weight")
    numbers = "|".join(match[1] for match in map(pattern.fullmatch, arrays) if match)
    if not numbers:
        return []
    conv = rf"bbox_head\.(cls|reg)_convs\.({numbers})\.conv\."
    return [
        Rule(rf"{conv}(weight|bias)", lambda m: f"{_tower_place(m)}.convs.{m[2]}.conv_dcn.{m[3]}"),
        Rule(rf"{conv}conv_offset\.(\w+)", lambda m: f"{_tower_place(m)}.convs.{m[2]}.conv_offset.{m[3]}"),
    ]


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    if BODY + HRNET_FINEST_CONV in arrays:
        backbone = hrnet_of(source, arrays, BODY)
        rules = [*hrnet_rules(BODY), *HRNET_NECK]
    else:
        backbone = resnet_of(source, arrays, BLOCKS, f"{BODY}layer1.0.conv2.weight", first_stage=1)
        rules = [*torch_resnet_rules(backbone, BODY), *NECK]
    done = translate(arrays, backbone, [*rules, *_deformable_rules(arrays), *HEAD], [BATCH_COUNTER])
    _add_tower_biases(done)
    return done


def _add_tower_biases(done: Translation) -> None:
    """Its towers have biases before the norms only where the configuration says `conv_bias`; ours always."""
    parts = [match for match in map(TOWER_CONV.fullmatch, done.weights) if match]
    if any(match["part"] == "bias" for match in parts):
        return
    for match in parts:
        bias = match["conv"] + "bias"
        done.weights[bias] = np.zeros(len(done.weights[match.string]), np.float32)
        done.sources[bias] = "0: the convolution adds no bias"


def _decode(nms_threshold: float) -> dict[str, Any]:
    # Threshold and ranking look at the class alone; the score that NMS and user see is the product.
    return {
        "class_threshold": 0.05,
        "rank_by": "class",
        "score_threshold": 0.0,
        "nms_threshold": nms_threshold,
    }


def _plain(head_pixels: dict, variant: str) -> dict[str, dict[str, Any]]:
    return {"PPFCOS": head_pixels, "ResNet": {"variant": variant}, **_original()}


def _hrnet() -> dict[str, dict[str, Any]]:
    network = {**pixels(IMAGENET_BGR_MEAN, IMAGENET_BGR_STD), "neck": "PPFCOSHRFPN"}
    return {"PPFCOS": network, **_original()}


def _original() -> dict[str, dict[str, Any]]:
    """FCOS without the improvements."""
    return {
        "PPFCOSHead": {"centerness_on": "class", "distance": "exp"},
        "PPFCOSTargets": {"center_sampling_radius": 0},
        "PPFCOSLoss": {"box_loss": "iou"},
        "PPFCOSDecode": _decode(0.5),
    }


def _improved(resnet: Resnet) -> dict[str, dict[str, Any]]:
    return {
        "PPFCOS": pixels(IMAGENET_BGR_MEAN, NO_STD),
        "ResNet": {"variant": "a"},
        "PPFCOSDecode": _decode(0.6),
    }


FORMAT = Format(
    "mmdet",
    "MMDetection",
    lambda arrays: "bbox_head.scales.0.scale" in arrays and "neck.fpn_convs.0.conv.weight" in arrays,
    _translate,
    {
        "caffe-improved": Recipe(
            "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou, and the one with DCN",
            _improved,
            bgr=True,
            files=("*normbbox-centeronreg*caffe*", "*caffe*normbbox-centeronreg*"),
        ),
        "caffe": Recipe(
            "fcos_r50-caffe_fpn_gn-head and fcos_r101-caffe_fpn_gn-head",
            lambda resnet: _plain(pixels(CAFFE_MEAN, NO_STD), "a"),
            bgr=True,
            files=("*caffe_fpn_gn-head_*", "*caffe_fpn_gn-head-1x_*"),
        ),
        "x101": Recipe(
            "fcos_x101-64x4d_fpn_gn-head",
            lambda resnet: _plain(imagenet_pixels(), "b"),
            files=("*x101?64x4d_fpn_gn-head_*",),
        ),
        "hrnet": Recipe(
            "fcos_hrnetv2p-w18-gn-head, w32 and w40",
            lambda backbone: _hrnet(),
            bgr=True,
            files=("*hrnetv2p*",),
        ),
    },
)
