"""The settings by which runs are compared, as one flat list of names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

# In this order; `*` stands for the name of a class or a place in a list. A configuration has far more, and in
# a table of all of it nobody would find what differs.
CHOSEN = (
    "filename",
    "architecture",
    "*.depth",
    "*.norm_type",
    "pretrain_weights",
    "epoch",
    "seed",
    "TrainReader.total_batch_size",
    "TrainReader.accumulate_steps",
    "lr_batch_size",
    "TrainReader.sample_transforms.*.target_size",
    "LearningRate.base_lr",
    "LearningRate.schedulers.*.milestones",
    "LearningRate.schedulers.*.max_epochs",
    "LearningRate.schedulers.*.steps",
    "OptimizerBuilder.optimizer.type",
    "OptimizerBuilder.optimizer.momentum",
    "OptimizerBuilder.regularizer.factor",
    "use_ema",
    "ema_decay",
    "amp",
    "*.center_sampling_radius",
    "*.box_loss",
    "*.quality",
)


def settings_of(cfg: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What a configuration says of `CHOSEN`.

    Args:
        cfg: the configuration.

    Returns:
        Values by the last two parts of their names, such as `LearningRate base_lr`, `LinearWarmup steps` and
        `Resize target_size`: a table has no room for more, and VisualDL's leaves columns empty whose names
        have dots. Lists and switches are text.
    """
    parts = [part for part in cfg[cfg["architecture"]].values() if isinstance(part, str)]
    names = {pattern.split(".")[0] for pattern in CHOSEN} | set(parts)
    values = dict(_flat({name: cfg[name] for name in names if name in cfg}))
    chosen = [name for pattern in CHOSEN for name in sorted(values) if fnmatchcase(name, pattern)]
    return {" ".join(name.split(".")[-2:]): values[name] for name in chosen}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, int | float | str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        yield from _flat({item.get("name", str(i)): item for i, item in enumerate(value)}, name)
    elif isinstance(value, bool):
        yield name, str(value).lower()
    elif value is not None:
        yield name, value if isinstance(value, (int, float, str)) else str(value)
