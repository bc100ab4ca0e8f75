"""What the file of a project consists of: rules that rename its weights, its recipes, and its format.

Our names are PaddleDetection's for its backbones and those of `paddle.vision` for MobileNetV2, with the
prefix `backbone.`, and our own for neck and head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

NORM_EPSILON = 1e-5  # of our batch norms
# Names of PyTorch's batch norms and of Paddle's.
STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}

# Base files of a written configuration, besides data set and runtime.
BASES = ("_base_/fcos_r50_fpn.yml", "_base_/optimizer_1x.yml", "_base_/fcos_reader.yml")
REAL_TIME_BASES = ("_base_/fcos_r50_fpn_rt.yml", "_base_/optimizer_4x.yml", "_base_/fcos_reader_rt.yml")

RESIZES = ("Resize", "RandomResize")

Sections = dict[str, dict[str, Any]]  # of a configuration


class Rule(NamedTuple):
    """A pattern of whole names and its replacement, as for `re.sub`."""

    pattern: str
    replacement: str | Callable[[re.Match], str]


COUNTER = Rule(r"(.*\.)?(num_batches_tracked|n_averaged|steps)", "a counter of training batches")
CLASSIFIER = Rule(r"fc\..*", "the classifier of ImageNet")


@dataclass(frozen=True)
class Backbone:
    """A recognized backbone.

    Attributes:
        description: in a few words.
        first_conv: our name for the weight of the first convolution.
        sections: of the configuration.
        rules: for the names of its weights.
        unused: rules for weights that it does not use.
        groups: of the 3x3 convolutions of a ResNet; 0 for other networks.
    """

    description: str
    first_conv: str
    sections: Sections
    rules: Sequence[Rule]
    unused: Sequence[Rule] = ()
    groups: int = 0


@dataclass
class Translation:
    """Weights under our names.

    Attributes:
        backbone: of the weights.
        weights: float32, by our names.
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
        contradiction: returns what in the weights contradicts the recipe; None if nothing does.
    """

    description: str
    sections: Callable[[Backbone], Sections]
    bgr: bool = False
    pad_to_stride: int = 32
    files: tuple[str, ...] = ("*",)
    bases: tuple[str, ...] = BASES
    contradiction: Callable[[Translation], str | None] = lambda done: None


@dataclass(frozen=True)
class Format:
    """Checkpoints of one project.

    Attributes:
        name: for `--from`.
        project: its own name.
        marks: names of weights that only this project has together.
        translate: takes the path for error messages, and the weights.
        recipes: by name, the more specific first.
        backbone_only: of an ImageNet classifier.
        rounding: of resized images, as of `Resize`.
        read_recipe: reads the recipe from the text of the project's configuration.
    """

    name: str
    project: str
    marks: tuple[str, ...]
    translate: Callable[[str, Mapping[str, np.ndarray]], Translation]
    recipes: Mapping[str, Recipe]
    backbone_only: bool = False
    rounding: str = "floor"
    read_recipe: Callable[[str, Translation, str | None], tuple[str, Recipe] | None] | None = None

    def matches(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether the names of weights are this project's."""
        return all(mark in arrays for mark in self.marks)


def pixels(mean: Sequence[float], std: Sequence[float]) -> dict[str, list[float]]:
    """Return `image_mean` and `image_std`, RGB from 0 to 1, of R, G, B means and deviations from 0 to 255."""
    return {
        "image_mean": [float(f"{value / 255:.12g}") for value in mean],
        "image_std": [float(f"{value / 255:.12g}") for value in std],
    }


# From the configurations of the projects: of Detectron, and of ImageNet as Detectron2, torchvision and Paddle
# have it.
CAFFE_MEAN = (122.7717, 115.9465, 102.9801)
IMAGENET_MEAN = (123.675, 116.280, 103.530)
IMAGENET_STD = (58.395, 57.120, 57.375)
NO_STD = (1.0, 1.0, 1.0)
IMAGENET_PIXELS = pixels(IMAGENET_MEAN, IMAGENET_STD)


def set_rounding(transforms: Iterable[Mapping[str, Any]], rounding: str) -> list[dict[str, Any]]:
    """Return `sample_transforms` whose resizing rounds sizes as a project does."""
    return [
        {
            name: {**(arguments or {}), "rounding": rounding} if name in RESIZES else dict(arguments or {})
            for name, arguments in each.items()
        }
        for each in transforms
    ]


def translate(
    arrays: Mapping[str, np.ndarray],
    backbone: Backbone,
    rules: Iterable[Rule] = (),
    ignored: Iterable[Rule] = (),
) -> Translation:
    """Rename weights, and convert them to float32.

    Args:
        arrays: by original names.
        backbone: of the weights.
        rules: besides the backbone's; the first that matches gives our name.
        ignored: names without a place in our network; the replacement is the reason.
    """
    done = Translation(backbone)
    ignored, rules = [*ignored, COUNTER, *backbone.unused], [*backbone.rules, *rules]
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


def numbered(pattern: str, ours: str, first: int) -> Rule:
    """Return a rule for a list of convolutions whose numbers, the group of the pattern, begin at `first`."""
    return Rule(rf"{pattern}\.(weight|bias)", lambda match: f"{ours}.{int(match[1]) - first}.{match[2]}")


def head_rules(tower: str, predictor: str, convs: Mapping[str, str], scale: str = "none") -> list[Rule]:
    """Return rules for a head whose towers number convolution, norm and ReLU consecutively.

    A norm may be a list of norms, one for each level.

    Args:
        tower: pattern of a tower, whose group begins with `cl` (class tower) or `sh` (shared tower).
        predictor: pattern before the names in `convs`.
        convs: original names of the predictors, by our names.
        scale: pattern of the scales, with the number of the level as its group.
    """
    towers = {"cl": "class_tower", "sh": "shared_tower"}

    def layer(match: re.Match) -> str:
        index, number = divmod(int(match[2]), 3)
        kind = "norms" if number else "convs"
        level = "" if match[3] is None else f".{match[3]}"
        return f"head.{towers.get(match[1][:2], 'box_tower')}.{kind}.{index}{level}.{match[4]}"

    def deformable(match: re.Match) -> str:
        kind = "conv_offset" if match[3] == "offset" else "conv_dcn"
        ours = towers.get(match[1][:2], "box_tower")
        return f"head.{ours}.convs.{int(match[2]) // 3}.{kind}.{match[4]}"

    return [
        Rule(rf"{tower}\.(\d+)\.(?:(\d)\.)?(weight|bias|running_mean|running_var)", layer),
        Rule(rf"{tower}\.(\d+)\.(offset|conv)\.(weight|bias)", deformable),
        *(Rule(rf"{predictor}{theirs}\.(weight|bias)", rf"head.{ours}.\1") for ours, theirs in convs.items()),
        Rule(scale, r"head.scales.\1"),
    ]


def reverse_channels(done: Translation) -> None:
    """Convert the first convolution from BGR to RGB, in place."""
    name = done.backbone.first_conv
    if name in done.weights:
        done.weights[name] = np.ascontiguousarray(done.weights[name][:, ::-1])


def remove_norm_epsilon(weights: dict[str, np.ndarray]) -> None:
    """Convert batch norms without epsilon to ours, in place: w/√v = w'/√(v + ε)."""
    for name in [name for name in weights if name.startswith("backbone.") and name.endswith("._variance")]:
        gain = name.replace("._variance", ".weight")
        variance = weights[name].astype(np.float64)
        weights[gain] = (weights[gain] * np.sqrt((variance + NORM_EPSILON) / variance)).astype(np.float32)
