"""A trained model with its classes, ready for export or for inference in Paddle."""

from __future__ import annotations

import ppfcos.paddledetection  # noqa: F401  # isort: skip

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from ppdet.data.source.category import get_categories

from ppfcos.data.classes import check_same_classes, set_num_classes
from ppfcos.data.datasets import categories_of, dataset_of_images
from ppfcos.data.records import numbered
from ppfcos.deploy import Detector
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.engine.checkpoint import saved_class_names
from ppfcos.engine.model import build_model
from ppfcos.engine.tta import tta_config, tta_model
from ppfcos.engine.weights import load_weights
from ppfcos.errors import ConfigError
from ppfcos.export.bundle_files import preprocess_steps

COCO_2017_FILES = ("instances_train2017.json", "instances_val2017.json")
COCO_2017_CLASSES = 80


class CheckpointRuntime:
    """A model as a deployment runtime, so that checkpoint and bundle share all other code.

    Args:
        model: a PPFCOS or a test-time augmentation of one; it is set to evaluation mode.
    """

    def __init__(self, model: paddle.nn.Layer):
        model.eval()
        self._model = model

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch of image [B, 3, H, W], im_shape [B, 2] and scale_factor [B, 2], float32.

        Returns:
            bbox [N, 6] (label, score, x0, y0, x1, y1 in pixels of the original images) and bbox_num [B].
        """
        with paddle.no_grad():
            outputs = self._model({name: paddle.to_tensor(value) for name, value in inputs.items()})
        return outputs["bbox"].numpy(), outputs["bbox_num"].numpy()


def trained_model(cfg: Mapping[str, Any]) -> paddle.nn.Layer:
    """The configured model with its `weights`.

    Raises:
        ConfigError: `weights` is not set.
        WeightsError: the file is missing or corrupt, or belongs to another model.
    """
    weights = cfg.get("weights")
    if not weights:
        raise ConfigError(
            "`weights` is not set: add -o weights=output/CONFIG/best_model.pdparams, or your file"
        )
    model = build_model(cfg)
    load_weights(model, weights)
    return model


def checkpoint_detector(cfg: Mapping[str, Any]) -> Detector:
    """A Detector that runs the configured model, with its TestReader and `tta`, in Paddle.

    Raises:
        ConfigError: `weights` is not set, or the TestReader has a transform that deployment does not know.
        WeightsError: the file is missing or corrupt, or belongs to another model.
    """
    preprocess = Preprocess(preprocess_steps(tta_config(cfg, "TestReader")["TestReader"]))
    categories = model_categories(cfg, saved_class_names(cfg.get("weights")))
    names, ids = [each["name"] for each in categories], [each["id"] for each in categories]
    model = tta_model(trained_model(cfg), cfg, "TestReader")
    return Detector(preprocess, CheckpointRuntime(model), names, ids)


def model_categories(cfg: Mapping[str, Any], trained: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """`id` and `name` of the classes of the configured model, by label; sets `num_classes` of `cfg`.

    They come from the first of TestDataset, EvalDataset and TrainDataset with `class_names` or an annotation
    file; otherwise from the weights (`trained`, the class names in the checkpoint); otherwise they are
    COCO's, if COCO's annotation file is configured but missing; otherwise the classes are numbered.

    Raises:
        ConfigError: the number of classes is unknown.
        DataError: an annotation file is invalid, or data, `trained` and num_classes contradict one another.
    """
    categories, source = _data_categories(cfg, trained)
    if categories is None and trained is not None:
        categories, source = numbered(trained), "the checkpoint"
    elif categories is None:
        categories, source = _categories_without_data(cfg), "TestDataset"
    names = [category["name"] for category in categories]
    if trained is not None:
        check_same_classes(trained, "the checkpoint", names, source)
    set_num_classes(cfg, names, source)
    return categories


def _data_categories(
    cfg: Mapping[str, Any], trained: Sequence[str] | None
) -> tuple[list[dict[str, Any]] | None, str]:
    for section in ("TestDataset", "EvalDataset", "TrainDataset"):
        categories = categories_of(cfg, section, trained)
        if categories is not None:
            return categories, section
    return None, ""


def _categories_without_data(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    annotations = Path((cfg.get("TestDataset") or {}).get("anno_path") or "").name
    if annotations in COCO_2017_FILES and cfg.get("num_classes") in (None, COCO_2017_CLASSES):
        return _coco_2017_categories()
    return dataset_of_images(cfg, []).categories


def _coco_2017_categories() -> list[dict[str, Any]]:
    """COCO's classes as PaddleDetection lists them, without its warning that there is no file."""
    logger = logging.getLogger(get_categories.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        return [{"id": number, "name": name} for number, name in get_categories("COCO", None)[1].items()]
    finally:
        logger.disabled = before
