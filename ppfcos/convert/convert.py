"""Converts weights of another project, and writes the configuration that gives the project's results."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import yaml

from ppfcos.config import load_config
from ppfcos.config.files import read_file
from ppfcos.convert import adelaidet, detectron, dla, fcos, mmdet, paddleclas, paddledet, torchvision
from ppfcos.convert.checkpoint import Checkpoint, read_checkpoint
from ppfcos.convert.rules import Format, Recipe, Translation, reverse_channels, set_rounding
from ppfcos.engine.model import build_model
from ppfcos.errors import ConfigError, WeightsError, one_line
from ppfcos.fileio import replacing

FORMATS: tuple[Format, ...] = (
    *(mmdet.FORMAT, fcos.FORMAT, adelaidet.FORMAT, torchvision.FORMAT, paddledet.FORMAT),
    *(detectron.FORMAT, torchvision.BACKBONE, paddleclas.FORMAT_VD, paddleclas.FORMAT),
    *(paddledet.BACKBONE, dla.FORMAT),
)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASES = ("datasets/coco_detection.yml", "runtime.yml")
SIZE_RANGES = (64, 128, 256, 512)  # of five levels; fewer levels have the first ones
BACKBONE = "backbone."


class Conversion(NamedTuple):
    """A converted checkpoint.

    Attributes:
        format: of the source.
        recipe: its name.
        settings: the recipe.
        translation: the weights and their sources.
        allowed: missing and unexpected names that are allowed.
        config: path of the configuration.
        notes: sentences about choices that were made.
    """

    format: Format
    recipe: str
    settings: Recipe
    translation: Translation
    allowed: list[str]
    config: Path
    notes: list[str]


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
        target: the `.pdparams` to write; the configuration is written beside it, as `.yml`.
        format_name: of FORMATS; None: recognized by the names of the weights.
        recipe_name: of the format's recipes; None: of the configuration in the file, or of the file name.
        allowed: patterns of missing or unexpected names that are no error.

    Raises:
        WeightsError: the file cannot be read, has an unknown format, contradicts the recipe, or does not fit
            the model.
        ConfigError: the base configurations are missing.
        OutputError: the files cannot be written.
    """
    checkpoint = read_checkpoint(source)
    format_ = _format(source, checkpoint.arrays, format_name)
    is_option, config = recipe_name is not None, checkpoint.config
    recipe_name = _recipe_name(source, format_, recipe_name, bool(config and format_.read_recipe))
    with _checked_shapes(source, format_):
        done = format_.translate(str(source), checkpoint.arrays)
    _require_allowed(source, "of the file are unexpected", done.unexpected, allowed)
    _require_finite(source, done)
    recipe_name, recipe, notes = _choose_recipe(source, format_, done, recipe_name, is_option, config)
    if checkpoint.key in ("ema_state_dict", "model_ema"):
        notes.append(f"the file has EMA weights only ({checkpoint.key}), which are converted")
    with _checked_shapes(source, format_):
        if recipe.bgr:
            reverse_channels(done)
        content = _config(format_, recipe, done, target)
    _add_class_names(content, checkpoint, notes)
    config_path = target.with_suffix(".yml")
    with replacing(target) as weights_file, replacing(config_path) as config_file:
        options = {"sort_keys": False, "default_flow_style": None, "width": 100, "allow_unicode": True}
        text = yaml.safe_dump(content, **options)
        head = f"# {format_.project}: {recipe.description}, converted.\n"
        config_file.write_text(head + text, encoding="utf-8")
        model = build_model(load_config(config_file))
        missing = _assign(source, model, done.weights, format_.backbone_only)
        _require_allowed(source, "of the model are missing in the file", missing, allowed)
        paddle.save(_state(model, format_.backbone_only), str(weights_file))
    return Conversion(format_, recipe_name, recipe, done, [*done.unexpected, *missing], config_path, notes)


@contextlib.contextmanager
def _checked_shapes(source: Path, format_: Format) -> Iterator[None]:
    """Turn an error of arrays with unexpected shapes or types into a WeightsError."""
    try:
        yield
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{source}: its weights do not have the shapes of {format_.project}'s ({one_line(error)}): "
            "set another --from, or download the file again"
        ) from error


def _format(source: Path, arrays: Mapping[str, np.ndarray], name: str | None) -> Format:
    known = {format_.name: format_ for format_ in FORMATS}
    if name is not None:
        return known[name]
    found = next((format_ for format_ in FORMATS if format_.matches(arrays)), None)
    if found is None:
        raise WeightsError(
            f"{source}: the names of its weights ({_some(list(arrays))}) match no known project: "
            f"set --from to one of {', '.join(known)}"
        )
    return found


def _recipe_name(source: Path, format_: Format, name: str | None, has_config: bool = False) -> str | None:
    """Return `name` or the recipe of the file name; None if only the configuration in the file tells it."""
    recipes, file_name = format_.recipes, source.name.lower()
    if name is None:
        matches = (
            key for key in recipes for pattern in recipes[key].files if fnmatch.fnmatch(file_name, pattern)
        )
        name = next(matches, None)
    if name not in recipes and not (name is None and has_config):
        raise WeightsError(
            f"{source}: neither its name nor its content tells which of {format_.project}'s models it is: "
            f"set --recipe to one of {_listed(recipes)}"
        )
    return name


