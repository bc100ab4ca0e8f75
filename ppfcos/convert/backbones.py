"""Backbones of converted weights: what tells them apart, their sections, and the rules of their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppfcos.convert.rules import Rule
from ppfcos.errors import WeightsError

DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}  # by blocks per stage; all are bottlenecks
PAIRED_CONVS = "abc"
HRNET_WIDTHS = (18, 30, 32, 40, 44, 48, 60, 64)  # of PaddleDetection
HRNET_FINEST_CONV = "stage2.0.branches.0.0.conv1.weight"
HRNET_LAYERS = {"0": "conv", "1": "norm"}
DLA_FIRST_CONV = "base_layer.0.weight"
DLA_TREE = r"(level[2-5](?:\.tree[12])*)"


class Resnet(NamedTuple):
    """A ResNet or ResNeXt of bottlenecks.

    Attributes:
        blocks: of each of the four stages.
        groups: of the 3x3 convolutions.
        base_width: channels of a group in the first stage.
        deformable: stages, from 0 to 3, whose 3x3 convolutions are deformable.
    """

    blocks: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64
    deformable: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """50 or 101."""
        return DEPTHS[self.blocks]

    @property
    def stem(self) -> str:
        """PaddleDetection's name for the first convolution."""
        return "conv1" if self.groups == 1 else "res_conv1"

    @property
    def first_conv(self) -> str:
        return f"backbone.conv1.{self.stem}.conv.weight"

    @property
    def description(self) -> str:
        groups = f", {self.groups} groups of {self.base_width}" if self.groups > 1 else ""
        stages = ", ".join(f"C{stage + 2}" for stage in self.deformable)
        return f"ResNet of {self.depth} layers{groups}" + (f", deformable in {stages}" if stages else "")

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        section = {"depth": self.depth, "groups": self.groups, "base_width": self.base_width}
        return {"ResNet": {**section, "dcn_v2_stages": list(self.deformable) or [-1]}}

    def block(self, stage: int, index: int) -> str:
        """PaddleDetection's name of a block; `stage` is 2 to 5, `index` counts from 0."""
        if self.blocks[stage - 2] > 10 and stage == 4 and index > 0:
            letter = f"b{index}"
        else:
            letter = chr(ord("a") + index)
        return f"backbone.res{stage}.res{stage}{letter}"


