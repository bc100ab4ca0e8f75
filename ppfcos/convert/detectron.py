"""Detectron's ImageNet backbones of MSRA, R-50.pkl and R-101.pkl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.convert.backbones import Resnet, resnet_of
from ppfcos.convert.rules import (
    CAFFE_MEAN,
    NO_STD,
    Format,
    Recipe,
    Rule,
    Translation,
    pixels,
    remove_norm_epsilon,
    translate,
)
from ppfcos.errors import WeightsError

NORM = {"s": "weight", "b": "bias"}  # a factor and a shift per channel: the statistics are in them
IGNORED = (
    Rule(r"(fc1000|pred)_[wb]", "the classifier of ImageNet"),
    Rule(r".*_momentum", "a state of the optimizer"),
    Rule(r"conv1_b", "Detectron's first convolution adds no bias"),
)


def _rules(resnet: Resnet) -> list[Rule]:
    block = r"res(\d)_(\d+)_branch"

    def place(match) -> str:
        branch = "short" if match[3] == "1" else f"branch{match[3]}"
        return f"{resnet.block(int(match[1]), int(match[2]))}.{branch}"

    stem = f"backbone.conv1.{resnet.stem}"
    return [
        Rule(r"conv1_w", f"{stem}.conv.weight"),
        Rule(r"res_conv1_bn_([sb])", lambda m: f"{stem}.norm.{NORM[m[1]]}"),
        Rule(rf"{block}(1|2[abc])_w", lambda m: f"{place(m)}.conv.weight"),
        Rule(rf"{block}(1|2[abc])_bn_([sb])", lambda m: f"{place(m)}.norm.{NORM[m[4]]}"),
    ]


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    pattern = r"res(?P<stage>\d)_(?P<block>\d+)_branch"
    resnet = resnet_of(source, arrays, pattern, "res2_0_branch2b_w", first_stage=2)
    if resnet.groups > 1:
        raise WeightsError(f"{source}: of Detectron's backbones R-50 and R-101 are converted, no ResNeXt")
    done = translate(arrays, resnet, _rules(resnet), IGNORED)
    for name in [name for name in done.weights if name.endswith("norm.weight")]:
        stem = name[: -len("weight")]
        done.weights[f"{stem}_mean"] = np.zeros_like(done.weights[name])
        done.weights[f"{stem}_variance"] = np.ones_like(done.weights[name])
        done.sources[f"{stem}_mean"] = done.sources[f"{stem}_variance"] = "none: they are in factor and shift"
    remove_norm_epsilon(done.weights)
    return done


def _sections(resnet: Resnet) -> dict[str, dict[str, Any]]:
    return {"PPFCOS": pixels(CAFFE_MEAN, NO_STD), "ResNet": {"variant": "a"}}


FORMAT = Format(
    "detectron",
    "Detectron's ImageNet backbones",
    lambda arrays: {"conv1_w", "res2_0_branch2a_w"} <= set(arrays),
    _translate,
    {"msra": Recipe("ImageNetPretrained/MSRA/R-50.pkl, R-101.pkl", _sections, bgr=True)},
    backbone_only=True,
)
