"""`rounding` of Resize in training, TTA, checker and bundles, against the formulas of the sources."""

from __future__ import annotations

import math

import cv2
import numpy as np
import paddle
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ppfcos.data.check.levels import assign_levels, input_geometry
from ppfcos.data.transforms.uint8 import UInt8RandomResize, UInt8RandomSelect, UInt8Resize
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.engine.tta import tta_model
from ppfcos.errors import BundleError
from ppfcos.export.bundle_files import preprocess_steps, without_rounding
from ppfcos.resizing import ROUNDINGS, scaling

SIZES = [(427, 640), (640, 427), (480, 640), (333, 500), (61, 47), (1333, 801)]
TARGETS = [(800, 1333), (96, 160), (320, 320)]


def mmcv_imrescale(height, width, target):
    """mmcv/image/geometric.py: rescale_size and _scale_size."""
    factor = min(max(target) / max(height, width), min(target) / min(height, width))
    return int(height * float(factor) + 0.5), int(width * float(factor) + 0.5)


def torchvision_interpolate(height, width, target):
    """torchvision/models/detection/transform.py with recompute_scale_factor=True."""
    factor = min(min(target) / min(height, width), max(target) / max(height, width))
    return math.floor(float(height) * factor), math.floor(float(width) * factor)


RESIZED = {"nearest": mmcv_imrescale, "floor": torchvision_interpolate}


def a_sample(height, width, seed=0):
    random = np.random.RandomState(seed)
    return {
        "im_file": "x.jpg",
        "image": random.randint(0, 256, (height, width, 3)).astype(np.uint8),
        "gt_bbox": np.array([[1.5, 2.25, 20, 30.5], [0, 0, width, height]], np.float32),
    }


def by_hand(sample, rounding, target):
    """The image by cv2.resize, and the sample's other keys."""
    height, width = sample["image"].shape[:2]
    if rounding == "none":
        factor = min(min(target) / min(height, width), max(target) / max(height, width))
        image = cv2.resize(sample["image"], None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        return image, (height * factor, width * factor), (factor, factor)
    size = RESIZED[rounding](height, width, target)
    image = cv2.resize(sample["image"], size[::-1], interpolation=cv2.INTER_LINEAR)
    return image, size, (size[0] / height, size[1] / width)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_training_and_deployment_resize_as_the_source_does(rounding, size, target):
    arguments = {"target_size": list(target), "keep_ratio": True, "interp": 1, "rounding": rounding}
    image, im_shape, factors = by_hand(a_sample(*size), rounding, target)
    for transform in (
        UInt8Resize(**arguments),
        UInt8RandomResize(**{**arguments, "target_size": [list(target)]}),
        UInt8RandomSelect([{"Resize": arguments}], [{"Resize": arguments}]),
    ):
        trained = transform(a_sample(*size))
        np.testing.assert_array_equal(trained["image"], image)
        np.testing.assert_array_equal(trained["im_shape"], np.float32(im_shape))
        np.testing.assert_array_equal(trained["scale_factor"], np.float32(factors))
        boxes = a_sample(*size)["gt_bbox"] * np.float32([*factors[::-1]] * 2)
        np.testing.assert_allclose(trained["gt_bbox"], boxes, rtol=1e-6)
    deployed = Preprocess([{"type": "Resize", **arguments}]).prepare(a_sample(*size)["image"])
    np.testing.assert_array_equal(deployed.image, image)
    assert deployed.im_shape == im_shape and deployed.scale_factor == factors


@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    target=st.tuples(st.integers(32, 2000), st.integers(32, 2000)),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_size_and_factors_belong_together(height, width, target, rounding):
    to = scaling(height, width, target, True, rounding)
    np.testing.assert_allclose(np.divide(to.size, to.factors), (height, width), rtol=1e-12)
    assert min(to.pixels) >= 1 and np.abs(np.subtract(to.pixels, to.size)).max() <= 1
    if rounding != "none":
        assert to.size == to.pixels
        assert to.pixels == tuple(max(1, side) for side in RESIZED[rounding](height, width, target))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("height", "width"), [(3, 5000), (5000, 3), (1, 2668), (1, 20000)])
def test_a_thin_image_keeps_a_pixel_everywhere(height, width, rounding):
    arguments = {"target_size": [96, 128], "keep_ratio": True, "interp": 1, "rounding": rounding}
    trained = UInt8Resize(**arguments)(a_sample(height, width))
    deployed = Preprocess([{"type": "Resize", **arguments}]).prepare(a_sample(height, width)["image"])
    assert min(trained["image"].shape) >= 1
    np.testing.assert_array_equal(trained["image"], deployed.image)
    np.testing.assert_array_equal(trained["scale_factor"], np.float32(deployed.scale_factor))


