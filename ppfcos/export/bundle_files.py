"""The bundle's `bundle.yml`: what is in the folder, and what it wants. Read by `ppfcos.deploy.bundle`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from paddle import nn

from ppfcos import __version__
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import DecodeOptions, NetworkInput
from ppfcos.engine.checkpoint import find_training_state
from ppfcos.errors import ConfigError
from ppfcos.export.program import HeadsSpec
from ppfcos.fileio import sha256

DRAW_THRESHOLD = 0.5
# PaddleDetection gives TensorRT this smallest subgraph for FCOS, and knows the architecture by this name.
ARCHITECTURE = "FCOS"
MIN_SUBGRAPH_SIZE = 16
BILINEAR = 1
STRIDE = 32  # of the backbone's coarsest level


def infer_config(
    cfg: Mapping[str, Any], class_names: Sequence[str], category_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """What `infer_cfg.yml` says.

    Args:
        cfg: the configuration; its `metric` and `TestReader` count.
        class_names: the name of every class, in the order of the labels.
        category_ids: the number of every class in its data set; None numbers them from 0. PaddleDetection's
            scripts do not read this key.

    Returns:
        Plain dicts, lists, strings and numbers.

    Raises:
        ConfigError: the TestReader holds a transform that a bundle cannot carry, or the configuration `tta`.
    """
    if cfg.get("tta") is not None:
        raise ConfigError(
            "tta: a bundle runs each image once, and multi-scale testing is for tools/eval.py and "
            "tools/infer.py -c: leave it out, -o tta=null"
        )
    ids = range(len(class_names)) if category_ids is None else category_ids
    return {
        "mode": "paddle",
        "draw_threshold": DRAW_THRESHOLD,
        "metric": str(cfg.get("metric", "COCO")),
        "use_dynamic_shape": True,
        "arch": ARCHITECTURE,
        "min_subgraph_size": MIN_SUBGRAPH_SIZE,
        "Preprocess": preprocess_steps(cfg["TestReader"]),
        "label_list": [str(name) for name in class_names],
        "category_ids": [int(number) for number in ids],
    }


def preprocess_steps(reader: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A reader's transforms as the `Preprocess` list of a bundle.

    Args:
        reader: TestReader of the configuration.

    Returns:
        A dict a step, its kind under `type`: Resize, Permute, PadStride.

    Raises:
        ConfigError: a transform is none of Decode, Resize, Permute and PadBatch, or one that the network
            needs is absent.
    """
    steps = [
        step
        for transforms in (reader.get("sample_transforms"), reader.get("batch_transforms"))
        for transform in transforms or []
        for name, arguments in transform.items()
        for step in _steps_of(name, arguments or {})
    ]
    if not any(step["type"] == "Permute" for step in steps):
        raise ConfigError(
            "TestReader: the network takes channels first; add `Permute: {}` to sample_transforms"
        )
    if not any(step["type"] == "PadStride" and step["stride"] % STRIDE == 0 for step in steps):
        raise ConfigError(
            f"TestReader: the network takes sides that are multiples of {STRIDE}; "
            f"add `PadBatch: {{pad_to_stride: {STRIDE}}}` to batch_transforms"
        )
    return steps


def _steps_of(name: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    if name == "Decode":
        return []
    if name == "Resize":
        return [_resize(arguments)]
    if name == "Permute":
        return [{"type": "Permute"}]
    if name == "PadBatch":
        return [{"type": "PadStride", "stride": int(arguments.get("pad_to_stride", 0))}]
    raise ConfigError(
        f"TestReader: {name} cannot be part of a deployed model; Decode, Resize, Permute and PadBatch can"
    )


def _resize(arguments: Mapping[str, Any]) -> dict[str, Any]:
    size = arguments.get("target_size")
    sides = [size, size] if isinstance(size, int) else list(size or [])
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ConfigError(f"TestReader: Resize.target_size must be one or two whole numbers, not {size}")
    return {
        "type": "Resize",
        "target_size": sides,
        "keep_ratio": bool(arguments.get("keep_ratio", True)),
        "interp": int(arguments.get("interp", BILINEAR)),
    }


def manifest(
    model: nn.Layer,
    cfg: Mapping[str, Any],
    description: Mapping[str, Any],
    form: NetworkInput,
    heads: HeadsSpec | None,
    networks: Mapping[str, Mapping[str, Any]],
    scales: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """What `bundle.yml` says, but for the files.

    Args:
        model: a PPFCOS.
        cfg: the configuration that it was built from.
        description: of `ppfcos.export.bundle_files`, whose preprocessing and classes are these too.
        form: of the network's input.
        heads: of its outputs; None where these are boxes.
        networks: by format and precision, the names of the files by their role.
        scales: of integer outputs, by their name: what each channel is multiplied by; empty for floats.

    Returns:
        Plain dicts, lists, strings and numbers.
    """
    classes = zip(description["label_list"], description["category_ids"])
    says = {
        "format_version": names.FORMAT_VERSION,
        "ppfcos": __version__,
        "kind": names.END_TO_END if heads is None else names.HEADS,
        "input": _input(form),
        "preprocess": description["Preprocess"],
        "postprocess": {
            field.name: type(field.default)(getattr(model.decode, field.name))
            for field in fields(DecodeOptions)
        },
        "classes": [{"name": name, "id": number} for name, number in classes],
        "source": source(cfg),
        "networks": {kind: dict(precisions) for kind, precisions in networks.items()},
    }
    if heads is not None:
        says["heads"] = _heads(model, heads, scales)
    return says


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file in a folder."""
    return {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
    }


def head_outputs(strides: Sequence[int]) -> list[dict[str, Any]]:
    """The outputs of a network of the kind `heads`, named by kind and stride, such as distances_8.

    Args:
        strides: of the levels.

    Returns:
        A dict a level.
    """
    return [
        {"stride": int(stride), **{kind: f"{kind}_{stride}" for kind in names.HEAD_OUTPUTS}}
        for stride in strides
    ]


def source(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the training run that the weights came from.

    Args:
        cfg: the configuration; its `weights` may be an address.

    Returns:
        The names of the configuration and of the weights; of weights that are a file the checksum, too, and
        what their checkpoint says of them.
    """
    known: dict[str, Any] = {"config": f"{cfg.get('filename', 'unknown')}.yml"}
    weights = cfg.get("weights")
    if not weights:
        return known
    known["weights"] = Path(str(weights)).name
    path = Path(str(weights))
    path = path if path.is_file() else path.with_name(path.name + ".pdparams")
    if path.is_file():
        known["weights"] = path.name
        known["weights_sha256"] = sha256(path)
        state = find_training_state(path)
        if state is not None:
            known |= {"epoch": state.epochs, "ap": state.ap}
    return known


def _input(form: NetworkInput) -> dict[str, Any]:
    says = asdict(form)
    if form.type == names.NV12:
        del says["channels"], says["layout"]
    return says


def _heads(model: nn.Layer, heads: HeadsSpec, scales: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    levels = head_outputs(model.head.strides)
    if scales:
        for level in levels:
            level["scales"] = {kind: list(scales[level[kind]]) for kind in names.HEAD_OUTPUTS}
    return {
        "layout": heads.layout,
        "locations": model.locations,
        "distances": heads.distances,
        "levels": levels,
    }
