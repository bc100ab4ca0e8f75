"""Plain keys and reader keys of a configuration, and the values that they accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

SCHEDULES = ("PiecewiseDecay", "CosineDecay", "LinearWarmup", "ExpWarmup")
VISUALDL = "VisualDL"  # the logger that is not a registered class
DATASET_SECTIONS = ("TrainDataset", "EvalDataset", "TestDataset")
MAX_CLASSES = 50_000
MAX_SIDE = 10_000  # pixels of an image that a transform makes
MAX_COUNT = 10**9


class Kind(NamedTuple):
    """The values that a key accepts: a description that completes "should be ...", and a predicate."""

    description: str
    accepts: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float; bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_pair(value: Any) -> bool:
    """Whether a value is a list of two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def whole(least: int, most: int = MAX_COUNT) -> Kind:
    """A whole number within limits; 2.0 is not one."""
    return Kind(
        f"a whole number from {least} to {most:,}",
        lambda value: is_number(value) and isinstance(value, int) and least <= value <= most,
    )


def number(least: float, most: float, above: bool = False) -> Kind:
    """A finite number within limits; `above` excludes `least`."""
    limits = f"above {least:g} and up to {most:,}" if above else f"from {least:g} to {most:,}"
    return Kind(
        f"a number {limits}",
        lambda value: is_number(value) and (least < value if above else least <= value) and value <= most,
    )


def one_of(*choices: Any) -> Kind:
    """One of the given values, of the same type."""
    return Kind(
        " or ".join(map(str, choices)),
        lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
    )


def either(*kinds: Kind) -> Kind:
    """A value of any of several kinds."""
    return Kind(
        " or ".join(kind.description for kind in kinds),
        lambda value: any(kind.accepts(value) for kind in kinds),
    )


def or_none(kind: Kind) -> Kind:
    """A value of this kind, or null."""
    return either(kind, Kind("null", lambda value: value is None))


def list_of(kind: Kind, least: int = 0, most: int | None = None, increasing: bool = False) -> Kind:
    """A list of `least` to `most` values of one kind."""
    count = f"{least} " if most == least else f"{least} or more " if least else ""
    order = ", each larger than the one before" if increasing else ""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and (most is None or len(value) <= most)
            and all(kind.accepts(item) for item in value)
            and not (increasing and any(second <= first for first, second in zip(value, value[1:])))
        )

    return Kind(f"a list of {count}values, each {kind.description}{order}", accepts)


def _pairs(description: str, accepts: Callable[[Any, Any], bool]) -> Kind:
    pair = Kind("", lambda value: is_pair(value) and accepts(*value))
    return Kind(description, list_of(pair, least=1, most=100).accepts)


def _is_relative_path(value: Any) -> bool:
    """Whether a path stays within the folder that it is joined to, on any system."""
    parts = value.replace("\\", "/").split("/") if isinstance(value, str) else [""]
    return bool(parts[0]) and ".." not in parts and parts[0][1:2] != ":" and parts != ["."]


TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", list_of(TEXT).accepts)
RUN_NAME = Kind(
    "a name, or a path within save_dir: not absolute and without ..",
    lambda value: _is_relative_path(value) and len(value) <= 200,
)
YES_NO = Kind("true or false", lambda value: isinstance(value, bool))
FRACTION = number(0, 1)
LIST = Kind("a list", lambda value: isinstance(value, list))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
SIDE = whole(1, MAX_SIDE)
SIZES = _pairs(
    "a list of at most 100 [shorter side, longest side] in whole pixels, such as [[400, 2000], [800, 2000]]",
    lambda shorter, longest: SIDE.accepts(shorter) and SIDE.accepts(longest) and shorter <= longest,
)
RANGES = _pairs("a list of [from, to], such as [[96, 10000], [0, 256]]", lambda start, end: 0 <= start < end)

