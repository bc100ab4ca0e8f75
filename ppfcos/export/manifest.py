"""The bundle's `bundle.yml`: what is in the folder, and what it wants. Read by `ppfcos.deploy.bundle`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from paddle import nn

from ppfcos import __version__
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import DecodeSettings, NetworkInput
from ppfcos.engine.checkpoint import saved_state
from ppfcos.export.program import HeadsForm
from ppfcos.files import sha256


def manifest(
    model: nn.Layer,
    cfg: Mapping[str, Any],
    description: Mapping[str, Any],
    form: NetworkInput,
    heads: HeadsForm | None,
    networks: Mapping[str, Mapping[str, Any]],
    scales: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """What `bundle.yml` says, but for the files.

    Args:
        model: a PPFCOS.
        cfg: the configuration that it was built from.
        description: of `ppfcos.export.infer_config`, whose preprocessing and classes are these too.
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
            for field in fields(DecodeSettings)
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
        state = saved_state(path)
        if state is not None:
            known |= {"epoch": state.epochs, "ap": state.ap}
    return known


def _input(form: NetworkInput) -> dict[str, Any]:
    says = asdict(form)
    if form.type == names.NV12:
        del says["channels"], says["layout"]
    return says


def _heads(model: nn.Layer, heads: HeadsForm, scales: Mapping[str, Sequence[float]]) -> dict[str, Any]:
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
