"""Backbones of converted weights: recognizes them, and names their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ppfcos.convert.rules import Backbone, Rule
from ppfcos.errors import WeightsError

DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}  # by blocks per stage; all are bottlenecks
HRNET_WIDTHS = (18, 30, 32, 40, 44, 48, 60, 64)  # of PaddleDetection
HRNET_FINEST_CONV = "stage2.0.branches.0.0.conv1.weight"
DLA_FIRST_CONV = "base_layer.0.weight"
LAST = {"w": "weight", "s": "weight", "b": "bias"}  # Detectron's last part of a name


class ResnetNames(NamedTuple):
    """Patterns of a project's names for the layers of a ResNet.

    Attributes:
        stem_conv: of the first convolution; `number` is its group if there are three.
        stem_norm: of its norm.
        block: of what all names of a block begin with; the groups are `stage` and `block`, or `index` where
            the blocks of all stages are counted consecutively.
        conv: of a convolution of a block; the group `branch` is a letter, or a number from `first_branch`.
        norm: of a norm of a block.
        short_conv: of the convolution of a shortcut.
        short_norm: of its norm.
        offset: of the convolution that computes the offsets of a deformable one.
        end: of the last part of a name, the group `last`.
        first_stage: number of the first stage.
        first_branch: number of the first convolution of a block.
        pooled: ResNet-D: three first convolutions, and pooling before the convolution of a shortcut.
    """

    stem_conv: str
    stem_norm: str
    block: str
    conv: str
    norm: str
    short_conv: str
    short_norm: str
    offset: str = "none"
    end: str = r"\.(?P<last>\w+)"
    first_stage: int = 2
    first_branch: int = 1
    pooled: bool = False


# torchvision, MMDetection, and the FCOS authors. MMDetection's deformable convolution contains the one for
# its offsets, the authors' contains both.
TORCH_RESNET = ResnetNames(
    stem_conv=r"(?:stem\.)?conv1",
    stem_norm=r"(?:stem\.)?bn1",
    block=r"layer(?P<stage>\d)\.(?P<block>\d+)\.",
    conv=r"conv(?P<branch>[123])(?:\.conv)?",
    norm=r"bn(?P<branch>[123])",
    short_conv=r"downsample\.0",
    short_norm=r"downsample\.1",
    offset=r"conv2\.(?:conv_)?offset",
    first_stage=1,
)


def resnet(source: str, arrays: Mapping[str, np.ndarray], names: ResnetNames, prefix: str = "") -> Backbone:
    """Recognize a ResNet or ResNeXt of bottlenecks.

    Args:
        source: path of the weights, for errors.
        arrays: by name.
        names: of the project.
        prefix: before all names.

    Raises:
        WeightsError: it has neither 50 nor 101 layers.
    """
    prefix = re.escape(prefix)
    block = re.compile(prefix + names.block)
    found = {match[0]: match for match in map(block.match, arrays) if match}
    if "index" in block.groupindex:
        counts = next((counts for counts in DEPTHS if sum(counts) == len(found)), (len(found), 0, 0, 0))
        positions = [(stage, index) for stage, count in enumerate(counts) for index in range(count)]
        places = {name: positions[int(match["index"]) % len(found)] for name, match in found.items()}
    else:
        places = {
            name: (int(match["stage"]) - names.first_stage, _block_index(match["block"]))
            for name, match in found.items()
        }
    stages = [stage for stage, _ in places.values()]
    blocks = tuple(stages.count(stage) for stage in range(4))
    convs = filter(None, map(re.compile(f"({block.pattern}){names.conv}{names.end}").fullmatch, arrays))
    kernel = next(
        (arrays[m.string] for m in convs if places[m[1]] == (0, 0) and _letter(names, m) == "b"), None
    )
    if blocks not in DEPTHS or kernel is None or kernel.ndim != 4:
        raise WeightsError(
            f"{source}: its backbone has {blocks} blocks a stage; only 50 and 101 layers are converted, "
            "(3, 4, 6, 3) and (3, 4, 23, 3) bottlenecks"
        )
    width, base_width = kernel.shape[:2]
    groups = width // max(base_width, 1)
    offset = re.compile(f"({block.pattern}){names.offset}{names.end}")
    deformable = sorted({places[match[1]][0] for match in map(offset.fullmatch, arrays) if match})
    stem = "conv1" if groups == 1 else "res_conv1"
    described = f", {groups} groups of {base_width}" if groups > 1 else ""
    described += f", deformable in {', '.join(f'C{stage + 2}' for stage in deformable)}" if deformable else ""
    section = {"depth": DEPTHS[blocks], "groups": groups, "base_width": base_width}
    ours = {name: _block_name(blocks, *place) for name, place in places.items()}

    def first(layer: str, pattern: str) -> Rule:
        def rename(match: re.Match) -> str:
            name = f"conv1_{int(match['number']) + 1}" if names.pooled else stem
            return f"backbone.conv1.{name}.{layer}.{LAST.get(match['last'], match['last'])}"

        return Rule(prefix + pattern + names.end, rename)

    def branch(layer: str, pattern: str) -> Rule:
        def rename(match: re.Match) -> str:
            last = LAST.get(match["last"], match["last"])
            return f"{ours[match[1]]}.branch2{_letter(names, match)}.{layer}.{last}"

        return Rule(f"({block.pattern}){pattern}{names.end}", rename)

    def shortcut(layer: str, pattern: str) -> Rule:
        def rename(match: re.Match) -> str:
            # PaddleDetection has a layer for pooling and convolution where the stride is 2.
            inner = ".conv" if names.pooled and places[match[1]][0] > 0 else ""
            return f"{ours[match[1]]}.short{inner}.{layer}.{LAST.get(match['last'], match['last'])}"

        return Rule(f"({block.pattern}){pattern}{names.end}", rename)

    return Backbone(
        f"ResNet of {DEPTHS[blocks]} layers{described}",
        f"backbone.conv1.{stem}.conv.weight",
        {"ResNet": {**section, "dcn_v2_stages": deformable or [-1]}},
        [
            first("conv", names.stem_conv),
            first("norm", names.stem_norm),
            branch("conv", names.conv),
            branch("norm", names.norm),
            branch("conv_offset", names.offset),
            shortcut("conv", names.short_conv),
            shortcut("norm", names.short_norm),
        ],
        groups=groups,
    )


def _block_index(text: str) -> int:
    """Return the index of a block. PaddleDetection has letters, or b with a number where there are many."""
    if text.isdigit():
        return int(text)
    return int(text[1:]) if text[1:] else ord(text) - ord("a")


def _block_name(blocks: tuple, stage: int, index: int) -> str:
    """Return PaddleDetection's name of a block, counted from 0."""
    many = stage < 4 and blocks[stage] > 10 and index > 0
    return f"backbone.res{stage + 2}.res{stage + 2}{f'b{index}' if many else chr(ord('a') + index % 26)}"


