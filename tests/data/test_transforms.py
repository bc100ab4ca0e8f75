"""Operators on drawn boxes: what is found in the picture afterwards is as annotated, to a pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ppdet.data import transform as ppdet_transform

from ppfcos.config import load_config
from ppfcos.config.keys import REFUSED_TRANSFORMS
from ppfcos.data import transforms
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import TrainLoader
from ppfcos.data.rng import global_generators
from ppfcos.data.transforms.base import GREY
from ppfcos.data.transforms.pipeline import SampleTransforms, TransformError
from ppfcos.errors import ConfigError

# Pure colours: after any interpolation a pixel belongs to the nearest of them, to the black between, or to
# the grey beside the picture.
COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8
)
GAP = 12  # pixels between two boxes: a resize to a fifth still leaves some
SEEDS = st.integers(0, 10**6)
FEW = settings(max_examples=30, deadline=None)


def draw(random: np.random.RandomState, labels=range(6), size=None) -> dict:
    """A sample as it leaves Decode: filled boxes on black, one of each label at most, and none overlaps."""
    height, width = size or random.randint(120, 260, 2)
    image, taken = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    boxes, drawn = [], []
    for label in labels:
        for _ in range(20):
            box_width, box_height = random.randint(14, 70, 2)
            x, y = random.randint(0, width - box_width), random.randint(0, height - box_height)
            around = taken[max(0, y - GAP) : y + box_height + GAP, max(0, x - GAP) : x + box_width + GAP]
            if not around.any():
                taken[y : y + box_height, x : x + box_width] = True
                image[y : y + box_height, x : x + box_width] = COLOURS[label]
                boxes.append([x, y, x + box_width, y + box_height])
                drawn.append(label)
                break
    return {
        "im_file": "drawn.png", "im_id": np.array([1]), "image": image, "h": float(height), "w": float(width),
        "im_shape": np.array([height, width], np.float32), "scale_factor": np.ones(2, np.float32),
        "gt_bbox": np.array(boxes, np.float32).reshape(-1, 4),
        "gt_class": np.array(drawn, np.int32).reshape(-1, 1),
        "is_crowd": np.zeros((len(boxes), 1), np.int32),
    }  # fmt: skip


def mask_of(image: np.ndarray, label: int) -> np.ndarray:
    """[H, W] bool: the pixels of an image [H, W, 3] that are nearest to a label's colour."""
    among_colours = ((image > 127) == (COLOURS[label] > 0)).all(axis=2)
    to_colour, to_grey = (
        np.square(image.astype(int) - place).sum(axis=2) for place in (COLOURS[label].astype(int), GREY)
    )
    return among_colours & (to_colour < to_grey)


