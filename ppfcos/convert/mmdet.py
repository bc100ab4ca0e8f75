"""MMDetection's FCOS (mmdet/models/dense_heads/fcos_head.py, configs/fcos).

Its checkpoints contain the text of their configuration, except for some published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppfcos.convert.backbones import HRNET_FINEST_CONV, TORCH_RESNET, hrnet, resnet
from ppfcos.convert.rules import (
    CAFFE_MEAN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NO_STD,
    Backbone,
    Format,
    Recipe,
    Rule,
    Sections,
    Translation,
    numbered,
    pixels,
    translate,
)

BODY = "backbone."
LEVELS_OF_BACKBONE = 3
TOWERS = {"cls": "class_tower", "reg": "box_tower"}
PREDICTORS = {"cls": "class_conv", "reg": "box_conv", "centerness": "quality_conv"}
LAYERS = {"conv": "convs", "gn": "norms"}
TOWER_CONV = re.compile(r"(?P<conv>head\.\w+_tower\.convs\.\d\.(?:conv_dcn\.)?)(?P<part>weight|bias)")
NO_BIAS = "0: the convolution adds no bias"


def _pyramid(match: re.Match) -> str:
    index = int(match[1])
    place = f"outputs.{index}" if index < LEVELS_OF_BACKBONE else f"extras.{index - LEVELS_OF_BACKBONE}"
    return f"neck.{place}.{match[2]}"


FPN = (
    numbered(r"neck\.lateral_convs\.(\d)\.conv", "neck.laterals", 0),
    Rule(r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", _pyramid),
)
HRFPN = (
    Rule(r"neck\.reduction_conv\.conv\.(\w+)", r"neck.reduction.\1"),
    numbered(r"neck\.fpn_convs\.(\d)\.conv", "neck.outputs", 0),
)
HEAD = (
    Rule(
        r"bbox_head\.(cls|reg)_convs\.(\d)\.(conv|gn)\.(\w+)",
        lambda m: f"head.{TOWERS[m[1]]}.{LAYERS[m[3]]}.{m[2]}.{m[4]}",
    ),
    # They were called fcos_cls, fcos_reg and fcos_centerness before version 2.4.
    Rule(
        r"bbox_head\.(?:conv|fcos)_(cls|reg|centerness)\.(\w+)", lambda m: f"head.{PREDICTORS[m[1]]}.{m[2]}"
    ),
    Rule(r"bbox_head\.scales\.(\d)\.scale", r"head.scales.\1"),
)


def _deformable_rules(arrays: Mapping[str, np.ndarray]) -> list[Rule]:
    """Return rules for convolutions of the towers that contain the convolution for their offsets."""
    pattern = re.compile(r"bbox_head\.cls_convs\.(\d)\.conv\.conv_offset\.weight")
    numbers = "|".join(match[1] for match in map(pattern.fullmatch, arrays) if match)
    if not numbers:
        return []
    conv = rf"bbox_head\.(cls|reg)_convs\.({numbers})\.conv\."
    return [
        Rule(rf"{conv}(weight|bias)", lambda m: f"head.{TOWERS[m[1]]}.convs.{m[2]}.conv_dcn.{m[3]}"),
        Rule(rf"{conv}conv_offset\.(\w+)", lambda m: f"head.{TOWERS[m[1]]}.convs.{m[2]}.conv_offset.{m[3]}"),
    ]


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    if BODY + HRNET_FINEST_CONV in arrays:
        backbone, neck = hrnet(source, arrays, BODY), HRFPN
    else:
        backbone, neck = resnet(source, arrays, TORCH_RESNET, BODY), FPN
    done = translate(arrays, backbone, [*neck, *_deformable_rules(arrays), *HEAD])
    parts = [match for match in map(TOWER_CONV.fullmatch, done.weights) if match]
    if not any(match["part"] == "bias" for match in parts):  # ours always have biases before the norms
        for match in parts:
            bias = match["conv"] + "bias"
            done.weights[bias] = np.zeros(len(done.weights[match.string]), np.float32)
            done.sources[bias] = NO_BIAS
    return done


# Recipes ----------------------------------------------------------------------------------------------------


class Options(NamedTuple):
    """Options of a configuration that the names of the weights do not tell, with MMDetection's names.

    `mean` and `std` are in the order R, G, B; `conv_bias` is None if it is `auto` or unknown.
    """

    norm_on_bbox: bool = False
    centerness_on_reg: bool = False
    center_sampling: bool = False
    conv_bias: bool | None = False
    loss_bbox: str = "iou"
    style: str = "pytorch"
    to_rgb: bool = True
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    iou_threshold: float = 0.5
    score_thr: float = 0.05
    nms_pre: int = 1000
    max_per_img: int = 100


HEAD_OPTIONS = ("norm_on_bbox", "centerness_on_reg", "center_sampling", "conv_bias", "loss_bbox")
PLAIN = Options()
IMPROVED = Options(*(True, True, True, True), "giou", iou_threshold=0.6)
CAFFE = {"style": "caffe", "to_rgb": False, "std": NO_STD}
OPTIONS = {
    "caffe-improved": IMPROVED._replace(**CAFFE),
    "improved": IMPROVED,
    "caffe": PLAIN._replace(**CAFFE, mean=CAFFE_MEAN),
    "x101": PLAIN,
    "hrnet": PLAIN._replace(to_rgb=False),
}
BOOLEAN = "(true|false)"
NUMBER = r"(\d{1,9}(?:\.\d{0,9})?(?:e-\d)?)"
TRIPLE = r"[\[(]([^\])]{1,99})[\])]"
# Patterns of the options, and of their values in a configuration. The text is only searched: nothing runs it.
PATTERNS = {
    "norm_on_bbox": ("norm_on_bbox", BOOLEAN),
    "centerness_on_reg": ("centerness_on_reg", BOOLEAN),
    "center_sampling": ("center_sampling", BOOLEAN),
    "conv_bias": ("conv_bias", BOOLEAN),
    "loss_bbox": ("loss_bbox", r"(?:dict\(|\{)[^)}]{0,200}?['\"](G?IoU)Loss"),
    "style": ("style", "['\"](pytorch|caffe)"),
    "to_rgb": ("(?:bgr_)?to_rgb", BOOLEAN),
    "mean": ("mean", TRIPLE),
    "std": ("std", TRIPLE),
    "iou_threshold": ("iou_thr(?:eshold)?", NUMBER),
    "score_thr": ("score_thr", NUMBER),
    "nms_pre": ("nms_pre", NUMBER),
    "max_per_img": ("max_per_img", NUMBER),
}
# Top-level variables with these options. Others, as for test-time augmentation, repeat some of them.
STATEMENTS = r"(?ms)^(?:model|data_preprocessor|img_norm_cfg|test_cfg)\s*=.*?(?=^\w|\Z)"


def read_options(text: str) -> dict[str, Any]:
    """Return the options that the text of a configuration sets; the last value of each is valid."""
    options: dict[str, Any] = {}
    for searched in (text, "".join(re.findall(STATEMENTS, text))):
        for key, (name, value) in PATTERNS.items():
            found = re.findall(rf"(?i)\b{name}['\"]?\s*[=:]\s*{value}", searched)
            if found and value == BOOLEAN:
                options[key] = found[-1].lower() == "true"
            elif found and value == NUMBER:
                options[key] = type(getattr(PLAIN, key))(float(found[-1]))
            elif found and value == TRIPLE:
                options[key] = tuple(float(number) for number in re.findall(NUMBER, found[-1]))
            elif found:
                options[key] = found[-1].lower()
    if "mean" in options:
        options.setdefault("to_rgb", "data_preprocessor" not in text)  # MMDetection's defaults
    for key in ("mean", "std"):
        if len(options.get(key, ())) != 3:
            options.pop(key, None)
        elif not options.get("to_rgb", True):
            options[key] = options[key][::-1]
    return options


def _read_recipe(text: str, done: Translation, named: str | None) -> tuple[str, Recipe] | None:
    """Return name and recipe of a configuration's text; None if the text does not tell.

    What the text does not set is as in the recipe `named`, or as in the only recipe that agrees with it.
    """
    found = read_options(text)
    if not any(key in found for key in HEAD_OPTIONS) and "FCOSHead" not in text:
        return None
    found = {"norm_on_bbox": False, "centerness_on_reg": False, "conv_bias": None, **found}
    is_resnet = done.backbone.groups > 0
    if named is None:
        agreeing = [
            name
            for name, options in OPTIONS.items()
            if (name != "hrnet") == is_resnet
            and all(getattr(options, key) == value for key, value in found.items() if key != "conv_bias")
        ]
        is_complete = "mean" in found and ("style" in found or not is_resnet)
        if len(agreeing) != 1 and not is_complete:
            return None
        named = agreeing[0] if agreeing else "x101"
    options = OPTIONS[named]._replace(**found)
    known = {each._replace(conv_bias=None): name for name, each in OPTIONS.items()}
    name = known.get(options._replace(conv_bias=None), "of its configuration")
    return name, _recipe("the configuration in the file", options)


def _recipe(description: str, options: Options, *files: str) -> Recipe:
    def sections(backbone: Backbone) -> Sections:
        network: Sections = {"PPFCOS": pixels(options.mean, options.std)}
        if backbone.groups:
            network["ResNet"] = {"variant": "a" if options.style == "caffe" else "b"}
        else:
            network["PPFCOS"]["neck"] = "PPFCOSHRFPN"
        return {
            **network,
            "PPFCOSHead": {
                "centerness_on": "box" if options.centerness_on_reg else "class",
                "distance": "relu" if options.norm_on_bbox else "exp",
            },
            "PPFCOSTargets": {"center_sampling_radius": 1.5 if options.center_sampling else 0},
            "PPFCOSLoss": {"box_loss": options.loss_bbox},
            # Threshold and top-k use the score of the class alone; NMS and the user get the product.
            "PPFCOSDecode": {
                "class_threshold": options.score_thr,
                "rank_by": "class",
                "score_threshold": 0.0,
                "nms_threshold": options.iou_threshold,
                "pre_nms_top_k": options.nms_pre,
                "keep_top_k": options.max_per_img,
            },
        }

    def contradiction(done: Translation) -> str | None:
        if done.backbone.groups == 0 and options.style == "caffe":
            return "it is for a ResNet, and the backbone is an HRNet"
        has_bias = NO_BIAS not in done.sources.values()
        if options.conv_bias in (None, has_bias):
            return None
        verb = "have" if has_bias else "lack"
        return f"it has conv_bias {options.conv_bias}, and the convolutions of the towers {verb} biases"

    return Recipe(description, sections, bgr=not options.to_rgb, files=files, contradiction=contradiction)


FORMAT = Format(
    "mmdet",
    "MMDetection",
    ("bbox_head.scales.0.scale", "neck.fpn_convs.0.conv.weight"),
    _translate,
    {
        name: _recipe(description, OPTIONS[name], *files)
        for name, description, *files in (
            (
                "caffe-improved",
                "fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou, and the one with DCN",
                "*normbbox-centeronreg*caffe*",
                "*caffe*normbbox-centeronreg*",
            ),
            (
                "improved",
                "fcos_r50_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e, and r101",
                "*fcos_r*_fpn_gn-head-center-normbbox-centeronreg*",
            ),
            (
                "caffe",
                "fcos_r50-caffe_fpn_gn-head and fcos_r101-caffe_fpn_gn-head",
                "*caffe_fpn_gn-head_*",
                "*caffe_fpn_gn-head-1x_*",
            ),
            ("x101", "fcos_x101-64x4d_fpn_gn-head", "*x101?64x4d_fpn_gn-head_*"),
            ("hrnet", "fcos_hrnetv2p-w18-gn-head, w32 and w40", "*hrnetv2p*"),
        )
    },
    rounding="nearest",
    read_recipe=_read_recipe,
)