# `export` of PaddleDetection's runtime.yml. PPFCOS always exports in this way.
EXPORTED = {"post_process": True, "nms": True, "benchmark": False, "fuse_conv_bn": False}
EXPORT = Kind(
    "a part of {post_process: true, nms: true, benchmark: false, fuse_conv_bn: false}",
    lambda value: isinstance(value, dict) and all(EXPORTED.get(key) is item for key, item in value.items()),
)


class Key(NamedTuple):
    """A key: its meaning, the values that it accepts, and its default (None: the key is absent)."""

    meaning: str
    kind: Kind
    default: Any = None


PLAIN_KEYS_BY_TOPIC = {
    "Model": {
        "architecture": Key("registered class of the model: PPFCOS", TEXT),
        "imports": Key(
            "Python files that register your own classes; relative to this file. They are executed",
            or_none(TEXTS),
        ),
        "num_classes": Key(
            "number of classes without the background; null: the number of classes in the data",
            or_none(whole(1, MAX_CLASSES)),
        ),
        "norm_type": Key("normalization of all parts that have this key", one_of("bn", "sync_bn", "gn")),
        "pretrain_weights": Key(
            "path or URL of the backbone weights that training starts from", or_none(TEXT)
        ),
        "weights": Key("path of the model weights for evaluation, inference and export", or_none(TEXT)),
    },
    "Training": {
        "epoch": Key("number of epochs", whole(1, 100_000), 12),
        "seed": Key("seed of weights, sample order and augmentation", or_none(whole(0, 2**32 - 1))),
        "use_ema": Key("keep an exponential moving average (EMA) of the weights", YES_NO, False),
        "ema_decay": Key("decay of the EMA", FRACTION, 0.9998),
        "ema_decay_type": Key(
            "growth of the decay in the first steps",
            one_of("threshold", "normal", "exponential"),
            "threshold",
        ),
        "cycle_epoch": Key("epochs after which the EMA restarts; -1: never", whole(-1), -1),
        "ema_black_list": Key("names of weights that are copied instead of averaged", or_none(TEXTS)),
        "ema_filter_no_grad": Key("copy frozen weights instead of averaging them", YES_NO, False),
        "amp": Key("train in mixed precision", YES_NO, False),
        "amp_level": Key(
            "O1: convolutions and matrix products in 16 bits; O2: nearly all operators",
            one_of("O1", "O2"),
            "O1",
        ),
        "amp_dtype": Key(
            "16-bit type; auto: bfloat16 if the device supports it, else float16",
            one_of("auto", "float16", "bfloat16"),
            "auto",
        ),
        "custom_white_list": Key("operators in 16 bits, in addition to Paddle's list", or_none(TEXTS)),
        "custom_black_list": Key("operators in float32, in addition to Paddle's list", or_none(TEXTS)),
        "master_weight": Key("accepted for PaddleDetection; the weights are always float32", or_none(YES_NO)),
        "init_loss_scaling": Key("initial loss scale for float16", number(0, 10**12, above=True), 1024),
        "quantization_aware_training": Key(
            "simulate the INT8 network that is exported while training; null: train in float",
            or_none(MAPPING),
        ),
        "to_static": Key("compile the network into a static graph for training", YES_NO, False),
        "lr_batch_size": Key(
            "total_batch_size that LearningRate.base_lr is set for; another batch size scales the rate; "
            "null: no scaling",
            or_none(whole(1, 1_000_000)),
        ),
        "on_nonfinite": Key("action after a loss that is not finite", one_of("stop", "skip"), "stop"),
        "max_nonfinite_steps": Key("largest number of such steps that are skipped", whole(1), 10),
        "max_bad_images": Key(
            "largest number of images that fail to decode before the run stops", whole(0), 100
        ),
    },
    "Device and data loading": {
        "device": Key("auto, cpu, gpu, xpu, npu, mlu or the name of a custom device", TEXT, "auto"),
        **{
            f"use_{device}": Key(f"as in PaddleDetection: the same as device: {device}", YES_NO)
            for device in ("gpu", "xpu", "npu", "mlu")
        },
        "annotation_cache": Key("folder for parsed COCO annotations; null: no cache", or_none(TEXT)),
        "worker_num": Key("data-loading workers of each process", whole(0, 256), 2),
    },
    "Output": {
        "filename": Key("name of the run; default: the name of the configuration file", RUN_NAME),
        "save_dir": Key("checkpoints are written to {save_dir}/{filename}", TEXT, "output"),
        "snapshot_epoch": Key("epochs between two checkpoints and between two evaluations", whole(1), 1),
        "snapshot_minutes": Key(
            "minutes after which a checkpoint is written within an epoch; null: never",
            or_none(number(0, 10**6, above=True)),
            15,
        ),
        "snapshot_steps": Key("steps between two checkpoints within an epoch; null: none", or_none(whole(1))),
        "keep_checkpoints": Key(
            "number of newest end-of-epoch checkpoints that are kept besides the best; null: all",
            or_none(whole(1)),
            5,
        ),
        "log_iter": Key("steps between two log lines", whole(1), 20),
        "loggers": Key("metric loggers: VisualDL, and your own registered classes", or_none(TEXTS)),
        "use_vdl": Key("write a VisualDL log, like loggers: [VisualDL]", YES_NO, False),
        "vdl_log_dir": Key("folder of the VisualDL log", or_none(TEXT)),
        "vdl_images": Key("validation images in the VisualDL log after each evaluation", whole(0, 1000), 4),
        "output_eval": Key("folder for the detections of an evaluation", or_none(TEXT)),
    },
    "Evaluation and export": {
        "metric": Key("metric of the evaluation", one_of("COCO"), "COCO"),
        "coco_eval": Key(
            "no longer used: faster_coco_eval computes the metric",
            one_of("faster_coco_eval", "pycocotools"),
            "faster_coco_eval",
        ),
        "max_detections": Key(
            "detections of an image and class that the evaluation counts (COCO: 100)", whole(11, 100_000), 100
        ),
        "classwise": Key("print the average precision of each class", YES_NO, False),
        "tta": Key("test-time augmentation of `eval` and `infer -c`; null: none", or_none(MAPPING)),
        "export": Key("accepted for PaddleDetection, with the only values that PPFCOS supports", EXPORT),
    },
}
PLAIN_KEYS = {key: plain for topic in PLAIN_KEYS_BY_TOPIC.values() for key, plain in topic.items()}
REQUIRED_KEYS = ("architecture",)

