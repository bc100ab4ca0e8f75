"""PaddleClas's ImageNet ResNets (ppcls/arch/backbone/legendary_models/resnet.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import DEPTHS, PAIRED_CONVS, Resnet, resnet_of
from ppfcos.convert.rules import CLASSIFIER, Format, Recipe, Rule, Translation, imagenet_pixels, translate

IGNORED = (CLASSIFIER,)
THREE_CONVOLUTIONS = "stem.2.conv.weight"  # only ResNet_vd begins with three


def _place_of(blocks: tuple) -> list[tuple[int, int]]:
    """Stage and index of every block, in the order in which PaddleClas counts them through."""
    return [(stage + 2, index) for stage, count in enumerate(blocks) for index in range(count)]


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    count = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    blocks = next((blocks for blocks in DEPTHS if sum(blocks) == count), (count, 0, 0, 0))
    places = _place_of(blocks)
    staged = {}
    for name, array in arrays.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            staged[f"{places[int(number)][0]}.{places[int(number)][1]}.{rest}"] = array
    pattern = r"(?P<stage>\d)\.(?P<block>\d+)\."
    resnet = resnet_of(source, staged, pattern, "2.0.conv1.conv.weight", first_stage=2)
    return translate(arrays, resnet, _rules(resnet, places, THREE_CONVOLUTIONS in arrays), IGNORED)


def _rules(resnet: Resnet, places: list, pooled_shortcuts: bool) -> list[Rule]:
    layer = {"conv": "conv", "bn": "norm"}

    def stem(match) -> str:
        name = f"conv1_{int(match[1]) + 1}" if pooled_shortcuts else resnet.stem
        return f"backbone.conv1.{name}.{layer[match[2]]}.{match[3]}"

    def branch(match) -> str:
        place = resnet.block(*places[int(match[1])])
        return f"{place}.branch2{PAIRED_CONVS[int(match[2])]}.{layer[match[3]]}.{match[4]}"

    def shortcut(match) -> str:
        stage, index = places[int(match[1])]
        # The pool before the convolution is PaddleDetection's layer of its own where the stride is 2.
        short = "short.conv" if pooled_shortcuts and stage > 2 else "short"
        return f"{resnet.block(stage, index)}.{short}.{layer[match[2]]}.{match[3]}"

    return [
        Rule(r"stem\.(\d)\.(conv|bn)\.(\w+)", stem),
        Rule(r"blocks\.(\d+)\.conv([012])\.(conv|bn)\.(\w+)", branch),
        Rule(r"blocks\.(\d+)\.short\.(conv|bn)\.(\w+)", shortcut),
    ]


def _sections(variant: str) -> dict[str, dict[str, Any]]:
    return {"PPFCOS": imagenet_pixels(), "ResNet": {"variant": variant}}


FORMAT = Format(
    "paddleclas",
    "PaddleClas",
    lambda arrays: "stem.0.conv.weight" in arrays and THREE_CONVOLUTIONS not in arrays,
    _translate,
    {"imagenet": Recipe("ResNet50, ResNet101", lambda resnet: _sections("b"))},
    backbone_only=True,
)
FORMAT_VD = Format(
    "paddleclas-vd",
    "PaddleClas",
    lambda arrays: "stem.0.conv.weight" in arrays and THREE_CONVOLUTIONS in arrays,
    _translate,
    {"imagenet": Recipe("ResNet50_vd, ResNet101_vd", lambda resnet: _sections("d"))},
    backbone_only=True,
)
