"""Rules that rename the weights of other projects, and what a format and its recipes are.

Our names are PaddleDetection's for its backbones and those of `paddle.vision` for MobileNetV2, with the
prefix `backbone.`, and our own for neck and head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Union

import numpy as np

NORM_EPSILON = 1e-5  # of our batch norms
# Names of PyTorch's batch norms and of Paddle's.
STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}

# Blue, green, red from 0 to 255, from the configurations of the projects.
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)  # Detectron's
IMAGENET_BGR_MEAN = (103.530, 116.280, 123.675)  # Detectron2's
IMAGENET_BGR_STD = (57.375, 57.120, 58.395)
NO_STD = (1.0, 1.0, 1.0)

# Base files of a written configuration, besides data set and runtime.
BASES = ("_base_/fcos_r50_fpn.yml", "_base_/optimizer_1x.yml", "_base_/fcos_reader.yml")
REAL_TIME_BASES = ("_base_/fcos_r50_fpn_rt.yml", "_base_/optimizer_4x.yml", "_base_/fcos_reader_rt.yml")

Replacement = Union[str, Callable[[re.Match], str]]


class Backbone(Protocol):
    """What the conversion needs of a backbone."""

    @property
    def first_conv(self) -> str:
        """Our name for the weight of the first convolution."""

    @property
    def description(self) -> str:
        """The network in a few words."""

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Sections of the configuration."""


class Rule(NamedTuple):
    """A pattern of names and its replacement, as for `re.sub`."""

    pattern: str
    replacement: Replacement


BATCH_COUNTER = Rule(r".*\.num_batches_tracked", "a counter of training batches")
CLASSIFIER = Rule(r"fc\..*", "the classifier of ImageNet")


@dataclass
class Translation:
    """Weights under our names.

    Attributes:
        backbone: of the weights.
        weights: by our names.
        sources: the original name of each, by our names.
        ignored: original names that the network does not need at inference, and the reason.
        unexpected: original names that no rule matches.
    """

    backbone: Backbone
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """One kind of a project's models, which the names of the weights do not tell.

    Attributes:
        description: the models, as the project names them.
        sections: of the configuration that gives the project's results, by the backbone.
        bgr: they are trained on BGR images.
        pad_to_stride: multiple to which images are padded.
        files: lower-case patterns of file names.
        bases: base files of the configuration.
    """

    description: str
    sections: Callable[[Backbone], dict[str, dict[str, Any]]]
    bgr: bool = False
    pad_to_stride: int = 32
    files: tuple[str, ...] = ("*",)
    bases: tuple[str, ...] = BASES


@dataclass(frozen=True)
class Format:
    """Checkpoints of one project.

    Attributes:
        name: for `--from`.
        project: its own name.
        matches: whether weights are of this project.
        translate: takes what the weights are called in an error, and the weights.
        recipes: by name, the more specific first.
        backbone_only: of an ImageNet classifier.
    """

    name: str
    project: str
    matches: Callable[[Mapping[str, np.ndarray]], bool]
    translate: Callable[[str, Mapping[str, np.ndarray]], Translation]
    recipes: Mapping[str, Recipe]
    backbone_only: bool = False


def pixels(mean: tuple, std: tuple) -> dict[str, list[float]]:
    """`image_mean` and `image_std`, RGB from 0 to 1, of a mean and std in BGR from 0 to 255."""
    return {
        "image_mean": [float(f"{value / 255:.12g}") for value in reversed(mean)],
        "image_std": [float(f"{value / 255:.12g}") for value in reversed(std)],
    }


def imagenet_pixels() -> dict[str, list[float]]:
    """The normalization of torchvision's and Paddle's ImageNet backbones."""
    return {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def translate(
    arrays: Mapping[str, np.ndarray], backbone: Backbone, rules: Sequence[Rule], ignored: Iterable[Rule] = ()
) -> Translation:
    """Rename weights, and convert them to float32.

    Args:
        arrays: by original names.
        backbone: of the weights.
        rules: the first that matches a whole name gives our name.
        ignored: names without a place in our network; the replacement is the reason.
    """
    done = Translation(backbone)
    for name, array in arrays.items():
        reason = _first_match(name, ignored)
        ours = None if reason else _first_match(name, rules)
        if reason:
            done.ignored[name] = reason
        elif ours is None:
            done.unexpected.append(name)
        else:
            stem, _, last = ours.rpartition(".")
            ours = f"{stem}.{STATISTICS.get(last, last)}"
            done.weights[ours] = np.asarray(array, np.float32)
            done.sources[ours] = name
    for name in done.weights:
        if name.startswith("head.scales."):  # a number in some projects, a list of one here
            done.weights[name] = done.weights[name].reshape(1)
    return done


def _first_match(name: str, rules: Iterable[Rule]) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


def head_rules(tower: str, predictor: str, convs: Mapping[str, str], scale: str) -> list[Rule]:
    """Rules for a head whose towers number convolution, norm and ReLU consecutively.

    A norm may be a list of norms, one for each level.

    Args:
        tower: pattern of a tower, whose group begins with `cl` (class tower) or `sh` (shared tower).
        predictor: pattern before the names in `convs`.
        convs: original names of the predictors, by our names.
        scale: pattern of the scales, with the number of the level as its group.
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
    """Convert the first convolution from BGR to RGB, in place."""
    name = backbone.first_conv
    if name in weights:
        weights[name] = np.ascontiguousarray(weights[name][:, ::-1])


def remove_norm_epsilon(weights: dict[str, np.ndarray]) -> None:
    """Convert batch norms without epsilon to ours, in place: w/√v = w'/√(v + ε)."""
    for name in [name for name in weights if name.startswith("backbone.") and name.endswith("._variance")]:
        gain = name.replace("._variance", ".weight")
        variance = weights[name].astype(np.float64)
        weights[gain] = (weights[gain] * np.sqrt((variance + NORM_EPSILON) / variance)).astype(np.float32)
