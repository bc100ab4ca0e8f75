"""Our names for the weights of a network, and the weights of other projects under them.

Our names are PaddleDetection's for its backbones and `paddle.vision`'s for MobileNetV2, behind `backbone.`,
and our own for pyramid and head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Union

import numpy as np

from ppfcos.errors import WeightsError

DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}  # blocks a stage; all of bottlenecks
STAGES = (2, 3, 4, 5)
FIRST_STAGE_CHANNELS = 64  # of a block's inner convolutions, for one group of the common width
PAIRED_CONVS = "abc"
NORM_EPSILON = 1e-5  # of our batch norms

Replacement = Union[str, Callable[[re.Match], str]]


class Backbone(Protocol):
    """What the conversion asks of a backbone."""

    @property
    def first_conv(self) -> str:
        """Our name for the weight of the convolution that sees the pixels."""

    @property
    def description(self) -> str:
        """What it is, for people."""

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of it."""


class Resnet(NamedTuple):
    """What tells one ResNet of bottlenecks from another.

    Attributes:
        blocks: in each of the four stages.
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
        """Our name for the weight of the convolution that sees the pixels."""
        return f"backbone.conv1.{self.stem}.conv.weight"

    @property
    def description(self) -> str:
        """What it is, for people."""
        groups = f", {self.groups} groups of {self.base_width}" if self.groups > 1 else ""
        stages = ", ".join(f"C{stage + 2}" for stage in self.deformable)
        return f"ResNet of {self.depth} layers{groups}" + (f", deformable in {stages}" if stages else "")

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of it."""
        section = {"depth": self.depth, "groups": self.groups, "base_width": self.base_width}
        return {"ResNet": {**section, "dcn_v2_stages": list(self.deformable) or [-1]}}

    def block(self, stage: int, index: int) -> str:
        """PaddleDetection's place of a block.

        Args:
            stage: 2 to 5.
            index: of the block in it, from 0.
        """
        if self.blocks[stage - 2] > 10 and stage == 4 and index > 0:
            letter = f"b{index}"
        else:
            letter = chr(ord("a") + index)
        return f"backbone.res{stage}.res{stage}{letter}"


