"""Post-processing equals a plain loop over points, classes and boxes."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from conftest import needs_export
from helpers import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from paddle.static import InputSpec

from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.runtimes.paddle_inference import PaddleInferenceRuntime
from ppfcos.modeling.fcos import anchor_grid, center_grid
from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.postprocess import PPFCOSDecode
from ppfcos.paddle_versions import HAS_NEW_IR

STRIDES = [8, 16]
CONVENTIONS = ("sqrt_score", "class_threshold", "rank_by", "clip", "inclusive")


def decoded(decode, levels, shapes, scales):
    """Boxes of each image as lists of rows, from levels of [B, K, H, W] arrays."""
    outputs = HeadOutputs(
        *([paddle.to_tensor(part.astype("float32")) for part in parts] for parts in zip(*levels))
    )
    grids = [center_grid(*level[0].shape[2:], stride) for level, stride in zip(levels, STRIDES)]
    boxes, counts = decode(
        outputs, grids, paddle.to_tensor(shapes, "float32"), paddle.to_tensor(scales, "float32")
    )
    ends = np.cumsum([0, *counts.numpy().tolist()])
    return [boxes.numpy()[first:last] for first, last in zip(ends, ends[1:])]


def random_levels(rng, batch, height, width, classes):
    levels = []
    for stride in STRIDES:
        shape = [math.ceil(height / stride), math.ceil(width / stride)]
        levels.append(
            (
                rng.normal(-1, 2, [batch, classes, *shape]),
                rng.uniform(0, 40, [batch, 4, *shape]),
                rng.normal(0, 2, [batch, 1, *shape]),
            )
        )
    return levels


def check(levels, shapes, scales, **options):
    decode = PPFCOSDecode(
        pre_nms_top_k=options["top_k"],
        score_threshold=options["threshold"],
        nms_threshold=options["nms_iou"],
        keep_top_k=options["keep"],
        **{key: value for key, value in options.items() if key in CONVENTIONS},
    )
    found = decoded(decode, levels, shapes, scales)
    for image, boxes in enumerate(found):
        single = [tuple(part[image].astype("float32") for part in level) for level in levels]
        expected = reference.decode(single, STRIDES, shapes[image], scales[image], **options)
        boxes = boxes[np.argsort(-boxes[:, 1], kind="stable")]
        assert len(boxes) == len(expected)
        for box, wanted in zip(boxes, expected):
            assert box[0] == wanted[0]
            np.testing.assert_allclose(box[1:], wanted[1:], rtol=1e-5, atol=1e-4)
    return sum(len(boxes) for boxes in found)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    classes=st.integers(1, 20),
    top_k=st.sampled_from([3, 20, 30, 500]),
    threshold=st.sampled_from([0.025, 0.3]),
    nms_iou=st.sampled_from([0.3, 0.6]),
    keep=st.sampled_from([4, 100]),
    sqrt_score=st.booleans(),
    class_threshold=st.sampled_from([0.0, 0.2]),
    rank_by=st.sampled_from(["score", "class"]),
    clip=st.sampled_from(["before", "after", "never"]),
    inclusive=st.booleans(),
)
def test_equal_to_the_loop(seed, classes, top_k, threshold, nms_iou, keep, **conventions):
    rng = np.random.default_rng(seed)
    levels = random_levels(rng, 2, 32, 64, classes)
    options = {
        "top_k": top_k,
        "threshold": threshold,
        "nms_iou": nms_iou,
        "keep": keep,
        **conventions,
    }
    check(levels, [[32, 64], [25, 40]], [[1.0, 1.0], [0.5, 0.625]], **options)


def test_coco_sized_classes_and_limits():
    rng = np.random.default_rng(0)
    levels = random_levels(rng, 1, 128, 128, 80)
    boxes = check(levels, [[128, 120]], [[2.0, 1.5]], top_k=1000, threshold=0.025, nms_iou=0.6, keep=100)
    assert boxes == 100


def test_candidates_of_one_class_are_limited():
    levels = random_levels(np.random.default_rng(0), 1, 64, 64, 2)
    decode = PPFCOSDecode(class_top_k=3, nms_threshold=1.0, score_threshold=0.0)
    boxes = decoded(decode, levels, [[64, 64]], [[1.0, 1.0]])[0]
    every = decoded(PPFCOSDecode(nms_threshold=1.0, score_threshold=0.0), levels, [[64, 64]], [[1.0, 1.0]])[0]
    for label in (0, 1):
        best = np.sort(every[every[:, 0] == label][:, 1])[::-1][:3]
        np.testing.assert_array_equal(boxes[boxes[:, 0] == label][:, 1], best)


def test_nothing_above_the_threshold():
    levels = random_levels(np.random.default_rng(0), 2, 32, 32, 3)
    levels = [(logits - 30, distances, quality) for logits, distances, quality in levels]
    boxes = decoded(PPFCOSDecode(), levels, [[32, 32]] * 2, [[1.0, 1.0]] * 2)
    assert [len(image) for image in boxes] == [0, 0]


def test_boxes_in_the_padding_are_removed():
    rng = np.random.default_rng(0)
    levels = random_levels(rng, 1, 64, 64, 2)
    levels = [(logits + 5, distances * 0.05, quality + 5) for logits, distances, quality in levels]
    boxes = decoded(PPFCOSDecode(), levels, [[16, 64]], [[1.0, 1.0]])[0]
    assert len(boxes) > 0
    assert (boxes[:, 5] <= 16).all()
    assert ((boxes[:, 4] > boxes[:, 2]) & (boxes[:, 5] > boxes[:, 3])).all()


@pytest.mark.parametrize("stride", [8, 128])
def test_points_are_the_centers_of_the_cells(stride):
    found = center_grid(3, 2, stride).points().numpy().tolist()
    expected = [[(i + 0.5) * stride, (j + 0.5) * stride] for j in range(3) for i in range(2)]
    assert found == expected


def test_anchor_points_start_at_the_corner_and_have_steps_of_whole_pixels():
    # 160 pixels on a level of stride 128 are two cells, 80 pixels apart; 96 are one.
    assert anchor_grid(1, 2, 96, 160).points().numpy().tolist() == [[0, 0], [80, 0]]
    assert anchor_grid(2, 2, 16, 16).points().numpy().tolist() == [[0, 0], [8, 0], [0, 8], [8, 8]]


class Decoding(paddle.nn.Layer):
    """Post-processing of two levels as in an exported network."""

    def forward(self, class_logits, distances, quality_logits, im_shape, scale_factor):
        grids = [center_grid(*part.shape[2:], stride) for part, stride in zip(class_logits, STRIDES)]
        return PPFCOSDecode()(
            HeadOutputs(class_logits, distances, quality_logits), grids, im_shape, scale_factor
        )


@needs_export
@pytest.mark.skipif(not HAS_NEW_IR, reason="Paddle 2.6 runs no program in bfloat16")
@pytest.mark.skipif(
    not paddle.base.core.supports_bfloat16(),
    reason="needs a CPU that computes in bfloat16: avx512_bf16 or amx_bf16 in /proc/cpuinfo",
)
def test_coordinates_keep_their_digits_where_paddle_computes_in_bfloat16(tmp_path):
    """bfloat16 has steps of 4 pixels beyond 512: distances may be rounded to it, coordinates not."""
    levels = random_levels(np.random.default_rng(0), 1, 800, 1344, 5)
    levels = [[paddle.to_tensor(part, "bfloat16").astype("float32") for part in level] for level in levels]
    kinds = ("class_logits", "distances", "quality_logits")
    feed = {
        f"{kind}_{stride}": part for level, stride in zip(levels, STRIDES) for kind, part in zip(kinds, level)
    }
    feed["im_shape"], feed["scale_factor"] = (
        paddle.to_tensor([[777.0, 1333.0]]),
        paddle.to_tensor([[1.621, 1.617]]),
    )
    specs = [
        [InputSpec(feed[name].shape, "float32", name) for name in (f"{kind}_{stride}" for stride in STRIDES)]
        for kind in kinds
    ]
    pairs = [InputSpec([1, 2], "float32", name) for name in ("im_shape", "scale_factor")]
    program = paddle.jit.to_static(Decoding(), input_spec=[*specs, *pairs], full_graph=True)
    paddle.jit.save(program, str(tmp_path / "model"))
    arrays = {name: value.numpy() for name, value in feed.items()}
    files = tmp_path / "model.json", tmp_path / "model.pdiparams"
    exact, rough = (
        split_batch(
            *PaddleInferenceRuntime(*files, ("bbox", "bbox_num"), 1, "cpu", precision).run(arrays).values(),
            (),
        )
        for precision in ("fp32", "bf16")
    )
    away = np.abs(exact[0].boxes[:, None] - rough[0].boxes[None]).max(axis=2)
    assert len(exact[0]) == 100
    assert (away.min(axis=1) < 1e-3).mean() > 0.8, "rounded scores let NMS keep other boxes"
