"""Detectron's ImageNet backbones of MSRA, R-50.pkl and R-101.pkl."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppfcos.convert.backbones import ResnetNames, resnet
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

DETECTRON_RESNET = ResnetNames(
    stem_conv="conv1",
    stem_norm="res_conv1_bn",
    block=r"res(?P<stage>\d)_(?P<block>\d+)_branch",
    conv=r"2(?P<branch>[abc])",
    norm=r"2(?P<branch>[abc])_bn",
    short_conv="1",
    short_norm="1_bn",
    end=r"_(?P<last>[wsb])",  # a norm has a factor and a shift per channel, which contain the statistics
)
IGNORED = (
    Rule(r"(fc1000|pred)_[wb]", "the classifier of ImageNet"),
    Rule(r".*_momentum", "a state of the optimizer"),
    Rule(r"conv1_b", "Detectron's first convolution adds no bias"),
)


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    backbone = resnet(source, arrays, DETECTRON_RESNET)
    if backbone.groups > 1:
        raise WeightsError(f"{source}: of Detectron's backbones R-50 and R-101 are converted, no ResNeXt")
    done = translate(arrays, backbone, ignored=IGNORED)
    for name in [name for name in done.weights if name.endswith("norm.weight")]:
        stem = name[: -len("weight")]
        done.weights[f"{stem}_mean"] = np.zeros_like(done.weights[name])
        done.weights[f"{stem}_variance"] = np.ones_like(done.weights[name])
        done.sources[f"{stem}_mean"] = done.sources[f"{stem}_variance"] = "none: they are in factor and shift"
    remove_norm_epsilon(done.weights)
    return done


FORMAT = Format(
    "detectron",
    "Detectron's ImageNet backbones",
    ("conv1_w", "res2_0_branch2a_w"),
    _translate,
    {
        "msra": Recipe(
            "ImageNetPretrained/MSRA/R-50.pkl, R-101.pkl",
            lambda backbone: {"PPFCOS": pixels(CAFFE_MEAN, NO_STD), "ResNet": {"variant": "a"}},
            bgr=True,
        )
    },
    backbone_only=True,
)