@dataclass(frozen=True)
class MobilenetV2:
    """A MobileNetV2 of the common width, which is all that is converted."""

    @property
    def first_conv(self) -> str:
        """Our name for the weight of the convolution that sees the pixels."""
        return "backbone.features.0.0.weight"

    @property
    def description(self) -> str:
        """What it is, for people."""
        return "MobileNetV2"

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of it."""
        return {"PPFCOS": {"backbone": "PPFCOSMobileNetV2"}}


def resnet_of(
    source: str, arrays: Mapping[str, np.ndarray], pattern: str, kernel: str, first_stage: int
) -> Resnet:
    """Find out what ResNet some weights are of.

    Args:
        source: what to call the weights in an error.
        arrays: by name.
        pattern: matches all names of blocks, with the groups `stage` and `block`. Those of deformable
            convolutions have `offset` in them.
        kernel: name of the 3x3 convolution of the first block of all.
        first_stage: the number that `pattern` finds for the first stage.

    Returns:
        The ResNet.

    Raises:
        WeightsError: it is none of 50 or 101 layers.
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
    """The names that PyTorch's ResNets have in torchvision, and in most projects after it.

    Args:
        resnet: whose names.
        prefix: what stands before `layer1`, as it is.
        stem: what stands before `conv1` and `bn1` besides, as it is.

    Returns:
        Rules for convolutions, plain and deformable, and batch norms.
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


def torch_mobilenet_rules(prefix: str) -> list[Rule]:
    """The names of a MobileNetV2 in PyTorch whose blocks number all their layers one after another.

    Args:
        prefix: what stands before `features`, as it is.

    Returns:
        Rules for convolutions and batch norms.
    """
    prefix = re.escape(prefix)

    def layer(match: re.Match) -> str:
        # Convolution, norm and ReLU6 are one layer of ours with the three in it; of those the first block,
        # which widens nothing, has one and the others two. A convolution and its norm follow.
        block, number = int(match[1]), int(match[2])
        triples = 1 if block == 1 else 2
        inside = number < 3 * triples
        place = f"{number // 3}.{number % 3}" if inside else str(number - 2 * triples)
        return f"backbone.features.{block}.conv.{place}.{match[3]}"

    return [
        Rule(rf"{prefix}features\.0\.([01])\.(\w+)", r"backbone.features.0.\1.\2"),
        Rule(rf"{prefix}features\.(\d+)\.conv\.(\d)\.(\w+)", layer),
    ]


class Rule(NamedTuple):
    """What names of a pattern become: a replacement as `re.sub` takes it."""

    pattern: str
    replacement: Replacement


@dataclass
class Translation:
    """Weights under our names.

    Attributes:
        backbone: what it is.
        weights: by our names.
        sources: the foreign name of each, by our names.
        left_out: foreign names that a network has no use for at inference, and why.
        left_over: foreign names that nothing is known of.
    """

    backbone: Backbone
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)


# Of PyTorch's batch norms to Paddle's.
STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}
BATCH_COUNTER = Rule(r".*\.num_batches_tracked", "counts batches of the training")


def translate(
    arrays: Mapping[str, np.ndarray], backbone: Backbone, rules: Sequence[Rule], useless: Iterable[Rule] = ()
) -> Translation:
    """Rename weights.

    Args:
        arrays: by foreign names.
        backbone: what it is.
        rules: the first that matches a whole name gives our name for it.
        useless: names that have no place in our network; the replacement says why.

    Returns:
        The weights, float32.
    """
    done = Translation(backbone)
    for name, array in arrays.items():
        reason = _first_match(name, useless)
        ours = None if reason else _first_match(name, rules)
        if reason:
            done.left_out[name] = reason
        elif ours is None:
            done.left_over.append(name)
        else:
            stem, _, last = ours.rpartition(".")
            ours = f"{stem}.{STATISTICS.get(last, last)}"
            done.weights[ours] = np.asarray(array, np.float32)
            done.sources[ours] = name
    for name in done.weights:
        if name.startswith("head.scales."):  # a number in some projects, here a list of one
            done.weights[name] = done.weights[name].reshape(1)
    return done


def _first_match(name: str, rules: Iterable[Rule]) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


def head_rules(tower: str, predictor: str, convs: Mapping[str, str], scale: str) -> list[Rule]:
    """Rules for a head whose towers number convolution, norm and ReLU one after another.

    A norm may be a list of norms, one for each level.

    Args:
        tower: pattern of a tower's place, whose group begins with `cl` for the classes', with `sh` for that
            which both branches share.
        predictor: pattern before the names in `convs`.
        convs: from our names for the predictors to the foreign ones.
        scale: pattern of the scales, with the number of the level as its group.

    Returns:
        The rules.
    """

    def layer(match: re.Match) -> str:
        ours = {"cl": "class_tower", "sh": "shared_tower"}.get(match[1][:2], "box_tower")
        index, number = divmod(int(match[2]), 3)
        kind = "norms" if number else "convs"
        level = "" if match[3] is None else f".{match[3]}"
        return f"head.{ours}.{kind}.{index}{level}.{match[4]}"

    def deformable(match: re.Match) -> str:
        ours = "class_tower" if match[1].startswith("cl") else "box_tower"
        kind = "conv_offset" if match[3] == "offset" else "conv_dcn"
        return f"head.{ours}.convs.{int(match[2]) // 3}.{kind}.{match[4]}"

    return [
        Rule(rf"{tower}\.(\d+)\.(?:(\d)\.)?(weight|bias|running_mean|running_var)", layer),
        Rule(rf"{tower}\.(\d+)\.(offset|conv)\.(weight|bias)", deformable),
        *(Rule(rf"{predictor}{theirs}\.(weight|bias)", rf"head.{ours}.\1") for ours, theirs in convs.items()),
        Rule(scale, r"head.scales.\1"),
    ]


def reverse_channels(weights: dict[str, np.ndarray], backbone: Backbone) -> None:
    """Let a network that was trained on blue, green, red take red, green, blue.

    Args:
        weights: by our names; changed in place.
        backbone: what it is.
    """
    name = backbone.first_conv
    if name in weights:
        weights[name] = np.ascontiguousarray(weights[name][:, ::-1])


def remove_norm_epsilon(weights: dict[str, np.ndarray]) -> None:
    """Let batch norms without epsilon mean the same with ours: w/√v = w'/√(v + ε).

    Args:
        weights: by our names; changed in place.
    """
    for name in [name for name in weights if name.startswith("backbone.") and name.endswith("._variance")]:
        gain = name.replace("._variance", ".weight")
        variance = weights[name].astype(np.float64)
        weights[gain] = (weights[gain] * np.sqrt((variance + NORM_EPSILON) / variance)).astype(np.float32)