def found(mask: np.ndarray) -> np.ndarray | None:
    """The tight box x0y0x1y1 around a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def transformed(seed: int, operators: list, samples: list) -> tuple:
    """What SampleTransforms makes of the first sample; the others are the further ones that it may draw.

    Returns:
        The image [H, W, 3] and {label: box}.
    """
    others = iter(samples[1:])
    reader = {"sample_transforms": [{"Decode": {}}, *operators, {"Permute": {}}]}
    with global_generators(seed):
        sample = SampleTransforms(reader, "TrainReader")(samples[0], lambda: next(others))
    image = sample["image"].transpose(1, 2, 0)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(np.rint(sample["im_shape"]), image.shape[:2])
    assert len(sample["gt_bbox"]) == len(sample["gt_class"]) == len(sample["is_crowd"])
    labels = sample["gt_class"].ravel().tolist()
    assert len(set(labels)) == len(labels)
    return image, dict(zip(labels, sample["gt_bbox"]))


def assert_boxes_are_in_the_image(image: np.ndarray, boxes: dict) -> None:
    for label, box in boxes.items():
        seen = found(mask_of(image, label))
        assert seen is not None, f"nothing of box {label} is in the picture"
        assert np.abs(seen - box).max() <= 1, (label, seen, box)


# Geometric operators ------------------------------------------------------------------------------

TWO_SIZES = [[96, 160], [300, 500], [333, 555]]
GEOMETRIC = [
    {"RandomFlip": {}},
    {"PPFCOSRandomVerticalFlip": {}},
    {"Resize": {"target_size": [100, 130], "keep_ratio": True, "interp": 1}},
    {"Resize": {"target_size": [300, 200], "keep_ratio": False, "interp": 1}},
    {"RandomResize": {"target_size": TWO_SIZES, "interp": 1}},
    {"RandomResize": {"target_size": [[96, 400], [300, 400]], "random_range": True, "random_size": False}},
    {"Resize": {"target_size": [77, 130], "keep_ratio": True, "rounding": "nearest"}},
    {"RandomResize": {"target_size": TWO_SIZES, "interp": 1, "rounding": "floor"}},
    {"RandomShortSideResize": {"short_side_sizes": [96, 150, 201], "max_size": 300}},
    {"RandomCrop": {}},
    {"RandomCrop": {"aspect_ratio": None, "thresholds": [0.3], "allow_no_crop": False}},
    {"RandomSizeCrop": {"min_size": 60, "max_size": 200}},
    {"RandomResizeCrop": {"resizes": [150, 200], "cropsizes": [[90, 140]], "prob": 1.0}},
    {"RandomExpand": {"prob": 0.2, "ratio": 1.5}},
    {"Pad": {"size": [280, 300], "pad_mode": 1}},
    {"PPFCOSScaleJitterCrop": {"size": [120, 150], "scale": [0.3, 2.0]}},
    {"PPFCOSScaleJitterCrop": {"size": 200, "scale": [1.0, 3.0], "min_visible": 0}},
    {"PPFCOSRandomAffine": {"degrees": [0, 0], "translate": [-0.5, 0.5], "scale": [0.5, 2.0]}},
    {"PPFCOSRandomAffine": {"degrees": [180, 180], "translate": [-0.2, 0.2], "min_visible": 0}},
]


def name_of(operator: dict) -> str:
    [(name, arguments)] = operator.items()
    return f"{name}{len(str(arguments))}"


@pytest.mark.parametrize("operator", GEOMETRIC, ids=name_of)
@given(seed=SEEDS)
@example(seed=114702)  # a box at the picture's edge, beside grey
@FEW
def test_boxes_follow_the_image(operator, seed):
    image, boxes = transformed(seed, [operator], [draw(np.random.RandomState(seed))])
    assert_boxes_are_in_the_image(image, boxes)


@given(seed=SEEDS)
@FEW
def test_boxes_follow_the_image_through_a_chain(seed):
    """Every operator takes what the ones before it have left: floats, turned pixels, views."""
    select = {
        "transforms1": [{"RandomShortSideResize": {"short_side_sizes": [200]}}],
        "transforms2": [{"PPFCOSScaleJitterCrop": {"size": 220}}],
    }
    operators = [
        {"RandomFlip": {}}, {"RandomExpand": {"prob": 0.5, "ratio": 1.5}}, {"RandomCrop": {}},
        {"PPFCOSRandomVerticalFlip": {}}, {"RandomSelect": select},
        {"PPFCOSRandomAffine": {"degrees": [0, 0], "prob": 0.5}},
        {"Resize": {"target_size": 256, "keep_ratio": True}},
    ]  # fmt: skip
    image, boxes = transformed(seed, operators, [draw(np.random.RandomState(seed), range(3))])
    for label, box in boxes.items():  # each of four resizes may round by half a pixel, and scale the others'
        assert np.abs(found(mask_of(image, label)) - box).max() <= 3


@pytest.mark.parametrize("name", ["RandomCrop", "PPFCOSScaleJitterCrop"])
def test_crops_keep_a_box(name):
    """However small the piece that is cut out is, a picture of one small box does not lose it."""
    arguments = {
        "RandomCrop": {"scaling": [0.3, 0.5], "allow_no_crop": False, "thresholds": [0.0]},
        "PPFCOSScaleJitterCrop": {"size": 120, "scale": [2.0, 3.0], "attempts": 200},
    }[name]
    for seed in range(30):
        sample = draw(np.random.RandomState(seed), [0], (240, 240))
        assert list(transformed(seed, [{name: arguments}], [sample])[1]) == [0]


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_rotated_boxes_are_tight_around_their_corners(seed):
    """Against a picture on which every pixel was asked, one by one, in which turned box its middle lies."""
    sample = draw(np.random.RandomState(seed))
    original, (height, width) = sample["gt_bbox"].copy(), sample["image"].shape[:2]
    labels = sample["gt_class"].ravel().tolist()
    arguments = {"degrees": [-180, 180], "translate": [-0.3, 0.3], "scale": [0.5, 1.5]}
    image, boxes = transformed(seed, [{"PPFCOSRandomAffine": arguments}], [sample])
    with global_generators(seed):
        np.random.uniform()  # whether to move the picture at all
        matrix = transforms.PPFCOSRandomAffine(**arguments).draw_matrix(height, width)
    margin = 320  # pixels: nothing is moved farther beyond the picture
    y, x = np.mgrid[-margin : height + margin, -margin : width + margin] + 0.5
    points = np.stack([x, y]) - matrix[:, 2].reshape(2, 1, 1)
    old_x, old_y = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix[:, :2]), points)
    for label, (x0, y0, x1, y1) in zip(labels, original):
        mask = (x0 <= old_x) & (old_x < x1) & (y0 <= old_y) & (old_y < y1)
        whole = found(mask) - margin
        clipped = np.clip(whole, 0, [width, height] * 2)
        sides, whole_sides = clipped[2:] - clipped[:2], whole[2:] - whole[:2]
        if label in boxes:
            assert np.abs(clipped - boxes[label]).max() <= 1
        here = mask[margin:-margin, margin:-margin]
        assert (here ^ mask_of(image, label)).sum() <= 4 * (here.sum() ** 0.5 + 8), "the picture itself"
        visible = max(0, sides.min()) * sides.max() / whole_sides.prod()
        if abs(visible - 0.25) > 0.12:  # a pixel more or less does not decide
            assert (label in boxes) == (visible > 0.25 and sides.min() >= 1)


@pytest.mark.parametrize(
    "operator",
    [
        {"PPFCOSRandomAffine": {"degrees": [0, 0], "translate": [-0.6, 0.6], "scale": [1, 1]}},
        {"PPFCOSScaleJitterCrop": {"size": 100, "scale": [2.0, 2.0], "attempts": 1}},
        {"PPFCOSMosaic": {"size": 200, "scale": [1.0, 1.0]}},
        {"PPFCOSCutOut": {"prob": 1.0, "sides": [0.1, 0.5]}},
    ],
    ids=name_of,
)
def test_a_box_stays_if_enough_of_it_is_left(operator):
    """The pixels are the originals', neither fewer nor more: what is left of a box can be counted."""
    outcomes = set()
    for seed in range(40):
        random = np.random.RandomState(seed)
        samples = [draw(random, labels, (200, 200)) for labels in ((0, 1), (2, 3), (4,), (5,))]
        if "PPFCOSMosaic" not in operator:
            samples = samples[:1]
        boxes_before = np.concatenate([sample["gt_bbox"] for sample in samples])
        labels = np.concatenate([sample["gt_class"].ravel() for sample in samples])
        image, boxes = transformed(seed, [operator], samples)
        for label, (x0, y0, x1, y1) in zip(labels, boxes_before):
            left = mask_of(image, label).sum() / ((x1 - x0) * (y1 - y0))
            if abs(left - 0.25) > 0.05:  # shifts by parts of a pixel
                assert (label in boxes) == (left > 0.25), (seed, label, left)
                outcomes.add(label in boxes)
    assert outcomes == {True, False}


