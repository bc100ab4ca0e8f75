"""The content of `bundle.yml`, which `ppfcos.deploy.bundle` reads, and of `infer_cfg.yml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddle import nn

from ppfcos import __version__
from ppfcos.decode_options import DecodeOptions
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.engine.checkpoint import find_training_state
from ppfcos.errors import ConfigError
from ppfcos.export.program import HeadsSpec
from ppfcos.fileio import sha256
from ppfcos.modeling.fcos import STRIDE

DRAW_THRESHOLD = 0.5
# PaddleDetection's scripts know the architecture by this name, and use this smallest TensorRT subgraph for
# it.
ARCHITECTURE = "FCOS"
MIN_SUBGRAPH_SIZE = 16
BILINEAR = 1


def infer_config(
    cfg: Mapping[str, Any], class_names: Sequence[str], category_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """The content of `infer_cfg.yml`, from `metric` and `TestReader` of a configuration.

    PaddleDetection's scripts ignore `category_ids`, the category of each label; None numbers them from 0.

    Raises:
        ConfigError: the TestReader has a transform that a bundle cannot have, or `tta` is set.
    """
    if cfg.get("tta") is not None:
        raise ConfigError(
            "tta: a bundle runs each image once; test-time augmentation is for tools/eval.py and "
            "tools/infer.py -c: add -o tta=null"
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


def without_rounding(description: Mapping[str, Any]) -> dict[str, Any]:
    """`infer_config` for PaddleDetection's scripts: their Resize has no `rounding` and does not round."""
    steps = [
        {key: value for key, value in step.items() if key != "rounding"} for step in description["Preprocess"]
    ]
    return {**description, "Preprocess": steps}


def preprocess_steps(reader: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A reader's transforms as the `Preprocess` list of a bundle: Resize, Permute and PadStride.

    Raises:
        ConfigError: there is another transform than Decode, Resize, Permute and PadBatch, or one that the
            network needs is missing.
    """
    steps = [
        step
        for transforms in (reader.get("sample_transforms"), reader.get("batch_transforms"))
        for transform in transforms or []
        for name, arguments in transform.items()
        for step in _steps_of(name, arguments or {})
    ]
    if not any(step["type"] == "Permute" for step in steps):
        raise ConfigError("TestReader: the network takes NCHW; add `Permute: {}` to sample_transforms")
    if not any(step["type"] == "PadStride" and step["stride"] % STRIDE == 0 for step in steps):
        raise ConfigError(
            f"TestReader: height and width must be multiples of {STRIDE}; "
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
        f"TestReader: {name} cannot be part of a bundle; use Decode, Resize, Permute and PadBatch only"
    )


def _resize(arguments: Mapping[str, Any]) -> dict[str, Any]:
    size = arguments.get("target_size")
    sides = [size, size] if isinstance(size, int) else list(size or [])
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ConfigError(f"TestReader: Resize.target_size must be one or two whole numbers, not {size}")
    rounding = arguments.get("rounding", "none")  # not written where older versions read the same
    return {
        "type": "Resize",
        "target_size": sides,
        "keep_ratio": bool(arguments.get("keep_ratio", True)),
        "interp": int(arguments.get("interp", BILINEAR)),
        **({} if rounding == "none" else {"rounding": rounding}),
    }


def manifest(
    model: nn.Layer,
    cfg: Mapping[str, Any],
    description: Mapping[str, Any],
    input_spec: NetworkInput,
    heads: HeadsSpec | None,
    networks: Mapping[str, Mapping[str, Any]],
    scales: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """The content of `bundle.yml`, except for the checksums.

    Args:
        model: a PPFCOS.
        cfg: its configuration.
        description: of `infer_config`; preprocessing and classes are taken from it.
        input_spec: of the network's `image`.
        heads: the outputs; None: boxes.
        networks: file names by format, precision and role.
        scales: by integer output, the factor of each channel.
    """
    spec = asdict(input_spec)
    if input_spec.type == names.NV12:
        del spec["channels"], spec["layout"]
    classes = zip(description["label_list"], description["category_ids"])
    content = {
        "format_version": names.FORMAT_VERSION,
        "ppfcos": __version__,
        "kind": names.END_TO_END if heads is None else names.HEADS,
        "input": spec,
        "preprocess": description["Preprocess"],
        "postprocess": asdict(DecodeOptions.of(model.decode)),
        "classes": [{"name": name, "id": number} for name, number in classes],
        "source": source(cfg),
        "networks": {kind: dict(precisions) for kind, precisions in networks.items()},
    }
    if heads is not None:
        levels = head_outputs(model.head.strides)
        if scales:
            for level in levels:
                level["scales"] = {kind: list(scales[level[kind]]) for kind in names.HEAD_OUTPUTS}
        content["heads"] = {
            "layout": heads.layout,
            "locations": model.locations,
            "distances": heads.distances,
            "levels": levels,
        }
    return content


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file in a folder."""
    return {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
    }


def head_outputs(strides: Sequence[int]) -> list[dict[str, Any]]:
    """Per level, the names of the outputs of a network of kind `heads`, such as distances_8."""
    return [
        {"stride": int(stride), **{kind: f"{kind}_{stride}" for kind in names.HEAD_OUTPUTS}}
        for stride in strides
    ]


def source(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the configuration and the weights (a file or URL); for a file, its checksum, epoch and AP."""
    known: dict[str, Any] = {"config": f"{cfg.get('filename', 'unknown')}.yml"}
    weights = cfg.get("weights")
    if not weights:
        return known
    path = Path(str(weights))
    known["weights"] = path.name
    path = path if path.is_file() else path.with_name(path.name + ".pdparams")
    if path.is_file():
        known["weights"] = path.name
        known["weights_sha256"] = sha256(path)
        state = find_training_state(path)
        if state is not None:
            known |= {"epoch": state.epochs, "ap": state.ap}
    return known
