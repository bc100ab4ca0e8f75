"""Targets equal the paper's rules, point by point, and PaddleDetection's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest
from helpers import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfcos.modeling.assigner import PPFCOSTargets
from ppfcos.modeling.fcos import center_grid

STRIDES = [8, 16, 32, 64, 128]
HEIGHT, WIDTH = 128, 192
CLASSES = 4

# Quarters of a pixel: exact in float32, so that borders, equal areas and interval ends are met exactly.
_corner = st.tuples(st.integers(-40, 4 * WIDTH), st.integers(-40, 4 * HEIGHT))
_size = st.tuples(st.integers(0, 4 * WIDTH), st.integers(0, 4 * HEIGHT))
_box = st.tuples(_corner, _size).map(
    lambda box: tuple(v / 4 for v in (*box[0], box[0][0] + box[1][0], box[0][1] + box[1][1]))
)
_boxes = st.lists(_box, max_size=8)


def assigned(builder: PPFCOSTargets, images: list, labels: list, size=(HEIGHT, WIDTH), strides=STRIDES):
    """Return the targets of a batch of box lists, padded as by the loader."""
    most = max(1, *(len(boxes) for boxes in images))
    padded = np.zeros([len(images), most, 4], np.float32)
    classes = np.zeros([len(images), most], np.int32)
    for i, (boxes, names) in enumerate(zip(images, labels)):
        padded[i, : len(boxes)] = np.reshape(boxes, [-1, 4])
        classes[i, : len(boxes)] = names
    grids = [center_grid(-(-size[0] // s), -(-size[1] // s), s).points() for s in strides]
    return builder(grids, strides, paddle.to_tensor(padded), paddle.to_tensor(classes), CLASSES)


def check(builder: PPFCOSTargets, images: list, labels: list) -> int:
    """Compare with the loop, and return the number of positives."""
    found = assigned(builder, images, labels)
    found_labels, positives = found.labels.numpy(), found.positives.numpy().tolist()
    distances, centerness = found.distances.numpy(), found.centerness.numpy()
    points = reference.locations(HEIGHT, WIDTH, STRIDES)
    expected_positives = []
    for image, boxes in enumerate(images):
        for number, (level, x, y) in enumerate(points):
            index = image * len(points) + number
            match = reference.target(
                level, x, y, boxes, STRIDES, builder.size_ranges, builder.center_sampling_radius
            )
            if match is None:
                assert found_labels[index] == CLASSES
                continue
            row = len(expected_positives)
            expected_positives.append(index)
            assert found_labels[index] == labels[image][match[0]]
            assert distances[row].tolist() == list(match[1])
            assert centerness[row] == pytest.approx(reference.centerness(match[1]), abs=1e-6)
    assert positives == expected_positives
    return len(positives)


@settings(max_examples=60, deadline=None)
@given(st.lists(_boxes, min_size=1, max_size=3), st.sampled_from([0, 1.5, 0.75]), st.data())
def test_equal_to_the_loop(images, radius, data):
    labels = [[data.draw(st.integers(0, CLASSES - 1)) for _ in boxes] for boxes in images]
    check(PPFCOSTargets(center_sampling_radius=radius), images, labels)


def test_nested_and_equal_boxes_go_to_the_smallest_and_the_first():
    nested = [(0, 0, 128, 128), (16, 16, 112, 112), (32, 32, 96, 96), (32, 32, 96, 96)]
    positives = check(PPFCOSTargets(center_sampling_radius=0), [nested], [[0, 1, 2, 3]])
    assert positives > 0
    labels = assigned(PPFCOSTargets(center_sampling_radius=0), [nested], [[0, 1, 2, 3]]).labels.numpy()
    assert 2 in labels and 3 not in labels


def test_three_hundred_boxes():
    rng = np.random.default_rng(3)
    corner, size = rng.integers(0, 400, [300, 2]) / 4, rng.integers(4, 300, [300, 2]) / 4
    boxes = [tuple(box) for box in np.concatenate([corner, corner + size], 1)]
    assert check(PPFCOSTargets(), [boxes, []], [rng.integers(0, CLASSES, 300).tolist(), []]) > 50


def test_chunks_change_nothing():
    rng = np.random.default_rng(5)
    corner, size = rng.integers(0, 400, [40, 2]) / 4, rng.integers(4, 300, [40, 2]) / 4
    boxes = [tuple(box) for box in np.concatenate([corner, corner + size], 1)] * 2
    labels = [rng.integers(0, CLASSES, 80).tolist()]
    assert check(PPFCOSTargets(chunk_elements=7 * 600), [boxes], labels) > 20


def test_a_batch_without_boxes_has_no_positive():
    found = assigned(PPFCOSTargets(), [[], []], [[], []])
    assert found.positives.shape == [0] and found.distances.shape == [0, 4]
    assert (found.labels.numpy() == CLASSES).all()


def padded(images: list) -> paddle.Tensor:
    most = max(1, *(len(boxes) for boxes in images))
    rows = np.zeros([len(images), most, 4], np.float32)
    for row, boxes in zip(rows, images):
        row[: len(boxes)] = np.reshape(boxes, [-1, 4])
    return paddle.to_tensor(rows)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(_boxes, _boxes), min_size=1, max_size=3),
    st.sampled_from([4_194_304, 2000]),
)
def test_valid_points_equal_the_loop(images, chunk):
    """Not valid are the points strictly inside a crowd box that are not positive."""
    builder = PPFCOSTargets(chunk_elements=chunk, ignore_crowd=True)
    grids = [center_grid(-(-HEIGHT // s), -(-WIDTH // s), s).points() for s in STRIDES]
    boxes, crowds = ([pair[part] for pair in images] for part in (0, 1))
    labels = paddle.zeros([len(images), max(1, *map(len, boxes))], dtype="int32")
    found = builder(grids, STRIDES, padded(boxes), labels, CLASSES, padded(crowds))
    points = reference.locations(HEIGHT, WIDTH, STRIDES)
    expected = []
    for image, (own, others) in enumerate(images):
        for number, (level, x, y) in enumerate(points):
            in_crowd = any(x0 < x < x1 and y0 < y < y1 for x0, y0, x1, y1 in others)
            match = reference.target(level, x, y, own, STRIDES, builder.size_ranges, 1.5)
            if match is not None or not in_crowd:
                expected.append(image * len(points) + number)
    if len(expected) == len(images) * len(points):
        assert found.valid is None
    else:
        assert found.valid.numpy().tolist() == expected
    plain = PPFCOSTargets(chunk_elements=chunk)(
        grids, STRIDES, padded(boxes), labels, CLASSES, padded(crowds)
    )
    assert plain.valid is None
    for name in ("labels", "positives", "distances", "centerness"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(plain, name).numpy())


@pytest.mark.parametrize("radius", [1.5, 0])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_equal_to_paddledetection(radius, count):
    """Gt2FCOSTarget of PaddleDetection 2.6.0, which needs at least one box.

    Its ranges exclude both ends (64 < m < 128), ours only the lower (64 < m ≤ 128); the random boxes meet no
    end. Its background is 0, and its classes begin at 1.
    """
    from helpers.stock_targets import Gt2FCOSTarget

    rng = np.random.default_rng(count)
    height, width = 256, 384
    corner = rng.uniform(0, [width - 12, height - 12], [count, 2])
    boxes = np.concatenate([corner, corner + rng.uniform(5, 300, [count, 2])], 1).astype(np.float32)
    boxes = np.minimum(boxes, [width, height, width, height]).astype(np.float32)
    labels = rng.integers(0, CLASSES, [count, 1]).astype(np.int32)
    stock = Gt2FCOSTarget([64, 128, 256, 512], radius, STRIDES, norm_reg_targets=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        sample = stock(
            [{"image": np.zeros([3, height, width], np.float32), "gt_bbox": boxes, "gt_class": labels}]
        )[0]
    stock_labels = np.concatenate([sample[f"labels{level}"].reshape(-1) for level in range(5)])
    stock_distances = np.concatenate([sample[f"reg_target{level}"].reshape(-1, 4) for level in range(5)])
    stock_centerness = np.concatenate([sample[f"centerness{level}"].reshape(-1) for level in range(5)])
    found = assigned(
        PPFCOSTargets(center_sampling_radius=radius), [boxes], [labels[:, 0]], size=(height, width)
    )
    positives = np.flatnonzero(stock_labels)
    assert len(positives) > 0
    np.testing.assert_array_equal(found.positives.numpy(), positives)
    np.testing.assert_array_equal(found.labels.numpy(), np.where(stock_labels > 0, stock_labels - 1, CLASSES))
    np.testing.assert_array_equal(found.distances.numpy(), stock_distances[positives])
    np.testing.assert_allclose(found.centerness.numpy(), stock_centerness[positives], rtol=1e-6)


MEMORY = """
import resource
from ppfcos import environment
environment.configure_process()
import numpy as np, paddle
from ppfcos.modeling.fcos import center_grid
from ppfcos.modeling.assigner import PPFCOSTargets
strides = [8, 16, 32, 64, 128]
grids = [center_grid(-(-800 // s), -(-1344 // s), s).points() for s in strides]
assert sum(grid.shape[0] for grid in grids) == 22400
rng = np.random.default_rng(0)
corner = rng.uniform(0, 700, [1, 1000, 2])
boxes = np.concatenate([corner, corner + rng.uniform(4, 400, [1, 1000, 2])], -1).astype("float32")
boxes = paddle.to_tensor(boxes)
labels = paddle.zeros([1, 1000], dtype="int32")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
targets = PPFCOSTargets()(grids, strides, boxes, labels, 80)
assert targets.positives.shape[0] > 1000
print("EXTRA_KIB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_thousand_boxes_take_little_memory(root):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    extra = int(done.stdout.split("EXTRA_KIB")[1].split()[0])
    assert extra < 1.5 * 1024 * 1024