# Several pictures ---------------------------------------------------------------------------------


@given(seed=SEEDS)
@FEW
def test_mosaic(seed):
    random = np.random.RandomState(seed)
    samples = [draw(random, labels) for labels in ((0, 1), (2, 3), (4,), (5,))]
    size = random.randint(100, 300, 2).tolist()
    mosaic = {"PPFCOSMosaic": {"size": size, "scale": [0.4, 1.5], "center": [0, 1]}}
    image, boxes = transformed(seed, [mosaic], samples)
    assert list(image.shape[:2]) == size
    assert_boxes_are_in_the_image(image, boxes)


def test_mix_images_go_through_the_transforms_before_the_mosaic():
    """Three small pictures and one large are flipped and made equally large before they meet."""
    sizes = [(100, 100), (60, 60), (200, 200), (150, 150)]
    samples = []
    for label, size in enumerate(sizes):
        sample = draw(np.random.RandomState(label), [label], size)
        sample["image"][:] = COLOURS[label]
        sample["gt_bbox"][:] = [0, 0, size[1], size[0]]
        samples.append(sample)
    resize = {"Resize": {"target_size": [80, 80], "keep_ratio": False, "interp": 1}}
    mosaic = {"PPFCOSMosaic": {"size": 160, "scale": [0.5, 0.5], "center": [0.5, 0.5]}}
    image, boxes = transformed(0, [{"RandomFlip": {}}, resize, mosaic], samples)
    corners = [(0, 0), (80, 0), (0, 80), (80, 80)]
    assert {label: tuple(box) for label, box in boxes.items()} == {
        label: (x, y, x + 80, y + 80) for label, (x, y) in enumerate(corners)
    }
    assert_boxes_are_in_the_image(image, boxes)