def test_the_key_changes_nothing_without_keep_ratio():
    results = [scaling(427, 640, (300, 500), False, rounding) for rounding in ROUNDINGS]
    assert results[0] == results[1] == results[2]


def test_a_fixed_network_size_holds_with_every_rounding():
    for rounding in ROUNDINGS:
        for height, width in SIZES:
            pixels = scaling(height, width, (800, 1333), True, rounding, (320, 480)).pixels
            assert pixels[0] <= 320 and pixels[1] <= 480


def test_a_bundle_keeps_the_rounding_and_paddledetections_file_does_not():
    arguments = {"target_size": [800, 1333], "keep_ratio": True, "interp": 1}
    for rounding in ROUNDINGS:
        transforms = [{"Decode": {}}, {"Resize": {**arguments, "rounding": rounding}}, {"Permute": {}}]
        batch = [{"PadBatch": {"pad_to_stride": 32}}]
        steps = preprocess_steps({"sample_transforms": transforms, "batch_transforms": batch})
        assert Preprocess(yaml.safe_load(yaml.safe_dump(steps))).steps[0].rounding == rounding
        assert "rounding" not in without_rounding({"Preprocess": steps})["Preprocess"][0]
    assert (
        "rounding"
        not in preprocess_steps(  # as bundles and configurations say nothing so far
            {"sample_transforms": [{"Resize": arguments}, {"Permute": {}}], "batch_transforms": batch}
        )[0]
    )


def test_another_rounding_is_refused():
    with pytest.raises(ValueError, match="rounding"):
        UInt8Resize(32, True, rounding="up")
    with pytest.raises(ValueError, match="rounding"):
        UInt8RandomResize([[32, 32]], rounding="up")
    with pytest.raises(BundleError, match="rounding"):
        Preprocess([{"type": "Resize", "target_size": 32, "rounding": ["nearest"]}])


class _SeenError(Exception):
    """Carries the inputs of a pass."""


class _Detector(paddle.nn.Layer):
    def candidates(self, batch):
        raise _SeenError({name: tensor.numpy() for name, tensor in batch.items()})


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_test_time_augmentation_resizes_as_the_reader_does(rounding):
    resize = {"target_size": [800, 1333], "keep_ratio": True, "interp": 1, "rounding": rounding}
    reader = {
        "sample_transforms": [{"Decode": {}}, {"Resize": resize}, {"Permute": {}}],
        "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}],
    }
    model = tta_model(_Detector(), {"tta": {"target_size": [[96, 160]]}, "EvalReader": reader}, "EvalReader")
    sample = a_sample(61, 47)
    image, im_shape, factors = by_hand(sample, rounding, (96, 160))
    batch = {"image": sample["image"].transpose(2, 0, 1)[None], "im_shape": np.float32([[61, 47]])}
    with pytest.raises(_SeenError) as seen:
        model({name: paddle.to_tensor(value) for name, value in batch.items()})
    [inputs] = seen.value.args
    height, width = image.shape[:2]
    np.testing.assert_array_equal(inputs["image"][0, :, :height, :width].transpose(1, 2, 0), image)
    np.testing.assert_array_equal(inputs["im_shape"][0], np.float32(im_shape))
    np.testing.assert_array_equal(inputs["scale_factor"][0], np.float32(factors))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_checker_assigns_boxes_at_the_trained_size(rounding):
    seen = []

    def count_points(boxes, height, width):
        seen.append((boxes, height, width))
        return np.ones((*boxes.shape[:2], 1), int)

    resize = {"target_size": [800, 1333], "keep_ratio": True, "rounding": rounding}
    reader = {"TrainReader": {"sample_transforms": [{"Resize": resize}]}}
    boxes = np.array([[1.5, 2.25, 20, 30.5]], np.float32)
    assign_levels(boxes, 333, 500, input_geometry(reader, count_points, [8], None))
    _, size, (vertical, horizontal) = by_hand(a_sample(333, 500), rounding, (800, 1333))
    [(resized, height, width)] = seen
    np.testing.assert_allclose(resized[0], boxes * np.float32([horizontal, vertical] * 2), rtol=1e-6)
    assert (height, width) == tuple(-(-round(side) // 32) * 32 for side in size)
