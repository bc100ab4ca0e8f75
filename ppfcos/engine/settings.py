"""What a run was told, as one flat list of names and values, by which runs are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ppfcos.config.keys import PLAIN_KEYS

SECTIONS = ("LearningRate", "OptimizerBuilder", "TrainReader")  # besides the model's own

# Plain keys that say where a run computes and what it writes, and so change nothing about what is learnt.
_OF_THE_PLACE = {
    *("device", "use_gpu", "use_xpu", "use_npu", "use_mlu", "worker_num"),
    *("filename", "save_dir", "snapshot_epoch", "log_iter", "use_vdl", "vdl_log_dir", "vdl_images"),
    *("weights", "output_eval", "metric", "coco_eval", "classwise", "export"),
}


def settings_of(cfg: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Everything that a configuration says about the model and its training.

    Args:
        cfg: the configuration.

    Returns:
        Values by the names that `-o` has for them, such as `ResNet.depth`, `LearningRate.schedulers.1.steps`
        and `TrainReader.sample_transforms.2.Resize.target_size`. Lists of plain values and switches are text.
    """
    plain = {key: cfg[key] for key in PLAIN_KEYS if key in cfg and key not in _OF_THE_PLACE}
    architecture = cfg[cfg["architecture"]]
    parts = [name for name in architecture.values() if isinstance(name, str) and name in cfg]
    sections = {name: dict(cfg[name]) for name in (*parts, cfg["architecture"], *SECTIONS) if name in cfg}
    return dict(_flat({**plain, **sections}))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, int | float | str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from _flat({str(position): item for position, item in enumerate(value)}, name)
    elif isinstance(value, bool):
        yield name, str(value).lower()
    elif value is not None:
        yield name, value if isinstance(value, (int, float, str)) else str(value)