@pytest.mark.parametrize("alpha", [8.0, 0.3])
def test_mixup(alpha):
    """Two channels belong to the first picture, the third to the second: each box is found in its own."""
    outcomes = set()
    for seed in range(30):
        random = np.random.RandomState(seed)
        first, second = draw(random, (0, 1)), draw(random, (2,))
        shapes = first["image"].shape, second["image"].shape
        mixup = {"PPFCOSMixup": {"prob": 1.0, "alpha": alpha, "beta": alpha, "min_weight": 0.2}}
        image, boxes = transformed(seed, [mixup], [first, second])
        assert image.shape == tuple(np.maximum(*shapes))
        for label in range(3):
            weight = image[..., label].max() / 255
            assert (label in boxes) == (weight > 0.2) or abs(weight - 0.2) < 0.01
            outcomes.add(label in boxes)
            if label in boxes:
                np.testing.assert_array_equal(found(image[..., label] > 0), boxes[label])
    assert outcomes == ({True} if alpha > 1 else {True, False})


@pytest.mark.parametrize("name", ["PPFCOSMosaic", "PPFCOSMixup"])
def test_without_mix_images_the_sample_is_unchanged(name):
    arguments = {"prob": 0.0, **({"size": 320} if name == "PPFCOSMosaic" else {})}
    sample = draw(np.random.RandomState(0))
    image, boxes = transformed(0, [{name: arguments}], [dict(sample)])
    np.testing.assert_array_equal(image, sample["image"])
    np.testing.assert_array_equal(list(boxes.values()), sample["gt_bbox"])


STRONG = [
    {"Decode": {}}, {"RandomFlip": {}}, {"PPFCOSMosaic": {"size": 96, "prob": 0.7}},
    {"RandomColorJitter": {}}, {"PPFCOSMixup": {"prob": 0.5}}, {"PPFCOSRandomAffine": {}},
    {"RandomGaussianBlur": {}}, {"PPFCOSCutOut": {}},
    {"Resize": {"target_size": [96, 96], "keep_ratio": False}}, {"Permute": {}},
]  # fmt: skip


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Eight drawn pictures with their annotations in Pascal VOC layout."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(8):
        sample = draw(np.random.RandomState(number))
        height, width = sample["image"].shape[:2]
        cv2.imwrite(str(tmp_path / f"JPEGImages/{number}.png"), sample["image"][..., ::-1])
        objects = "".join(
            f"<object><name>{'abcdef'[label[0]]}</name><difficult>0</difficult>"
            f"<bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for box, label in zip(sample["gt_bbox"].astype(int), sample["gt_class"])
        )
        (tmp_path / f"Annotations/{number}.xml").write_text(
            f"<annotation><filename>{number}.png</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
        )
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(map(str, range(8))))
    return tmp_path


