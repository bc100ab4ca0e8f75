"""Weights of another project into ours, with the configuration under which they mean the same."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import yaml

from ppfcos.config import load_config
from ppfcos.convert import adelaidet, detectron, dla, fcos, mmdet, paddleclas, paddledet, torchvision
from ppfcos.convert.formats import Format, Recipe
from ppfcos.convert.names import Translation, reverse_channels
from ppfcos.convert.torch_file import is_torch_file, read_torch
from ppfcos.engine.model import build_model
from ppfcos.engine.weights import read_state
from ppfcos.errors import ConfigError, WeightsError
from ppfcos.fileio import replacing

FORMATS: tuple[Format, ...] = (
    *(mmdet.FORMAT, fcos.FORMAT, adelaidet.FORMAT, torchvision.FORMAT, paddledet.FORMAT),
    *(detectron.FORMAT, torchvision.BACKBONE, paddleclas.FORMAT, paddleclas.FORMAT_VD),
    *(paddledet.BACKBONE, dla.FORMAT),
)
# Where projects keep the weights in their checkpoints.
WRAPPERS = ("state_dict", "model", "blobs")
PARALLEL_PREFIX = "module."  # of PyTorch's DistributedDataParallel
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASES = ("datasets/coco_detection.yml", "runtime.yml")
SIZE_RANGES = (64, 128, 256, 512)  # borders between five levels; fewer levels have the first of them
BACKBONE = "backbone."


class Conversion(NamedTuple):
    """What was converted.

    Attributes:
        format: of the source.
        recipe: its name in the format's recipes.
        translation: the weights and where they came from.
        allowed: names, foreign and ours, that found no partner and were allowed to.
        config: path of the configuration that was written.
    """

    format: Format
    recipe: str
    translation: Translation
    allowed: list[str]
    config: Path


def convert(
    source: Path,
    target: Path,
    format_name: str | None = None,
    recipe_name: str | None = None,
    allowed: Sequence[str] = (),
) -> Conversion:
    """Convert a checkpoint, and write it and its configuration.

    Args:
        source: the checkpoint of another project.
        target: the `.pdparams` to write; the configuration goes beside it, as `.yml`.
        format_name: of FORMATS; None: what the names look like.
        recipe_name: of the format's recipes; None: what the file's name speaks for.
        allowed: names, foreign or ours, with * for any part, that may stay without partner.

    Returns:
        What was done.

    Raises:
        WeightsError: the file cannot be read, is of no known format, or does not fit the model.
        ConfigError: the configurations that the new one builds on are not there.
        OutputError: the files cannot be written.
    """
    arrays = read_arrays(source)
    format_ = _format(source, arrays, format_name)
    recipe_name = _recipe_name(source, format_, recipe_name)
    recipe = format_.recipes[recipe_name]
    done = format_.translate(str(source), arrays)
    if recipe.blue_first:
        reverse_channels(done.weights, done.backbone)
    _require_allowed(source, "of the file are unknown", done.left_over, allowed)
    config = target.with_suffix(".yml")
    with replacing(target) as weights_file, replacing(config) as config_file:
        config_file.write_text(_config_text(format_, recipe, done, target), encoding="utf-8")
        model = build_model(load_config(config_file))
        missing = _assign(source, model, done.weights, format_.backbone_only)
        _require_allowed(source, "of the model are not in the file", missing, allowed)
        paddle.save(_state(model, format_.backbone_only), str(weights_file))
    return Conversion(format_, recipe_name, done, [*done.left_over, *missing], config)


def read_arrays(source: Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint of PyTorch, Paddle or Detectron.

    Args:
        source: its path.

    Returns:
        Arrays by the names that they have there.

    Raises:
        WeightsError: the file cannot be read, or holds none.
    """
    content: Any = read_torch(source) if is_torch_file(source) else read_state(source)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    arrays = {
        str(name).removeprefix(PARALLEL_PREFIX): value
        for name, value in content.items()
        if isinstance(value, np.ndarray)
    }
    if not arrays:
        raise WeightsError(f"{source} holds no weights: its keys are {_some([str(key) for key in content])}")
    return arrays


def _format(source: Path, arrays: Mapping[str, np.ndarray], name: str | None) -> Format:
    known = {format_.name: format_ for format_ in FORMATS}
    if name is not None:
        return known[name]
    found = next((format_ for format_ in FORMATS if format_.recognises(arrays)), None)
    if found is None:
        raise WeightsError(
            f"{source}: its names ({_some(list(arrays))}) are of no project that is known; "
            f"if you know better, say --from with one of {', '.join(known)}"
        )
    return found


