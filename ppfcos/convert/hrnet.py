"""An HRNet: our names for its weights, which are PaddleDetection's, and MMDetection's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppfcos.convert.names import Rule
from ppfcos.errors import WeightsError

WIDTHS = (18, 30, 32, 40, 44, 48, 60, 64)  # that PaddleDetection builds
FINEST_CONV = "stage2.0.branches.0.0.conv1.weight"
LAYERS = {"0": "conv", "1": "norm"}  # of a convolution, its norm and perhaps a ReLU, one after another


class Hrnet(NamedTuple):
    """An HRNet.

    Attributes:
        width: channels of its finest branch.
    """

    width: int

    @property
    def first_conv(self) -> str:
        """Our name for the weight of the convolution that sees the pixels."""
        return "backbone.conv_layer1_1.conv.weight"

    @property
    def description(self) -> str:
        """What it is, for people."""
        return f"HRNet-W{self.width}"

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of it."""
        return {"PPFCOS": {"backbone": "HRNet"}, "HRNet": {"width": self.width, "freeze_at": -1}}


def hrnet_of(source: str, arrays: Mapping[str, np.ndarray], prefix: str) -> Hrnet:
    """Find out what HRNet some weights are of.

    Args:
        source: what to call the weights in an error.
        arrays: by name.
        prefix: what stands before `stage2`.

    Returns:
        The network.

    Raises:
        WeightsError: it is of no width that can be built.
    """
    width = len(arrays[prefix + FINEST_CONV])
    if width not in WIDTHS:
        raise WeightsError(
            f"{source}: its HRNet is {width} channels wide; only {', '.join(map(str, WIDTHS))} can be built"
        )
    return Hrnet(width)


def hrnet_rules(prefix: str) -> list[Rule]:
    """The names of MMDetection's HRNet.

    Args:
        prefix: what stands before `stage2`, as it is.

    Returns:
        Rules for convolutions and batch norms.
    """
    prefix = re.escape(prefix)
    module = rf"{prefix}stage(\d)\.(\d)\."
    return [
        Rule(rf"{prefix}conv([12])\.weight", r"backbone.conv_layer1_\1.conv.weight"),
        Rule(rf"{prefix}bn([12])\.(\w+)", r"backbone.conv_layer1_\1.norm.\2"),
        Rule(rf"{prefix}layer1\.(\d)\.(conv|bn)([123])\.(\w+)", _bottleneck),
        Rule(rf"{prefix}layer1\.(\d)\.(downsample)\.([01])\.(\w+)", _bottleneck),
        # A branch that begins here is a list of one such list: it has a number more.
        Rule(rf"{prefix}transition(\d)\.(\d)\.(?:0\.)?([01])\.(\w+)", _transition),
        Rule(rf"{module}branches\.(\d)\.(\d)\.(conv|bn)([12])\.(\w+)", _branch),
        # From a finer branch it is a list of such lists, each halving the size.
        Rule(rf"{module}fuse_layers\.(\d)\.(\d)\.(?:(\d)\.)?([01])\.(\w+)", _fusion),
    ]


def _kind(theirs: str) -> str:
    return "norm" if theirs == "bn" else theirs


def _bottleneck(match: re.Match) -> str:
    block, kind, number, last = match.groups()
    if kind == "downsample":
        place = f"conv_down.{LAYERS[number]}"
    else:
        place = f"conv{number}.{_kind(kind)}"
    return f"backbone.la1.block_layer2_{int(block) + 1}.{place}.{last}"


def _transition(match: re.Match) -> str:
    stage, branch, layer, last = match.groups()
    place = f"tr{stage}.transition_tr{stage}_layer_{int(branch) + 1}"
    return f"backbone.{place}.{LAYERS[layer]}.{last}"


def _module(stage: str, module: str) -> tuple[str, str]:
    """Place of a module of a stage, and what the names in it begin with."""
    name = f"st{stage}_{int(module) + 1}"
    return f"backbone.st{stage}.stage_{name}", name


def _branch(match: re.Match) -> str:
    stage, module, branch, block, kind, number, last = match.groups()
    place, name = _module(stage, module)
    block = f"bb_{name}_branch_layer_{int(branch) + 1}_{int(block) + 1}"
    return f"{place}.branches_func.{block}.conv{number}.{_kind(kind)}.{last}"


def _fusion(match: re.Match) -> str:
    stage, module, target, source, step, layer, last = match.groups()
    place, name = _module(stage, module)
    numbers = [int(number) + 1 for number in (target, source, step) if number is not None]
    residual = "_".join(map(str, (f"residual_{name}_layer", *numbers)))
    return f"{place}.fuse_func.{residual}.{LAYERS[layer]}.{last}"
