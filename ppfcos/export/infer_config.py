"""The bundle's `infer_cfg.yml`, in the form that PaddleDetection's deployment scripts read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppfcos.errors import ConfigError

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
