"""Heads decoded in numpy: what a plain loop finds, and what the network's own decoding finds."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfcos.deploy import heads_decoder
from ppfcos.deploy.bundle import HEAD_OUTPUTS, DecodeOptions, Heads, Level
from ppfcos.deploy.heads_decoder import HeadsDecoder, suppress
from ppfcos.errors import BundleError
from ppfcos.modeling.fcos import anchor_grid, center_grid
from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.postprocess import PPFCOSDecode

STRIDES = (8, 16)
SIZE = (64, 48)  # of the network's input
IM_SHAPE = np.array([[64, 48], [50.4, 37]], np.float32)
SCALE_FACTOR = np.array([[1.0, 1.0], [0.7, 0.75]], np.float32)

SETTINGS = st.builds(
    DecodeOptions,
    pre_nms_top_k=st.sampled_from([3, 10, 1000]),
    score_threshold=st.sampled_from([0.0, 0.05, 0.3]),
    nms_threshold=st.sampled_from([0.3, 0.6]),
    keep_top_k=st.sampled_from([2, 5, 100, -1]),
    sqrt_score=st.booleans(),
    class_threshold=st.sampled_from([0.0, 0.25]),
    rank_by=st.sampled_from(["score", "class"]),
    class_top_k=st.sampled_from([-1, 4]),
    clip=st.sampled_from(["before", "after", "never"]),
    inclusive=st.booleans(),
)


def random_heads(seed: int, num_classes: int, batch: int = 2) -> dict:
    """What a network might say: [B, channels, H_l, W_l] by the outputs' names."""
    random = np.random.default_rng(seed)
    outputs = {}
    for stride in STRIDES:
        shape = SIZE[0] // stride, SIZE[1] // stride
        outputs[f"class_logits_{stride}"] = random.normal(-1.5, 1.5, (batch, num_classes, *shape))
        outputs[f"distances_{stride}"] = random.uniform(1, 4 * stride, (batch, 4, *shape))
        outputs[f"quality_logits_{stride}"] = random.normal(0.5, 1.5, (batch, 1, *shape))
    return {name: values.astype(np.float32) for name, values in outputs.items()}


def heads_of(layout="nchw", locations="centers", distances="pixels", scales=None) -> Heads:
    levels = [Level(s, {kind: f"{kind}_{s}" for kind in HEAD_OUTPUTS}, scales or {}) for s in STRIDES]
    return Heads(layout, locations, distances, tuple(levels))


def decode(outputs: dict, heads: Heads, decoding: DecodeOptions) -> tuple:
    batch = len(next(iter(outputs.values())))
    return HeadsDecoder(heads, decoding)(outputs, SIZE, IM_SHAPE[:batch], SCALE_FACTOR[:batch])


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def naive(outputs: dict, image: int, decoding: DecodeOptions, locations: str) -> list:
    """Label, score, box of one image, candidate by candidate."""
    found = []
    for stride in STRIDES:
        found += naive_level(outputs, image, stride, decoding, locations)
    height, width = IM_SHAPE[image].astype(float)
    scale_y, scale_x = SCALE_FACTOR[image].astype(float)
    one = 1.0 if decoding.inclusive else 0.0
    candidates = []
    for label, score, (x0, y0, x1, y1) in found:
        if decoding.clip == "before":
            x0, x1 = (min(max(x, 0.0), width - one) for x in (x0, x1))
            y0, y1 = (min(max(y, 0.0), height - one) for y in (y0, y1))
        box = (x0 / scale_x, y0 / scale_y, (x1 + one) / scale_x, (y1 + one) / scale_y)
        if decoding.clip != "before" or (box[2] - box[0]) * (box[3] - box[1]) > 0:
            candidates.append((score, label, box))
    kept = naive_suppression(candidates, decoding)
    rows = []
    for score, label, (x0, y0, x1, y1) in kept:
        if decoding.clip == "after":
            x0, x1 = (min(max(x, 0.0), width / scale_x) for x in (x0, x1))
            y0, y1 = (min(max(y, 0.0), height / scale_y) for y in (y0, y1))
            if (x1 - x0) * (y1 - y0) <= 0:
                continue
        if decoding.inclusive:
            x1, y1 = x1 + 1 - 1 / scale_x, y1 + 1 - 1 / scale_y
        rows.append([label, score, x0, y0, x1, y1])
    return rows


