"""What lies in a bundle folder, and how its description is read.

A bundle holds the Paddle program (`model.json`), its parameters (`model.pdiparams`) and `infer_cfg.yml` in
PaddleDetection's deploy form, so that PaddleDetection's own deployment scripts run it as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ppfcos.errors import BundleError

MODEL_PREFIX = "model"
PROGRAM_FILE = MODEL_PREFIX + ".json"
WEIGHTS_FILE = MODEL_PREFIX + ".pdiparams"
CONFIG_FILE = "infer_cfg.yml"
FILES = (PROGRAM_FILE, WEIGHTS_FILE, CONFIG_FILE)


@dataclass(frozen=True)
class Bundle:
    """An exported model.

    Attributes:
        directory: the folder.
        preprocess: PaddleDetection's `Preprocess` list: a dict a step, its kind under `type`.
        class_names: the name of every class, in the order of the labels.
        category_ids: the number that each class has in the data set that the model was trained for.
    """

    directory: Path
    preprocess: list[dict[str, Any]]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @property
    def program(self) -> Path:
        return self.directory / PROGRAM_FILE

    @property
    def weights(self) -> Path:
        return self.directory / WEIGHTS_FILE


def read_bundle(directory: str | os.PathLike) -> Bundle:
    """Read the description of a bundle.

    Raises:
        BundleError: the folder or a file of it is missing, or `infer_cfg.yml` is not what an export writes.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise BundleError(
            f"{folder}: there is no such bundle folder; "
            "`python tools/export_model.py -c CONFIG -o weights=FILE` makes one"
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            f"{folder}: this is not a complete bundle, it lacks {', '.join(missing)}; export it again"
        )
    return _parse(folder, _read_config(folder / CONFIG_FILE))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: cannot be read ({reason}); export the bundle again") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path}: holds no keys; export the bundle again")
    return config


def _parse(folder: Path, config: dict[str, Any]) -> Bundle:
    for key in ("Preprocess", "label_list"):
        if not isinstance(config.get(key), list):
            raise BundleError(f"{folder / CONFIG_FILE}: the list `{key}` is missing; export the bundle again")
    names = tuple(str(name) for name in config["label_list"])
    ids = config.get("category_ids", list(range(len(names))))
    if not isinstance(ids, list) or len(ids) != len(names) or not all(isinstance(i, int) for i in ids):
        raise BundleError(
            f"{folder / CONFIG_FILE}: `category_ids` does not hold one whole number for each label"
        )
    return Bundle(folder, config["Preprocess"], names, tuple(ids))
