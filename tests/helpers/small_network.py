"""A tiny network with the outputs of FCOS as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.parser import parse_model

CHANNELS = 8
CLASSES = 2
DISTANCE_SCALE = 1.5

HEIGHT, WIDTH = 48, 64  # of the images; the finer level has half of them

NETWORK = """
<ir_version: 8, opset_import: ["" : {opset}]>
network (float[1, 3, 48, 64] image) => ({outputs}) {{
    first = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w_first)
    normal = BatchNormalization (first, gamma, beta, mean, variance)
    active = Relu (normal)
    second = Conv <pads = [1, 1, 1, 1]> (active, w_second, b_second)
    joined = Add (second, active)
    rectified = Relu (joined)
    third = Conv <pads = [1, 1, 1, 1]> (rectified, w_third, b_third)
    instance = InstanceNormalization (third, ones, zeros)
    tower = Relu (instance)
    down = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (tower, w_down, b_down)
    coarse = Relu (down)
    classes_8 = Conv <pads = [1, 1, 1, 1]> (tower, w_classes, b_classes)
    box_8 = Conv <pads = [1, 1, 1, 1]> (tower, w_box, b_box)
    quality_8 = Conv <pads = [1, 1, 1, 1]> (tower, w_quality)
    classes_16 = Conv <pads = [1, 1, 1, 1]> (coarse, w_classes, b_classes)
    box_16 = Conv <pads = [1, 1, 1, 1]> (coarse, w_box, b_box)
    quality_16 = Conv <pads = [1, 1, 1, 1]> (coarse, w_quality)
    scaled_8 = Mul (box_8, distance_scale)
    positive_8 = {distance} (scaled_8)
    pixels_8 = Mul (positive_8, stride_8)
    scaled_16 = Mul (box_16, distance_scale)
    positive_16 = {distance} (scaled_16)
    pixels_16 = Mul (positive_16, stride_16)
    {tail}
}}
"""
HEAD_OUTPUTS = """
    float[1, N, h, w] class_logits_8, float[1, N, v, u] class_logits_16, float[1, M, h, w] distances_8,
    float[1, M, v, u] distances_16, float[1, K, h, w] quality_logits_8, float[1, K, v, u] quality_logits_16
"""
HEADS = """
    class_logits_8 = {form} (classes_8)
    class_logits_16 = {form} (classes_16)
    distances_8 = {form} (pixels_8)
    distances_16 = {form} (pixels_16)
    quality_logits_8 = {form} (quality_8)
    quality_logits_16 = {form} (quality_16)
"""
BOX_OUTPUTS = "float[N, 6] bbox, int32[1] bbox_num"
BOXES = """
    class_scores = Sigmoid (classes_8)
    quality_scores = Sigmoid (quality_8)
    score_map = Mul (class_scores, quality_scores)
    scores = Reshape (score_map, score_rows)
    distance_map = Reshape (pixels_8, distance_rows)
    distances = Transpose <perm = [0, 2, 1]> (distance_map)
    first_sides, last_sides = Split <axis = 2> (distances)
    smaller = Sub (locations, first_sides)
    larger = Add (locations, last_sides)
    boxes = Concat <axis = 2> (smaller, larger)
    selected = NonMaxSuppression (boxes, scores, kept, iou_threshold, score_threshold)
    score = GatherND (scores, selected)
    score_column = Unsqueeze (score, one)
    label = Gather <axis = 1> (selected, one)
    label_column = Cast <to = 1> (label)
    place = Gather <axis = 1> (selected, image_and_place)
    corners = GatherND (boxes, place)
    bbox = Concat <axis = 1> (label_column, score_column, corners)
    size = Shape <start = 0, end = 1> (bbox)
    bbox_num = Cast <to = 6> (size)
"""
LAYOUTS = {"nchw": "Identity", "nhwc": "Transpose <perm = [0, 2, 3, 1]>"}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random constants of the network."""
    random = np.random.default_rng(seed)
    outputs = {"second": CHANNELS, "third": CHANNELS, "down": CHANNELS}
    outputs |= {"classes": CLASSES, "box": 4, "quality": 1}
    found = {"w_first": random.normal(0, 0.01, (CHANNELS, 3, 3, 3))}
    for name, channels in outputs.items():
        found[f"w_{name}"] = random.normal(0, 0.15, (channels, CHANNELS, 3, 3))
        found[f"b_{name}"] = random.normal(0.5, 0.2, channels)
    del found["b_quality"]
    found["gamma"], found["variance"] = random.uniform(0.5, 1.5, (2, CHANNELS))
    found["beta"], found["mean"] = random.normal(0, 0.3, (2, CHANNELS))
    found["ones"], found["zeros"] = np.ones(CHANNELS), np.zeros(CHANNELS)
    found["distance_scale"], found["stride_8"], found["stride_16"] = [[DISTANCE_SCALE], [8], [16]]
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def decoding_constants() -> dict[str, np.ndarray]:
    """Constants of the decoding; points are two pixels apart."""
    rows, columns = np.mgrid[1:HEIGHT:2, 1:WIDTH:2]
    return {
        "locations": np.stack([columns.ravel(), rows.ravel()], axis=1)[None].astype(np.float32),
        "score_rows": np.array([1, CLASSES, -1]),
        "distance_rows": np.array([1, 4, -1]),
        "kept": np.array([50]),
        "iou_threshold": np.array([0.6], np.float32),
        "score_threshold": np.array([0.05], np.float32),
        "one": np.array([1]),
        "image_and_place": np.array([0, 2]),
    }


def write_heads(
    path: Path,
    constants: dict[str, np.ndarray] | None = None,
    layout: str = "nchw",
    distance: str = "Relu",
    opset: int = 17,
) -> Path:
    """Write the network with the outputs of its head, and return the path.

    `distance` is the operator that makes distances positive.
    """
    tail = HEADS.format(form=LAYOUTS[layout])
    text = NETWORK.format(opset=opset, distance=distance, outputs=HEAD_OUTPUTS, tail=tail)
    return _write(path, text, constants or weights())


def write_end_to_end(path: Path) -> Path:
    """Write the network with the boxes of its finer level as outputs, and return the path."""
    text = NETWORK.format(opset=17, distance="Relu", outputs=BOX_OUTPUTS, tail=BOXES)
    return _write(path, text, {**weights(), **decoding_constants()})


def _write(path: Path, text: str, constants: dict[str, np.ndarray]) -> Path:
    model = parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, path)
    return path


def images(count: int = 3, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Batches of one image of coarse blocks."""
    random = np.random.default_rng(seed)
    blocks = random.uniform(0, 255, (count, 1, 3, 6, 8)).astype(np.float32)
    return [{"image": each.repeat(8, axis=2).repeat(8, axis=3)} for each in blocks]