# Plain keys that hold a section.
NESTED_KEYS = {
    "quantization_aware_training": {
        "range_momentum": Key("momentum of the moving average of activation ranges", FRACTION, 0.99),
        "freeze_ranges_after": Key("training steps after which the ranges are frozen", whole(1), 2000),
    },
    "tta": {
        "target_size": Key(
            "sizes of the resized image, one pass each, as [shorter side, longest side]",
            SIZES,
            [[side, 2000] for side in range(400, 1300, 100)],
        ),
        "flip": Key("add a pass with the mirrored image for each size", YES_NO, True),
        "merge": Key("how the boxes of all passes are merged", one_of("nms", "vote"), "nms"),
        "vote_iou": Key("lowest IoU with a kept box at which a box votes for it", FRACTION, 0.66),
        "size_ranges": Key(
            "for each size, the smallest and largest square root of the area of kept boxes, in pixels of "
            "the resized image",
            or_none(RANGES),
        ),
    },
}

_TRANSFORM_KEYS = {
    "sample_transforms": Key("transforms of each image, in order", LIST),
    "batch_transforms": Key("PadBatch and PadGT; PPFCOS pads batches itself", LIST),
}
_BATCH_SIZE = {"batch_size": Key("images per step in each process", whole(1, 10_000), 1)}
READER_KEYS = {
    "TrainReader": {
        **_TRANSFORM_KEYS,
        "total_batch_size": Key("images per step over all processes", whole(1, 100_000)),
        "accumulate_steps": Key(
            "micro-batches into which each process splits its part of a step", whole(1, 100_000), 1
        ),
        "aspect_ratio_grouping": Key("batch portrait and landscape images separately", YES_NO, True),
        "reduced_decoding": Key("no longer used", YES_NO),
        "image_cache": Key("no longer used", or_none(one_of("memory", "disk"))),
        "image_cache_gb": Key("no longer used", number(0, 10**6, above=True)),
        "image_cache_dir": Key("no longer used", or_none(TEXT)),
        "shuffle": Key("shuffle the images in each epoch", YES_NO, True),
        "drop_last": Key("drop the last incomplete batch of an epoch", YES_NO, True),
    },
    "EvalReader": {**_TRANSFORM_KEYS, **_BATCH_SIZE},
    "TestReader": {**_TRANSFORM_KEYS, **_BATCH_SIZE},
}
# Keys of data sets that are not arguments of their class.
OUR_DATASET_KEYS = {"ImageFolder": ("class_names",)}
JOINED_DATASETS = "datasets"
JOINED_DATASET_KEYS = {"weight": number(0, 1000, above=True)}
BATCH_TRANSFORMS = ("PadBatch", "PadGT")