def _listed(recipes: Mapping[str, Recipe]) -> str:
    return "; ".join(f"{key} ({recipe.description})" for key, recipe in recipes.items())


def _choose_recipe(
    source: Path, format_: Format, done: Translation, name: str | None, is_option: bool, config: str | None
) -> tuple[str, Recipe, list[str]]:
    """Return name and recipe, and notes for the user. The configuration in the file precedes the file name.

    Args:
        source: the checkpoint.
        format_: of the checkpoint.
        done: its weights.
        name: of `--recipe` or the file name.
        is_option: whether it is of `--recipe`.
        config: text of the configuration in the file.

    Raises:
        WeightsError: the weights, the configuration and `--recipe` contradict each other.
    """
    stated = format_.read_recipe(config, done, name) if config and format_.read_recipe else None
    if stated is None:
        name = _recipe_name(source, format_, name)
        stated_name, recipe = name, format_.recipes[name]
    else:
        stated_name, recipe = stated
    notes = []
    if stated_name != name and is_option:
        raise WeightsError(
            f"{source}: --recipe {name} contradicts the configuration in it ({stated_name}): leave it out"
        )
    if stated_name != name and name is not None:
        notes.append(f"the recipe is {stated_name}, from the configuration in the file; its name says {name}")
    contradiction = recipe.contradiction(done)
    if contradiction is not None:
        fitting = {key: each for key, each in format_.recipes.items() if each.contradiction(done) is None}
        cure = (
            f"set --recipe to one of {_listed(fitting)}" if fitting and stated is None else "ask its author"
        )
        raise WeightsError(f"{source} contradicts recipe {stated_name}: {contradiction}: {cure}")
    return stated_name, recipe, notes


def _require_allowed(source: Path, what: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    refused = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)]
    if refused:
        raise WeightsError(
            f"{source}: {len(refused)} weights {what} ({_some(refused)}): if that is intended, list them "
            "after --allow, with * for any part of a name"
        )


def _require_finite(source: Path, done: Translation) -> None:
    bad = [done.sources[name] for name, array in done.weights.items() if not np.isfinite(array).all()]
    if bad:
        raise WeightsError(
            f"{source}: {len(bad)} weights contain NaN or infinity ({_some(bad)}): its training diverged; "
            "convert an earlier checkpoint"
        )


def _config(format_: Format, recipe: Recipe, done: Translation, target: Path) -> dict[str, Any]:
    if not CONFIGS.is_dir():
        raise ConfigError(f"{CONFIGS} is missing: run tools/convert_weights.py of a checkout of ppfcos")
    folder = os.path.relpath(CONFIGS, target.resolve().parent)
    content: dict[str, Any] = {
        "_BASE_": [Path(folder, base).as_posix() for base in (*BASES, *recipe.bases)],
        "pretrain_weights": str(target),
    }
    if not format_.backbone_only:
        content["weights"] = str(target)
    for sections in (recipe.sections(done.backbone), done.backbone.sections):
        for name, section in sections.items():
            content.setdefault(name, {}).update(section)
    if not format_.backbone_only:
        _add_sizes(content, done.weights)
    for reader in ("EvalReader", "TestReader"):
        content[reader] = {"batch_transforms": [{"PadBatch": {"pad_to_stride": recipe.pad_to_stride}}]}
    if not format_.backbone_only:
        readers = read_file(str(CONFIGS / recipe.bases[-1]), ())
        for reader in ("TrainReader", "EvalReader", "TestReader"):
            transforms = set_rounding(readers[reader]["sample_transforms"], format_.rounding)
            content.setdefault(reader, {})["sample_transforms"] = transforms
    return content


def _add_sizes(content: dict[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Set the numbers of classes, channels, layers and levels, from the shapes of the weights."""
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


def _add_class_names(content: dict[str, Any], checkpoint: Checkpoint, notes: list[str]) -> None:
    names = checkpoint.class_names
    if names is None or "num_classes" not in content:
        return
    if len(set(names)) != content["num_classes"]:
        notes.append(
            f"its {len(names)} class names are left out: the network has {content['num_classes']} classes"
        )
    else:
        content["TestDataset"] = {"class_names": names}
        notes.append(f"class names: {_some(names)}")


def _assign(
    source: Path, model: paddle.nn.Layer, weights: Mapping[str, np.ndarray], backbone_only: bool
) -> list[str]:
    """Load the weights into the model, and return the missing names.

    Raises:
        WeightsError: a weight has no place in the model, or another shape.
    """
    tensors = _state(model, False)
    wanted = [name for name in tensors if name.startswith(BACKBONE) or not backbone_only]
    unknown = [name for name in weights if name not in tensors]
    if unknown:
        raise WeightsError(f"{source}: the model has no place for {_some(unknown)}")
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