def naive_level(outputs: dict, image: int, stride: int, decoding: DecodeOptions, locations: str) -> list:
    logits = outputs[f"class_logits_{stride}"][image]
    candidates = []
    for label, y, x in np.ndindex(*logits.shape):
        class_score = 1 / (1 + math.exp(-logits[label, y, x]))
        quality = 1 / (1 + math.exp(-outputs[f"quality_logits_{stride}"][image, 0, y, x]))
        if class_score <= decoding.class_threshold:
            continue
        score = class_score * quality
        rank = score if decoding.rank_by == "score" else class_score
        at = (x + 0.5) * stride, (y + 0.5) * stride
        if locations == "anchors":
            at = x * (SIZE[1] // logits.shape[2]), y * (SIZE[0] // logits.shape[1])
        left, top, right, bottom = outputs[f"distances_{stride}"][image, :, y, x].astype(float)
        box = (at[0] - left, at[1] - top, at[0] + right, at[1] + bottom)
        candidates.append((rank, label, math.sqrt(score) if decoding.sqrt_score else score, box))
    best = sorted(candidates, key=lambda each: -each[0])[: decoding.pre_nms_top_k]
    return [(label, score, box) for _, label, score, box in best if score > decoding.score_threshold]


def naive_suppression(candidates: list, decoding: DecodeOptions) -> list:
    kept, seen = [], {}
    for score, label, box in sorted(candidates, reverse=True):
        seen[label] = seen.get(label, 0) + 1
        if 0 <= decoding.class_top_k < seen[label]:
            continue
        if all(label != other or iou(box, b) <= decoding.nms_threshold for _, other, b in kept):
            kept.append((score, label, box))
    return kept if decoding.keep_top_k < 0 else kept[: decoding.keep_top_k]


def iou(one: tuple, other: tuple) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (sum(areas) - width * height)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["centers", "anchors"]), SETTINGS)
def test_a_plain_loop_finds_the_same(seed, num_classes, locations, decoding):
    outputs = random_heads(seed, num_classes)
    rows, counts = decode(outputs, heads_of(locations=locations), decoding)
    expected = [naive(outputs, image, decoding, locations) for image in range(2)]
    assert counts.tolist() == [len(each) for each in expected]
    for found, rows_expected in zip(np.split(rows, counts[:1]), expected):
        wanted = np.array(rows_expected).reshape(-1, 6)
        np.testing.assert_allclose(in_order(found), in_order(wanted), rtol=1e-4, atol=1e-3)
        assert (np.diff(found[:, 1]) <= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["centers", "anchors"]), SETTINGS)
def test_the_networks_own_decoding_finds_the_same(seed, locations, decoding):
    outputs = random_heads(seed, 3)
    rows, counts = decode(outputs, heads_of(locations=locations), decoding)
    tensors = HeadOutputs(
        *([paddle.to_tensor(outputs[f"{kind}_{s}"]) for s in STRIDES] for kind in HEAD_OUTPUTS)
    )
    sizes = [(SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    grids = [
        anchor_grid(*size, *SIZE) if locations == "anchors" else center_grid(*size, stride)
        for size, stride in zip(sizes, STRIDES)
    ]
    in_network = PPFCOSDecode(**vars(decoding))
    boxes, numbers = in_network(tensors, grids, paddle.to_tensor(IM_SHAPE), paddle.to_tensor(SCALE_FACTOR))
    assert counts.tolist() == numbers.numpy().tolist()
    for found, expected in zip(np.split(rows, counts[:1]), np.split(boxes.numpy(), counts[:1])):
        np.testing.assert_allclose(in_order(found), in_order(expected), rtol=1e-5, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), SETTINGS)
def test_layout_and_units_make_no_difference(seed, decoding):
    outputs = random_heads(seed, 3)
    rows, counts = decode(outputs, heads_of(), decoding)
    for stride in STRIDES:
        outputs[f"distances_{stride}"] /= stride  # a power of two: exact
    last = {name: np.ascontiguousarray(values.transpose(0, 2, 3, 1)) for name, values in outputs.items()}
    others, other_counts = decode(last, heads_of("nhwc", distances="strides"), decoding)
    assert other_counts.tolist() == counts.tolist()
    for one, other in zip(np.split(rows, counts[:1]), np.split(others, counts[:1])):
        np.testing.assert_array_equal(in_order(one), in_order(other))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), decoding=SETTINGS, dtype=st.sampled_from([np.int8, np.int16, np.int32]))
