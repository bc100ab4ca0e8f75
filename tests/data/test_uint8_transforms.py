"""Operators on 8-bit pixels, against PaddleDetection's own with the same draws."""

from __future__ import annotations

import numpy as np
import pytest
from ppdet.data import transform as ppdet_transform

from ppfcos.data.rng import global_generators
from ppfcos.data.transforms.uint8 import UINT8_TRANSFORMS

SIZES = [[64, 100], [96, 160], [200, 220]]
CASES = [
    ("Resize", {"target_size": [96, 160], "keep_ratio": True}),
    ("Resize", {"target_size": 77, "keep_ratio": False, "interp": 2}),
    ("RandomResize", {"target_size": SIZES}),
    ("RandomResize", {"target_size": [[64, 100], [200, 220]], "random_range": True, "random_interp": True}),
    ("RandomResize", {"target_size": [96, 160], "random_size": False, "keep_ratio": False}),
    ("RandomFlip", {}),
    ("RandomFlip", {"prob": 1.0}),
]


def a_sample(seed, boxes):
    random = np.random.RandomState(seed)
    height, width = random.randint(40, 130, 2)
    corners = random.uniform(0, 40, [boxes, 2, 2]).astype(np.float32)
    return {
        "image": random.randint(0, 256, [height, width, 3]).astype(np.uint8),
        "im_shape": np.array([height, width], np.float32),
        "scale_factor": np.array([1.5, 0.7], np.float32),
        "gt_bbox": np.sort(corners, axis=1).reshape(-1, 4),
        "im_file": "x.jpg",
    }


@pytest.mark.parametrize("boxes", [0, 3])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_they_do_what_paddledetection_does(name, arguments, boxes):
    ours, theirs = UINT8_TRANSFORMS[name](**arguments), getattr(ppdet_transform, name)(**arguments)
    for seed in range(12):
        results = []
        for operator in (ours, theirs):
            with global_generators(seed):
                results.append((operator(a_sample(seed, boxes)), np.random.rand()))
        (one, next_of_one), (other, next_of_other) = results
        assert one.keys() == other.keys() and next_of_one == next_of_other
        assert one["image"].dtype == np.uint8 and one["image"].flags.c_contiguous
        for key in one:
            if key in ("scale_factor", "gt_bbox"):  # NumPy 2 rounds PaddleDetection's products twice
                np.testing.assert_array_max_ulp(one[key], other[key], maxulp=1)
            else:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)
