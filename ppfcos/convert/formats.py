"""What a foreign format is to the conversion, and the configuration for each kind of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from ppfcos.convert.names import Backbone, Translation

# Blue, green, red from 0 to 255, as their own configurations have them.
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)  # Detectron's
IMAGENET_BGR_MEAN = (103.530, 116.280, 123.675)  # Detectron2's
IMAGENET_BGR_STD = (57.375, 57.120, 58.395)
NO_STD = (1.0, 1.0, 1.0)

# The files under configs that a written configuration builds on, besides data set and runtime.
BASES = ("_base_/fcos_r50_fpn.yml", "_base_/optimizer_1x.yml", "_base_/fcos_reader.yml")
REAL_TIME_BASES = ("_base_/fcos_r50_fpn_rt.yml", "_base_/optimizer_4x.yml", "_base_/fcos_reader_rt.yml")


def pixels(mean: tuple, std: tuple) -> dict[str, list[float]]:
    """The model's normalisation from one for blue, green, red pixels from 0 to 255.

    Args:
        mean: of each channel.
        std: likewise.

    Returns:
        `image_mean` and `image_std` of red, green, blue from 0 to 1.
    """
    return {
        "image_mean": [float(f"{value / 255:.12g}") for value in reversed(mean)],
        "image_std": [float(f"{value / 255:.12g}") for value in reversed(std)],
    }


def imagenet_pixels() -> dict[str, list[float]]:
    """The normalisation of torchvision's and Paddle's ImageNet backbones."""
    return {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Recipe:
    """One kind of a format's weights, which their names do not tell from the others.

    Attributes:
        description: what they are, in the words of their project.
        sections: of the configuration under which they give their project's result, by the backbone.
        blue_first: they were trained on blue, green, red.
        pad_to_stride: multiple to which images are padded.
        files: patterns of file names that speak for it, in small letters.
        bases: files that the configuration builds on.
    """

    description: str
    sections: Callable[[Backbone], dict[str, dict[str, Any]]]
    blue_first: bool = False
    pad_to_stride: int = 32
    files: tuple[str, ...] = ("*",)
    bases: tuple[str, ...] = BASES


@dataclass(frozen=True)
class Format:
    """Checkpoints of one project.

    Attributes:
        name: for `--from`.
        project: its own name.
        recognises: whether weights of these names are this project's.
        translate: weights to our names; takes what to call them in an error, and the weights.
        recipes: by name, the more particular before the others.
        backbone_only: of an ImageNet classifier, to start a training from.
    """

    name: str
    project: str
    recognises: Callable[[Mapping[str, np.ndarray]], bool]
    translate: Callable[[str, Mapping[str, np.ndarray]], Translation]
    recipes: Mapping[str, Recipe]
    backbone_only: bool = False