def _recipe_name(source: Path, format_: Format, name: str | None) -> str:
    recipes = format_.recipes
    if name is None and len(recipes) == 1:
        return next(iter(recipes))
    file_name = source.name.lower()
    if name is None:
        matches = (
            key for key in recipes for pattern in recipes[key].files if fnmatch.fnmatch(file_name, pattern)
        )
        name = next(matches, None)
    if name not in recipes:
        listed = "; ".join(f"{key} ({recipe.description})" for key, recipe in recipes.items())
        raise WeightsError(
            f"{source}: nothing tells which of {format_.project}'s models it is: "
            f"say --recipe with one of {listed}"
        )
    return name


def _require_allowed(source: Path, what: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    refused = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)]
    if refused:
        raise WeightsError(
            f"{source}: {len(refused)} weights {what} ({_some(refused)}); if that is right, say --allow with "
            "their names, * for any part"
        )


def _config_text(format_: Format, recipe: Recipe, done: Translation, target: Path) -> str:
    if not CONFIGS.is_dir():
        raise ConfigError(f"{CONFIGS} is missing: run tools/convert_weights.py of a checkout of ppfcos")
    folder = os.path.relpath(CONFIGS, target.resolve().parent)
    key = "pretrain_weights" if format_.backbone_only else "weights"
    content: dict[str, Any] = {
        "_BASE_": [Path(folder, base).as_posix() for base in (*BASES, *recipe.bases)],
        "pretrain_weights": None,
        key: str(target),
    }
    for sections in (recipe.sections(done.backbone), done.backbone.sections):
        for name, section in sections.items():
            content.setdefault(name, {}).update(section)
    if not format_.backbone_only:
        _state_sizes(content, done.weights)
    padding = [{"PadBatch": {"pad_to_stride": recipe.pad_to_stride}}]
    content["EvalReader"] = {"batch_transforms": padding}
    content["TestReader"] = {"batch_transforms": [dict(padding[0])]}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    return f"# {format_.project}: {recipe.description}, converted.\n{text}"


def _state_sizes(content: dict[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """What the weights themselves say of classes, channels, layers and levels."""
    predictor = weights.get("head.class_conv.weight")
    if predictor is None:
        return
    levels = _count(weights, "head.scales.*")
    deformable = _count(weights, "head.class_tower.convs.?.conv_offset.weight")
    pyramid = {"out_channels": predictor.shape[1]}
    if _count(weights, "neck.laterals.*.weight"):
        pyramid["extra_levels"] = _count(weights, "neck.extras.*.weight")
    content["num_classes"] = len(predictor)
    content.setdefault(content["PPFCOS"].get("neck", "PPFCOSFPN"), {}).update(pyramid)
    content.setdefault("PPFCOSTargets", {})["size_ranges"] = list(SIZE_RANGES[: levels - 1])
    content.setdefault("PPFCOSHead", {}).update(
        num_share_convs=_count(weights, "head.shared_tower.convs.?.weight"),
        num_convs=_count(weights, "head.class_tower.convs.?.weight") + deformable,
        deformable_convs=deformable,
        norm_type="sync_bn" if _count(weights, "head.*_tower.norms.*._mean") else "gn",
        norm_per_level=_count(weights, "head.*_tower.norms.*.*.weight") > 0,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    return len(fnmatch.filter(names, pattern))


def _assign(
    source: Path, model: paddle.nn.Layer, weights: Mapping[str, np.ndarray], backbone_only: bool
) -> list[str]:
    """Give the model its weights; the names of those that it did not get.

    Raises:
        WeightsError: a weight has no place in the model, or not its shape.
    """
    tensors = _state(model, False)
    wanted = [name for name in tensors if name.startswith(BACKBONE) or not backbone_only]
    strangers = [name for name in weights if name not in tensors]
    if strangers:
        raise WeightsError(f"{source}: the model has no place for {_some(strangers)}")
    for name, array in weights.items():
        if list(array.shape) != list(tensors[name].shape):
            raise WeightsError(
                f"{source}: {name} is {list(array.shape)} there and {list(tensors[name].shape)} in the model"
            )
        tensors[name].set_value(paddle.to_tensor(array))
    return [name for name in wanted if name not in weights]


def _state(model: paddle.nn.Layer, backbone_only: bool) -> dict[str, paddle.Tensor]:
    state = model.state_dict()
    if not backbone_only:
        return state
    return {name[len(BACKBONE) :]: value for name, value in state.items() if name.startswith(BACKBONE)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