def test_integers_are_their_values(layout, seed, decoding, dtype):
    """The same boxes to the last bit as from the floats that the integers stand for."""
    steps = {"class_logits": [0.05, 0.07, 0.03], "distances": [0.5, 0.6, 0.7, 0.8], "quality_logits": [0.06]}
    integers, floats = {}, {}
    for name, values in random_heads(seed, 3).items():
        worth = np.array(steps[name.rpartition("_")[0]], np.float32)[:, None, None]
        whole = np.clip(np.round(values / worth), -128, 127).astype(dtype)
        axes = (0, 1, 2, 3) if layout == "nchw" else (0, 2, 3, 1)
        integers[name] = np.ascontiguousarray(whole.transpose(axes))
        floats[name] = np.ascontiguousarray((whole.astype(np.float32) * worth).transpose(axes))
    scales = {kind: tuple(each) for kind, each in steps.items()}
    rows, counts = decode(integers, heads_of(layout, scales=scales), decoding)
    expected, expected_counts = decode(floats, heads_of(layout), decoding)
    assert counts.tolist() == expected_counts.tolist()
    np.testing.assert_array_equal(rows, expected)


def test_float16_outputs_are_read():
    outputs = {name: values.astype(np.float16) for name, values in random_heads(5, 3).items()}
    rows, _ = decode(outputs, heads_of(), DecodeOptions())
    floats = {name: values.astype(np.float32) for name, values in outputs.items()}
    np.testing.assert_array_equal(rows, decode(floats, heads_of(), DecodeOptions())[0])


def test_nothing_but_background():
    outputs = {name: np.full_like(values, -90) for name, values in random_heads(0, 3).items()}
    rows, counts = decode(outputs, heads_of(), DecodeOptions())
    assert rows.shape == (0, 6) and counts.tolist() == [0, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 900), st.sampled_from([7, 100, -1]))
def test_suppression_in_blocks_is_suppression_one_by_one(seed, count, most):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 40, (count, 2))], 1).astype(np.float32)
    scores, labels = random.uniform(0, 1, count).astype(np.float32), random.integers(0, 3, count)
    rows = np.concatenate([labels[:, None], scores[:, None], boxes], 1).astype(np.float32)
    kept = suppress(rows, 0.5, most)
    decoding = DecodeOptions(nms_threshold=0.5, keep_top_k=most)
    candidates = [(float(scores[i]), int(labels[i]), tuple(boxes[i].tolist())) for i in range(count)]
    expected = naive_suppression(candidates, decoding)
    np.testing.assert_allclose(scores[kept], [score for score, _, _ in expected], rtol=1e-6)


def test_grids_are_made_once_and_cannot_be_changed():
    grid = heads_decoder.center_grid(3, 4, 8)
    assert heads_decoder.center_grid(3, 4, 8) is grid
    assert grid[5].tolist() == [12, 12, 12, 12] and grid[3].tolist() == [28, 4, 28, 4]
    with pytest.raises(ValueError, match="read-only"):
        grid[0, 0] = 1


def test_threads_share_a_decoder():
    decoder = HeadsDecoder(heads_of(), DecodeOptions())
    inputs = [random_heads(seed, 3) for seed in range(8)]
    alone = [decoder(each, SIZE, IM_SHAPE, SCALE_FACTOR)[0] for each in inputs]
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        return [decoder(each, SIZE, IM_SHAPE, SCALE_FACTOR)[0] for each in inputs]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            for one, other in zip(found, alone):
                np.testing.assert_array_equal(one, other)


def test_outputs_of_another_form_are_named():
    outputs = random_heads(0, 3)
    scales = {"class_logits": (1.0,) * 3, "distances": (1.0,) * 4, "quality_logits": (1.0,)}
    with pytest.raises(BundleError, match="class_logits_8 is float32, not integers"):
        decode(outputs, heads_of(scales=scales), DecodeOptions())
    del outputs["distances_16"]
    with pytest.raises(BundleError, match="no output distances_16"):
        decode(outputs, heads_of(), DecodeOptions())
