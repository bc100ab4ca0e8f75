"""A DLA-34: our names for its weights, which are PaddleDetection's, and its authors' (ucbdrive/dla)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppfcos.convert.formats import REAL_TIME_BASES, Format, Recipe, imagenet_pixels
from ppfcos.convert.names import BATCH_COUNTER, Backbone, Rule, Translation, translate
from ppfcos.errors import WeightsError

FIRST_CONV = "base_layer.0.weight"
TREE = r"(level[2-5](?:\.tree[12])*)"


class Dla(NamedTuple):
    """A DLA. There is one alone: of 34 layers, of two convolutions a block."""

    depth: int = 34

    @property
    def first_conv(self) -> str:
        """Our name for the weight of the convolution that sees the pixels."""
        return "backbone.base_layer.0.conv.weight"

    @property
    def description(self) -> str:
        """What it is, for people."""
        return f"DLA-{self.depth}"

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of it."""
        # Nobody freezes its norms, neither those who train it on ImageNet nor AdelaiDet.
        return {
            "PPFCOS": {"backbone": "PPFCOSDLA"},
            "PPFCOSDLA": {"depth": self.depth, "norm_type": "sync_bn"},
        }


def dla_of(source: str, arrays: Mapping[str, np.ndarray], prefix: str) -> Dla:
    """Make sure that some weights are of a DLA-34.

    Args:
        source: what to call the weights in an error.
        arrays: by name.
        prefix: what stands before `base_layer`.

    Returns:
        The network.

    Raises:
        WeightsError: it is another DLA, whose blocks have three convolutions.
    """
    deeper = next((name for name in arrays if name.startswith(prefix) and ".conv3." in name), None)
    if deeper is not None:
        raise WeightsError(
            f"{source}: its backbone is a DLA of another depth than 34 ({deeper}), which is not converted"
        )
    return Dla()


def dla_rules(prefix: str) -> list[Rule]:
    """The names that a DLA has at its authors', and in AdelaiDet.

    Args:
        prefix: what stands before `base_layer`, as it is.

    Returns:
        Rules for convolutions and batch norms.
    """
    prefix = re.escape(prefix)
    return [
        Rule(rf"{prefix}(base_layer|level[01])\.0\.weight", r"backbone.\1.0.conv.weight"),
        Rule(rf"{prefix}(base_layer|level[01])\.1\.(\w+)", r"backbone.\1.0.norm.\2"),
        Rule(rf"{prefix}{TREE}\.conv([12])\.weight", r"backbone.\1.conv\2.conv.weight"),
        Rule(rf"{prefix}{TREE}\.bn([12])\.(\w+)", r"backbone.\1.conv\2.norm.\3"),
        Rule(rf"{prefix}{TREE}\.root\.conv\.weight", r"backbone.\1.root.conv.conv.weight"),
        Rule(rf"{prefix}{TREE}\.root\.bn\.(\w+)", r"backbone.\1.root.conv.norm.\2"),
        Rule(rf"{prefix}{TREE}\.project\.0\.weight", r"backbone.\1.project.conv.weight"),
        Rule(rf"{prefix}{TREE}\.project\.1\.(\w+)", r"backbone.\1.project.norm.\2"),
    ]


def unused_dla_rules(prefix: str) -> list[Rule]:
    """What a DLA has and does not use.

    Args:
        prefix: what stands before `base_layer`, as it is.

    Returns:
        Rules for `translate`'s `useless`.
    """
    # The trees of two levels: their inner trees project for themselves.
    return [Rule(rf"{re.escape(prefix)}level[34]\.project\..*", "a projection whose result nothing uses")]


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    useless = [BATCH_COUNTER, *unused_dla_rules(""), Rule(r"fc\..*", "the classifier of ImageNet")]
    return translate(arrays, dla_of(source, arrays, ""), dla_rules(""), useless)


def _sections(backbone: Backbone) -> dict[str, dict[str, Any]]:
    return {"PPFCOS": imagenet_pixels()}


FORMAT = Format(
    "dla",
    "the DLA authors' ImageNet backbones",
    lambda arrays: FIRST_CONV in arrays,
    _translate,
    {"imagenet": Recipe("dla34", _sections, bases=REAL_TIME_BASES)},
    backbone_only=True,
)
