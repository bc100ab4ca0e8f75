"""A small untrained detector that outputs dozens of boxes per image, and images for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import paddle
from conftest import skip_without_export
from ppdet.core.workspace import create

from ppfcos.config import load_config
from ppfcos.export.bundle import export_bundle
from ppfcos.paddle_versions import HAS_NEW_IR

CLASS_NAMES = ["circle", "square", "long triangle"]
CATEGORY_IDS = [3, 7, 11]
PROGRAM = "model.json" if HAS_NEW_IR else "model.pdmodel"
# Height and width; the long side of the most elongated ones decides on their scale.
SHAPES = [
    (224, 320),
    (320, 224),
    (240, 240),
    (97, 203),
    (301, 150),
    (480, 640),
    (64, 400),
    (333, 500),
    (511, 170),
    (200, 201),
]

CONFIG = """
architecture: PPFCOS
metric: COCO
num_classes: 3
device: cpu
PPFCOS: {backbone: ResNet, neck: PPFCOSFPN, head: PPFCOSHead, targets: PPFCOSTargets, loss: PPFCOSLoss,
         decode: PPFCOSDecode}
ResNet: {depth: 18, variant: b, norm_type: bn, freeze_at: 0, freeze_norm: true, return_idx: [1, 2, 3],
         num_stages: 4}
PPFCOSFPN: {out_channels: 32}
PPFCOSHead: {num_convs: 1}
PPFCOSDecode: {score_threshold: 0.05}
TestReader:
  sample_transforms:
  - Decode: {}
  - Resize: {target_size: [224, 320], keep_ratio: true, interp: 1}
  - Permute: {}
  batch_transforms:
  - PadBatch: {pad_to_stride: 32}
  batch_size: 1
TestDataset:
  name: ImageFolder
  class_names: [circle, square, long triangle]
"""


def write_config(folder: Path) -> Path:
    """Write the configuration of the small detector."""
    path = folder / "small.yml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def small_model(folder: Path, *overrides: str, class_bias: tuple = (-3.0, -3.0, -3.6)) -> tuple:
    """The configuration, and its model with random weights and spread scores."""
    cfg = load_config(write_config(folder), overrides)
    paddle.seed(7)
    model = create("PPFCOS")
    spread_scores(model)
    model.head.class_conv.bias.set_value(np.array(class_bias, np.float32))
    model.eval()
    return cfg, model


def spread_scores(model: paddle.nn.Layer) -> None:
    """Set random weights of the prediction layers, so that scores and boxes vary."""
    random = np.random.default_rng(7)
    for name, weight in model.head.named_parameters():
        if name in ("class_conv.weight", "box_conv.weight", "quality_conv.weight"):
            spread = 0.05 if name == "box_conv.weight" else 0.1
            weight.set_value(random.normal(0, spread, weight.shape).astype(np.float32))


def fit_logits(conv, levels, mean, deviation):
    """Set mean and standard deviation of the output channels of a convolution."""
    maps = [level.numpy().transpose(1, 0, 2, 3) for level in levels]
    values = np.concatenate([each.reshape(len(each), -1) for each in maps], axis=1)
    factors = deviation / values.std(axis=1)
    biases = (conv.bias.numpy() - values.mean(axis=1)) * factors + mean
    conv.weight.set_value(conv.weight.numpy() * factors[:, None, None, None])
    conv.bias.set_value(biases.astype(np.float32))


@dataclass(frozen=True)
class Exported:
    """A model, its configuration and weights files, and its bundle."""

    model: paddle.nn.Layer
    config: Path
    weights: Path
    bundle: Path


@functools.cache
def exported(folder: Path) -> Exported:
    """Export the small detector once for all tests that share a folder."""
    skip_without_export()
    folder.mkdir(exist_ok=True)
    cfg, model = small_model(folder)
    weights = folder / "weights.pdparams"
    paddle.save(model.state_dict(), str(weights))
    bundle = export_bundle(model, cfg, CLASS_NAMES, folder / "bundle", CATEGORY_IDS)
    return Exported(model, folder / "small.yml", weights, bundle)


def pictures(seed: int = 0) -> list:
    """Ten random images of different sizes, [H, W, 3] BGR uint8."""
    return [draw_image(height, width, seed + i) for i, (height, width) in enumerate(SHAPES)]


def draw_image(height: int, width: int, seed: int) -> np.ndarray:
    """Rectangles and discs over a noisy gradient."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, width)[None, :, None] * random.uniform(0.5, 1, (1, 1, 3))
    picture = np.clip(ramp + random.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    for _ in range(8):
        x, y = int(random.integers(width)), int(random.integers(height))
        color = [int(value) for value in random.integers(0, 256, 3)]
        size = int(random.integers(8, max(9, min(height, width) // 2)))
        if random.random() < 0.5:
            cv2.circle(picture, (x, y), size // 2, color, cv2.FILLED)
        else:
            cv2.rectangle(picture, (x, y), (x + size, y + size), color, cv2.FILLED)
    return picture