def batches_of(folder: Path, workers: int = 0, world_size: int = 1, epoch: int = 0) -> list:
    """All batches of an epoch with the strong augmentation, each process's part behind the other's."""
    section = {
        "name": "PPFCOSVOCDataSet",
        "dataset_dir": str(folder),
        "image_set": "train",
        "class_names": list("abcdef"),
    }
    cfg = {
        "num_classes": 6, "worker_num": workers, "seed": 3, "TrainDataset": section,
        "TrainReader": {"sample_transforms": STRONG, "total_batch_size": 4},
    }  # fmt: skip
    data, parts = build_dataset(cfg, "TrainDataset"), []
    for rank in range(world_size):
        loader = TrainLoader(cfg, data, world_size, rank)
        loader.set_position(epoch)
        parts.append([part for step in loader for part in step])
    return [batch for together in zip(*parts) for batch in together]


def rows(batches: list, key: str) -> list:
    return [row for batch in batches for row in batch[key].numpy()]


def test_mixed_samples_depend_on_seed_epoch_and_index_alone(pictures):
    reference = batches_of(pictures)
    for others in (batches_of(pictures, workers=2), batches_of(pictures, world_size=2)):
        for key in ("image", "im_shape", "im_id"):
            for one, other in zip(rows(reference, key), rows(others, key)):
                np.testing.assert_array_equal(one, other)
        for one, other in zip(rows(reference, "gt_bbox"), rows(others, "gt_bbox")):
            np.testing.assert_array_equal(one[one.any(axis=1)], other[other.any(axis=1)])
    next_epoch = batches_of(pictures, epoch=1)
    assert (np.array(rows(reference, "image")) != np.array(rows(next_epoch, "image"))).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_mix_images_are_replaced_and_reported(pictures, workers):
    for number in (2, 5):
        path = pictures / f"JPEGImages/{number}.png"
        path.write_bytes(path.read_bytes()[:200])
    batches = batches_of(pictures, workers)
    assert len(rows(batches, "image")) == 8
    reported = [line for batch in batches for line in batch["bad_images"]]
    assert {Path(line.split(": ")[0]).name for line in reported} == {"2.png", "5.png"}
    assert len(reported) > 2, "each as often as it was met, as a partner too"


# Pixels alone -------------------------------------------------------------------------------------

PIXELS = [
    {"RandomColorJitter": {"prob": 1.0}},
    {"RandomDistort": {"brightness": [-32, 32, 0.0], "hue": [-0.1, 0.1, 0.5]}},
    {"AugmentHSV": {"is_bgr": False}},
    {"RandomGrayscale": {"prob": 1.0}},
    {"RandomGaussianBlur": {"prob": 1.0, "sigma": [1.0, 2.0]}},
    {"RandomErasing": {"prob": 1.0}},
    {"RandomErasingImage": {"prob": 1.0}},
]


@pytest.mark.parametrize("operator", PIXELS, ids=name_of)
def test_transforms_of_pixels_only(operator):
    """Behind others, too: PaddleDetection's flip turns the order in memory, its Resize leaves floats."""
    before = [{"RandomFlip": {"prob": 1.1}}, {"Resize": {"target_size": [150, 170], "keep_ratio": False}}]
    for seed in range(3):
        plain, boxes = transformed(seed, before, [draw(np.random.RandomState(seed))])
        image, same_boxes = transformed(seed, [*before, operator], [draw(np.random.RandomState(seed))])
        assert image.shape == plain.shape and (image != plain).any()
        assert boxes.keys() == same_boxes.keys()
        np.testing.assert_array_equal(list(boxes.values()), list(same_boxes.values()))