def _letter(names: ResnetNames, match: re.Match) -> str:
    """Return a, b or c for a convolution of a block; that of the offsets belongs to b."""
    branch = match.groupdict().get("branch", "b")
    return "abc"[int(branch) - names.first_branch] if branch.isdigit() else branch


def mobilenet_v2(prefix: str) -> Backbone:
    """A MobileNetV2 of width 1 in PyTorch, whose blocks number all layers; `prefix` is before `features`."""
    prefix = re.escape(prefix)

    def layer(match: re.Match) -> str:
        # Convolution, norm and ReLU6 are one layer of ours. The first block, without expansion, has one such
        # layer, the others two; a convolution and its norm follow.
        block, number = int(match[1]), int(match[2])
        triples = 1 if block == 1 else 2
        inside = number < 3 * triples
        place = f"{number // 3}.{number % 3}" if inside else str(number - 2 * triples)
        return f"backbone.features.{block}.conv.{place}.{match[3]}"

    return Backbone(
        "MobileNetV2",
        "backbone.features.0.0.weight",
        {"PPFCOS": {"backbone": "PPFCOSMobileNetV2"}},
        [
            Rule(rf"{prefix}features\.0\.([01])\.(\w+)", r"backbone.features.0.\1.\2"),
            Rule(rf"{prefix}features\.(\d+)\.conv\.(\d)\.(\w+)", layer),
        ],
    )


def hrnet(source: str, arrays: Mapping[str, np.ndarray], prefix: str) -> Backbone:
    """Recognize MMDetection's HRNet; `prefix` is before `stage2`.

    Raises:
        WeightsError: PaddleDetection has no HRNet of its width.
    """
    width = len(arrays[prefix + HRNET_FINEST_CONV])
    if width not in HRNET_WIDTHS:
        raise WeightsError(
            f"{source}: its HRNet has width {width}: only {', '.join(map(str, HRNET_WIDTHS))} are converted"
        )
    prefix = re.escape(prefix)
    module = rf"{prefix}stage(\d)\.(\d)\."
    return Backbone(
        f"HRNet-W{width}",
        "backbone.conv_layer1_1.conv.weight",
        {"PPFCOS": {"backbone": "HRNet"}, "HRNet": {"width": width, "freeze_at": -1}},
        [
            Rule(rf"{prefix}conv([12])\.weight", r"backbone.conv_layer1_\1.conv.weight"),
            Rule(rf"{prefix}bn([12])\.(\w+)", r"backbone.conv_layer1_\1.norm.\2"),
            Rule(rf"{prefix}layer1\.(\d)\.(conv|bn)([123])\.(\w+)", _bottleneck),
            Rule(rf"{prefix}layer1\.(\d)\.(downsample)\.([01])\.(\w+)", _bottleneck),
            # A new branch is a list of one such list: it has one more number.
            Rule(rf"{prefix}transition(\d)\.(\d)\.(?:0\.)?([01])\.(\w+)", _transition),
            Rule(rf"{module}branches\.(\d)\.(\d)\.(conv|bn)([12])\.(\w+)", _branch),
            # From a finer branch it is a list of such lists, each with stride 2.
            Rule(rf"{module}fuse_layers\.(\d)\.(\d)\.(?:(\d)\.)?([01])\.(\w+)", _fusion),
        ],
    )