def resnet_of(
    source: str, arrays: Mapping[str, np.ndarray], pattern: str, kernel: str, first_stage: int
) -> Resnet:
    """Recognize a ResNet.

    Args:
        source: name of the weights in an error.
        arrays: by name.
        pattern: of the names of blocks, with groups `stage` and `block`; `offset` is part of those of
            deformable convolutions.
        kernel: name of the first 3x3 convolution of a block.
        first_stage: number of the first stage in the names.

    Raises:
        WeightsError: it has neither 50 nor 101 layers.
    """
    matches = [match for match in map(re.compile(pattern).match, arrays) if match]
    found = {(int(match["stage"]), int(match["block"])) for match in matches}
    blocks = tuple(sum(stage == first_stage + i for stage, _ in found) for i in range(4))
    if blocks not in DEPTHS or kernel not in arrays:
        raise WeightsError(
            f"{source}: its backbone has {blocks} blocks a stage; only 50 and 101 layers are converted, "
            "(3, 4, 6, 3) and (3, 4, 23, 3) bottlenecks"
        )
    width, per_group = arrays[kernel].shape[:2]
    deformable = {int(match["stage"]) - first_stage for match in matches if "offset" in match.string}
    return Resnet(blocks, width // per_group, per_group, tuple(sorted(deformable)))


def torch_resnet_rules(resnet: Resnet, prefix: str, stem: str = "") -> list[Rule]:
    """Rules for the names of torchvision's ResNet, which most projects use.

    Args:
        resnet: the network.
        prefix: before `layer1`.
        stem: further prefix before `conv1` and `bn1`.
    """
    prefix, stem = re.escape(prefix), re.escape(stem)
    block = rf"{prefix}layer(\d)\.(\d+)\."

    def place(match: re.Match) -> str:
        return resnet.block(int(match[1]) + 1, int(match[2]))

    return [
        Rule(rf"{prefix}{stem}conv1\.weight", f"backbone.conv1.{resnet.stem}.conv.weight"),
        Rule(rf"{prefix}{stem}bn1\.(\w+)", rf"backbone.conv1.{resnet.stem}.norm.\1"),
        Rule(
            rf"{block}conv([123])\.weight",
            lambda m: f"{place(m)}.branch2{PAIRED_CONVS[int(m[3]) - 1]}.conv.weight",
        ),
        # MMDetection's deformable convolution holds the one for its offsets, the authors' holds both.
        Rule(rf"{block}conv2\.(?:conv_)?offset\.(\w+)", lambda m: f"{place(m)}.branch2b.conv_offset.{m[3]}"),
        Rule(rf"{block}conv2\.conv\.weight", lambda m: f"{place(m)}.branch2b.conv.weight"),
        Rule(
            rf"{block}bn([123])\.(\w+)",
            lambda m: f"{place(m)}.branch2{PAIRED_CONVS[int(m[3]) - 1]}.norm.{m[4]}",
        ),
        Rule(rf"{block}downsample\.0\.weight", lambda m: f"{place(m)}.short.conv.weight"),
        Rule(rf"{block}downsample\.1\.(\w+)", lambda m: f"{place(m)}.short.norm.{m[3]}"),
    ]


class MobilenetV2(NamedTuple):
    """A MobileNetV2 of width 1."""

    @property
    def first_conv(self) -> str:
        return "backbone.features.0.0.weight"

    @property
    def description(self) -> str:
        return "MobileNetV2"

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        return {"PPFCOS": {"backbone": "PPFCOSMobileNetV2"}}


def torch_mobilenet_rules(prefix: str) -> list[Rule]:
    """Rules for a MobileNetV2 of PyTorch whose blocks number all layers; `prefix` is before `features`."""
    prefix = re.escape(prefix)

    def layer(match: re.Match) -> str:
        # Convolution, norm and ReLU6 are one layer of ours. The first block, without expansion, has one such
        # layer, the others two; a convolution and its norm follow.
        block, number = int(match[1]), int(match[2])
        triples = 1 if block == 1 else 2
        inside = number < 3 * triples
        place = f"{number // 3}.{number % 3}" if inside else str(number - 2 * triples)
        return f"backbone.features.{block}.conv.{place}.{match[3]}"

    return [
        Rule(rf"{prefix}features\.0\.([01])\.(\w+)", r"backbone.features.0.\1.\2"),
        Rule(rf"{prefix}features\.(\d+)\.conv\.(\d)\.(\w+)", layer),
    ]


class Hrnet(NamedTuple):
    """An HRNet.

    Attributes:
        width: channels of its finest branch.
    """

    width: int

    @property
    def first_conv(self) -> str:
        return "backbone.conv_layer1_1.conv.weight"

    @property
    def description(self) -> str:
        return f"HRNet-W{self.width}"

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
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
    width = len(arrays[prefix + HRNET_FINEST_CONV])
    if width not in HRNET_WIDTHS:
        raise WeightsError(
            f"{source}: its HRNet has width {width}: only {', '.join(map(str, HRNET_WIDTHS))} are converted"
        )
    return Hrnet(width)


def hrnet_rules(prefix: str) -> list[Rule]:
    """Rules for MMDetection's HRNet; `prefix` is before `stage2`."""
    prefix = re.escape(prefix)
    module = rf"{prefix}stage(\d)\.(\d)\."
    return [
        Rule(rf"{prefix}conv([12])\.weight", r"backbone.conv_layer1_\1.conv.weight"),
        Rule(rf"{prefix}bn([12])\.(\w+)", r"backbone.conv_layer1_\1.norm.\2"),
        Rule(rf"{prefix}layer1\.(\d)\.(conv|bn)([123])\.(\w+)", _bottleneck),
        Rule(rf"{prefix}layer1\.(\d)\.(downsample)\.([01])\.(\w+)", _bottleneck),
        # A new branch is a list of one such list: it has one more number.
        Rule(rf"{prefix}transition(\d)\.(\d)\.(?:0\.)?([01])\.(\w+)", _transition),
        Rule(rf"{module}branches\.(\d)\.(\d)\.(conv|bn)([12])\.(\w+)", _branch),
        # From a finer branch it is a list of such lists, each with stride 2.
        Rule(rf"{module}fuse_layers\.(\d)\.(\d)\.(?:(\d)\.)?([01])\.(\w+)", _fusion),
    ]


def _kind(theirs: str) -> str:
    return "norm" if theirs == "bn" else theirs


def _bottleneck(match: re.Match) -> str:
    block, kind, number, last = match.groups()
    if kind == "downsample":
        place = f"conv_down.{HRNET_LAYERS[number]}"
    else:
        place = f"conv{number}.{_kind(kind)}"
    return f"backbone.la1.block_layer2_{int(block) + 1}.{place}.{last}"


def _transition(match: re.Match) -> str:
    stage, branch, layer, last = match.groups()
    place = f"tr{stage}.transition_tr{stage}_layer_{int(branch) + 1}"
    return f"backbone.{place}.{HRNET_LAYERS[layer]}.{last}"


def _module(stage: str, module: str) -> tuple[str, str]:
    """Name of a module of a stage, and the prefix of the names in it."""
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
    return f"{place}.fuse_func.{residual}.{HRNET_LAYERS[layer]}.{last}"


class Dla(NamedTuple):
    """A DLA of 34 layers, with two convolutions per block."""

    depth: int = 34

    @property
    def first_conv(self) -> str:
        return "backbone.base_layer.0.conv.weight"

    @property
    def description(self) -> str:
        return f"DLA-{self.depth}"

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        # Neither its authors nor AdelaiDet freeze its batch norms.
        return {
            "PPFCOS": {"backbone": "PPFCOSDLA"},
            "PPFCOSDLA": {"depth": self.depth, "norm_type": "sync_bn"},
        }


def dla_of(source: str, arrays: Mapping[str, np.ndarray], prefix: str) -> Dla:
    """Recognize a DLA-34; `prefix` is before `base_layer`.

    Raises:
        WeightsError: it is a deeper DLA, whose blocks have three convolutions.
    """
    deeper = next((name for name in arrays if name.startswith(prefix) and ".conv3." in name), None)
    if deeper is not None:
        raise WeightsError(
            f"{source}: its backbone is a DLA of another depth than 34 ({deeper}), which is not converted"
        )
    return Dla()


def dla_rules(prefix: str) -> list[Rule]:
    """Rules for the DLA of its authors and of AdelaiDet; `prefix` is before `base_layer`."""
    prefix = re.escape(prefix)
    return [
        Rule(rf"{prefix}(base_layer|level[01])\.0\.weight", r"backbone.\1.0.conv.weight"),
        Rule(rf"{prefix}(base_layer|level[01])\.1\.(\w+)", r"backbone.\1.0.norm.\2"),
        Rule(rf"{prefix}{DLA_TREE}\.conv([12])\.weight", r"backbone.\1.conv\2.conv.weight"),
        Rule(rf"{prefix}{DLA_TREE}\.bn([12])\.(\w+)", r"backbone.\1.conv\2.norm.\3"),
        Rule(rf"{prefix}{DLA_TREE}\.root\.conv\.weight", r"backbone.\1.root.conv.conv.weight"),
        Rule(rf"{prefix}{DLA_TREE}\.root\.bn\.(\w+)", r"backbone.\1.root.conv.norm.\2"),
        Rule(rf"{prefix}{DLA_TREE}\.project\.0\.weight", r"backbone.\1.project.conv.weight"),
        Rule(rf"{prefix}{DLA_TREE}\.project\.1\.(\w+)", r"backbone.\1.project.norm.\2"),
    ]


def unused_dla_rules(prefix: str) -> list[Rule]:
    """Rules for weights that a DLA has and does not use."""
    # In trees of two levels, the inner trees have projections of their own.
    return [Rule(rf"{re.escape(prefix)}level[34]\.project\..*", "a projection whose result nothing uses")]