def test_operators_are_given_8_bits():
    """AugmentHSV takes floats for pixels from 0 to 1: behind Resize, alone, it would ruin them."""
    resize = {"Resize": {"target_size": [150, 170], "keep_ratio": False}}
    plain, _ = transformed(0, [resize], [draw(np.random.RandomState(0))])
    image, _ = transformed(0, [resize, {"AugmentHSV": {"is_bgr": False}}], [draw(np.random.RandomState(0))])
    with global_generators(0):
        expected = ppdet_transform.AugmentHSV(is_bgr=False)({"image": plain.copy()})["image"]
    np.testing.assert_array_equal(image, expected)
    assert (image[(plain == 0).all(axis=2)] == 0).all()


def test_cutout_fills_with_gray_and_keeps_boxes():
    for seed in range(20):
        sample = draw(np.random.RandomState(seed))
        before, boxes_before = sample["image"].copy(), sample["gt_bbox"].copy()
        labels = sample["gt_class"].ravel().tolist()
        image, boxes = transformed(seed, [{"PPFCOSCutOut": {"prob": 1.0, "fill": 7}}], [sample])
        changed = (image != before).any(axis=2)
        assert changed.any() and (image[changed] == 7).all()
        for label, box in zip(labels, boxes_before):
            np.testing.assert_array_equal(boxes.get(label, box), box)


# What PaddleDetection has wrong, and is refused for ------------------------------------------------


def worst_of(name: str, arguments: dict, samples_of=lambda random: draw(random)) -> float:
    """The largest distance in pixels between a box of PaddleDetection's operator and its picture."""
    worst = 0.0
    for seed in range(40):
        with global_generators(seed):
            sample = getattr(ppdet_transform, name)(**arguments)(samples_of(np.random.RandomState(seed)))
        for label, box in zip(sample["gt_class"].ravel().astype(int), sample["gt_bbox"]):
            seen = found(mask_of(np.asarray(sample["image"]), label))
            if seen is not None:
                worst = max(worst, np.abs(seen - box).max())
    return worst


def one_and_empty(random: np.random.RandomState) -> list:
    return [draw(random), *(draw(random, []) for _ in range(4))]


MOSAIC = {"input_dim": [200, 200], "degrees": [0, 0], "translate": [0, 0], "scale": [2, 2], "shear": [0, 0]}


@pytest.mark.parametrize(
    ("name", "arguments", "samples_of", "pixels"),
    [
        ("Mosaic", {**MOSAIC, "enable_mixup": False}, one_and_empty, 2),
        ("RandomShift", {"prob": 1.0, "max_shift": 200}, draw, 50),
        ("AutoAugment", {"autoaug_type": "v1"}, draw, 5),
        ("PadResize", {"target_size": [300, 200]}, draw, 1.2),
    ],
)
def test_refused_operators_whose_boxes_are_wrong(name, arguments, samples_of, pixels):
    assert worst_of(name, arguments, samples_of) > pixels
    assert name in REFUSED_TRANSFORMS


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("RandomScaledCrop", {}),
        ("GridMask", {}),
        ("Lighting", {"eigval": [0.2, 0.1, 0.01], "eigvec": np.eye(3).tolist()}),
    ],
)
def test_refused_operators_that_fail(name, arguments):
    with pytest.raises(TransformError, match=name):
        transformed(0, [{name: arguments}], [draw(np.random.RandomState(0))])
    assert name in REFUSED_TRANSFORMS


def test_cutmix_is_refused_because_it_keeps_covered_boxes():
    lost = 0
    for seed in range(20):
        with global_generators(seed):
            pair = [draw(np.random.RandomState(seed), labels, (200, 200)) for labels in ((0, 1), (2, 3))]
            sample = ppdet_transform.Cutmix()(pair)
        lost += sum(found(mask_of(sample["image"], label)) is None for label in sample["gt_class"].ravel())
    assert lost and "Cutmix" in REFUSED_TRANSFORMS