HRNET_LAYERS = {"0": "conv", "1": "norm", "conv": "conv", "bn": "norm"}


def _bottleneck(match: re.Match) -> str:
    block, kind, number, last = match.groups()
    is_shortcut = kind == "downsample"
    place = f"conv_down.{HRNET_LAYERS[number]}" if is_shortcut else f"conv{number}.{HRNET_LAYERS[kind]}"
    return f"backbone.la1.block_layer2_{int(block) + 1}.{place}.{last}"


def _transition(match: re.Match) -> str:
    stage, branch, layer, last = match.groups()
    place = f"tr{stage}.transition_tr{stage}_layer_{int(branch) + 1}"
    return f"backbone.{place}.{HRNET_LAYERS[layer]}.{last}"


def _branch(match: re.Match) -> str:
    stage, module, branch, block, kind, number, last = match.groups()
    name = f"st{stage}_{int(module) + 1}"
    block = f"bb_{name}_branch_layer_{int(branch) + 1}_{int(block) + 1}"
    conv = f"conv{number}.{HRNET_LAYERS[kind]}"
    return f"backbone.st{stage}.stage_{name}.branches_func.{block}.{conv}.{last}"


def _fusion(match: re.Match) -> str:
    stage, module, target, source, step, layer, last = match.groups()
    name = f"st{stage}_{int(module) + 1}"
    numbers = "_".join(str(int(number) + 1) for number in (target, source, step) if number is not None)
    residual = f"residual_{name}_layer_{numbers}"
    return f"backbone.st{stage}.stage_{name}.fuse_func.{residual}.{HRNET_LAYERS[layer]}.{last}"


def dla(source: str, arrays: Mapping[str, np.ndarray], prefix: str = "") -> Backbone:
    """Recognize the DLA-34 of its authors and of AdelaiDet; `prefix` is before `base_layer`.

    Raises:
        WeightsError: it is a deeper DLA, whose blocks have three convolutions.
    """
    deeper = next((name for name in arrays if name.startswith(prefix) and ".conv3." in name), None)
    if deeper is not None:
        raise WeightsError(
            f"{source}: its backbone is a DLA of another depth than 34 ({deeper}), which is not converted"
        )
    prefix = re.escape(prefix)
    layer, tree = rf"{prefix}(base_layer|level[01])", rf"{prefix}(level[2-5](?:\.tree[12])*)"
    return Backbone(
        "DLA-34",
        "backbone.base_layer.0.conv.weight",
        # Neither its authors nor AdelaiDet freeze its batch norms.
        {"PPFCOS": {"backbone": "PPFCOSDLA"}, "PPFCOSDLA": {"depth": 34, "norm_type": "sync_bn"}},
        [
            Rule(rf"{layer}\.0\.weight", r"backbone.\1.0.conv.weight"),
            Rule(rf"{layer}\.1\.(\w+)", r"backbone.\1.0.norm.\2"),
            Rule(rf"{tree}\.conv([12])\.weight", r"backbone.\1.conv\2.conv.weight"),
            Rule(rf"{tree}\.bn([12])\.(\w+)", r"backbone.\1.conv\2.norm.\3"),
            Rule(rf"{tree}\.root\.conv\.weight", r"backbone.\1.root.conv.conv.weight"),
            Rule(rf"{tree}\.root\.bn\.(\w+)", r"backbone.\1.root.conv.norm.\2"),
            Rule(rf"{tree}\.project\.0\.weight", r"backbone.\1.project.conv.weight"),
            Rule(rf"{tree}\.project\.1\.(\w+)", r"backbone.\1.project.norm.\2"),
        ],
        # Trees of two levels contain trees that have projections.
        [Rule(rf"{prefix}level[34]\.project\..*", "a projection whose result nothing uses")],
    )