# Sections that only PaddleDetection's FCOS has.
PADDLEDETECTION_SECTIONS = ("FCOS", "FCOSHead", "FCOSFeat", "FCOSLoss")
# Keys of PaddleDetection that have another name here.
MOVED_KEYS = {
    "TrainReader.batch_size": "set TrainReader.total_batch_size, the number over all processes",
    "EvalReader.total_batch_size": "set EvalReader.batch_size, the number in each process",
    "TestReader.total_batch_size": "set TestReader.batch_size, the number in each process",
}
# Operators of PaddleDetection 2.6.0 that are refused; tests/data/test_transforms.py checks their boxes.
_BOXES_FROM_0_TO_1 = "PPFCOS keeps boxes as x0, y0, x1, y1 in pixels: remove it"
_WRITES_IMAGES = "it writes images into any folder: remove it, and draw batches with `ppfcos show-batch`"
REFUSED_TRANSFORMS = {
    "DecodeCache": "it unpickles files, which can run code: use Decode",
    "DebugVisibleImage": _WRITES_IMAGES,
    "VisibleRBox": _WRITES_IMAGES,
    "NormalizeImage": "PPFCOS normalizes on the device by PPFCOS.image_mean and image_std: remove it",
    "Gt2FCOSTarget": "PPFCOS assigns targets on the device with PPFCOSTargets: remove it",
    "Mosaic": "its boxes are up to 2 pixels off: use PPFCOSMosaic",
    "Mixup": "it writes a weight of each box to gt_score, which FCOS does not use: use PPFCOSMixup",
    "Cutmix": "it keeps the boxes of removed objects: use PPFCOSMosaic",
    "RandomScaledCrop": "it fails on every image: use PPFCOSScaleJitterCrop",
    "RandomShift": "it can move the boxes without the image: use PPFCOSRandomAffine",
    "AutoAugment": "its boxes do not move with the image: use PPFCOSRandomAffine and RandomColorJitter",
    "PadResize": "its boxes are more than a pixel off: use Resize; PPFCOS pads the batch",
    "GridMask": "it needs the number of the step, which readers do not know: use PPFCOSCutOut",
    "Lighting": "it needs normalized pixels, and PPFCOS normalizes on the device: use RandomColorJitter",
    "CropWithSampling": _BOXES_FROM_0_TO_1,
    "CropWithDataAchorSampling": _BOXES_FROM_0_TO_1,
    "NormalizeBox": _BOXES_FROM_0_TO_1,
    "Norm2PixelBbox": _BOXES_FROM_0_TO_1,
    "BboxXYXY2XYWH": _BOXES_FROM_0_TO_1,
    "BboxCXCYWH2XYXY": _BOXES_FROM_0_TO_1,
}
REFUSED_DATASETS = {
    "MOTImageFolder": "it passes video_file to a shell: extract the frames and use ImageFolder",
}