# Configurations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "operator", "words"),
    [
        ("TrainReader", "PPFCOSMosaik: {size: 64}", "unknown transform .* did you mean 'PPFCOSMosaic'"),
        ("TrainReader", "PPFCOSMosaic: {siz: 64}", r"1.PPFCOSMosaic.siz'; did you mean 'size'"),
        ("TrainReader", "PPFCOSRandomAffine: {degree: [0, 5]}", "did you mean 'degrees'"),
        ("TrainReader", "Mosaic: {}", "use PPFCOSMosaic"),
        ("EvalReader", "PPFCOSMosaic: {size: 64}", "is refused: it mixes .* TrainReader.sample_transforms"),
        (
            "TrainReader",
            "RandomSelect: {transforms1: [PPFCOSMixup: {}], transforms2: []}",
            r"1.RandomSelect.transforms1.0.PPFCOSMixup is refused: it mixes",
        ),
    ],
)
def test_invalid_transforms_in_a_configuration(root, tmp_path, reader, operator, words):
    path = tmp_path / "mine.yml"
    path.write_text(
        f"_BASE_: {root}/configs/fcos_r18_bccd.yml\n"
        f"{reader}:\n  sample_transforms:\n  - Decode: {{}}\n  - {operator}\n  - Permute: {{}}\n"
    )
    with pytest.raises(ConfigError, match=words) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}:5: ")


@pytest.mark.parametrize("name", ["fcos_reader_ms.yml", "fcos_reader_strong.yml"])
def test_the_readers_of_the_repository(root, tmp_path, tinycoco, name):
    """On photographs, with an image without objects among them."""
    path = tmp_path / "mine.yml"
    path.write_text(
        f"_BASE_:\n- {root}/configs/datasets/coco_detection.yml\n- {root}/configs/_base_/{name}\n"
        "architecture: PPFCOS\nworker_num: 0\n"
        f"TrainDataset: {{dataset_dir: {tinycoco}, image_dir: images/train2017, allow_empty: true}}\n"
        "TrainReader: {total_batch_size: 2}\n"
    )
    cfg = load_config(path)
    steps = iter(TrainLoader(cfg, build_dataset(cfg, "TrainDataset")))
    for [batch] in (next(steps) for _ in range(3)):
        sizes = batch["im_shape"].numpy()
        assert sizes.min(axis=1).max() <= 800.5 and sizes.max() <= 1333.5
        boxes = batch["gt_bbox"].numpy()
        assert boxes.min() >= 0 and (boxes[..., 2:] <= sizes[:, None, ::-1]).all()
    assert not batch["bad_images"]


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ({"PPFCOSMosaic": {}}, "missing 1 required positional argument: 'size'"),
        ({"PPFCOSMosaic": {"size": [640, 0]}}, r"size should be \[height, width\]"),
        (
            {"PPFCOSMosaic": {"size": 640, "center": [0.7, 0.3]}},
            r"center should be \[least, most\] from 0 to 1",
        ),
        ({"PPFCOSMixup": {"alpha": -1.0}}, "alpha"),
        ({"PPFCOSMixup": {"prob": "often"}}, "prob should be a number from 0 to 1, and is 'often'"),
        ({"PPFCOSRandomAffine": {"degrees": 10}}, r"degrees should be \[least, most\]"),
        ({"PPFCOSRandomAffine": {"fill": 300}}, "fill should be a whole number from 0 to 255"),
        ({"PPFCOSScaleJitterCrop": {"size": 640, "attempts": 0}}, "attempts should be"),
        ({"PPFCOSCutOut": {"count": [0, 4]}}, "count should be"),
        ({"PPFCOSRandomVerticalFlip": {"prob": 1.5}}, "prob should be"),
    ],
)
def test_invalid_arguments(operator, words):
    reader = {"sample_transforms": [{"Decode": {}}, operator, {"Permute": {}}]}
    with pytest.raises(ConfigError, match=words) as error:
        SampleTransforms(reader, "TrainReader")
    assert next(iter(operator)) in str(error.value)
