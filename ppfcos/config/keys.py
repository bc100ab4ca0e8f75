"""The keys of a configuration that are no constructor's arguments, and what their values may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

SCHEDULES = ("PiecewiseDecay", "CosineDecay", "LinearWarmup", "ExpWarmup")
VISUALDL = "VisualDL"  # the logger that is not a registered class
DATASET_SECTIONS = ("TrainDataset", "EvalDataset", "TestDataset")


class Kind(NamedTuple):
    """What a value may be: a description that completes "should be …", and the check itself."""

    description: str
    accepts: Callable[[Any], bool]


MOST = 10**9  # of what is only counted


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none, though Python counts with them."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(least: int, most: int = MOST) -> Kind:
    """A whole number; 2.0 is none."""
    return Kind(
        f"a whole number from {least} to {most:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def number(least: float, most: float, above: bool = False) -> Kind:
    """A finite number within limits; with `above`, `least` itself is outside."""
    limits = f"above {least:g} and up to {most:,}" if above else f"from {least:g} to {most:,}"
    return Kind(
        f"a number {limits}",
        lambda value: is_number(value) and (least < value if above else least <= value) and value <= most,
    )


def one_of(*choices: Any) -> Kind:
    """One of the given values."""
    return Kind(
        " or ".join(map(str, choices)),
        lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
    )


def or_none(kind: Kind) -> Kind:
    """The same, or null."""
    return either(kind, Kind("null", lambda value: value is None))


def either(*kinds: Kind) -> Kind:
    """One of several kinds."""
    return Kind(
        " or ".join(kind.description for kind in kinds),
        lambda value: any(kind.accepts(value) for kind in kinds),
    )


def list_of(kind: Kind, least: int = 0, most: int | None = None, increasing: bool = False) -> Kind:
    """A list of values of one kind, `least` to `most` of them."""
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


def _stays_inside(value: Any) -> bool:
    """Whether a path leads into the folder that it is joined to, on any system."""
    parts = value.replace("\\", "/").split("/") if isinstance(value, str) else [""]
    return bool(parts[0]) and ".." not in parts and parts[0][1:2] != ":" and parts != ["."]


TEXT = Kind("text (a number in quotes)", lambda value: isinstance(value, str))
RUN_NAME = Kind(
    "a name (a number in quotes), or a path within save_dir: not absolute and without ..",
    lambda value: _stays_inside(value) and len(value) <= 200,
)
YES_NO = Kind("true or false", lambda value: isinstance(value, bool))
FRACTION = Kind("a number from 0 to 1", number(0, 1).accepts)
TEXTS = Kind("a list of texts", list_of(TEXT).accepts)


def _pairs(description: str, accepts: Callable[[Any, Any], bool]) -> Kind:
    two = Kind("", lambda pair: is_pair(pair) and accepts(*pair))
    return Kind(description, list_of(two, least=1, most=100).accepts)


def is_pair(value: Any) -> bool:
    """Whether a value is a list of two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


MOST_CLASSES = 50_000
LONGEST_SIDE = 10_000  # pixels, of an image that a transform makes
_SIDE = whole(1, LONGEST_SIDE)
SIZES = _pairs(
    "a list of at most 100 [shorter side, longest side] in whole pixels, such as [[400, 2000], [800, 2000]]",
    lambda shorter, longest: _SIDE.accepts(shorter) and _SIDE.accepts(longest) and shorter <= longest,
)
RANGES = _pairs("a list of [from, to], such as [[96, 10000], [0, 256]]", lambda start, end: 0 <= start < end)
LIST = Kind("a list", lambda value: isinstance(value, list))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))


# The one way in which PPFCOS exports, in PaddleDetection's words, for files that hold its runtime.yml.
EXPORTED = {"post_process": True, "nms": True, "benchmark": False, "fuse_conv_bn": False}
EXPORT = Kind(
    "no more than {post_process: true, nms: true, benchmark: false, fuse_conv_bn: false}, PPFCOS's only way",
    lambda value: isinstance(value, dict) and all(EXPORTED.get(key) is item for key, item in value.items()),
)


class PlainKey(NamedTuple):
    """A key that stands alone: its meaning, what it may be, its value if no file sets it (None: absent)."""

    meaning: str
    kind: Kind
    default: Any = None


PLAIN_KEYS_BY_TOPIC = {
    "What is trained": {
        "architecture": PlainKey("the registered class that is the model", TEXT),
        "imports": PlainKey(
            "Python files of your own that register classes, relative to this file; they are run",
            or_none(TEXTS),
        ),
        "num_classes": PlainKey(
            "the number of object classes, background not counted; null: as many as the data has",
            or_none(whole(1, MOST_CLASSES)),
        ),
        "norm_type": PlainKey(
            "the normalisation of the parts that share this key", one_of("bn", "sync_bn", "gn")
        ),
        "pretrain_weights": PlainKey("path or address of backbone weights to start from", or_none(TEXT)),
        "weights": PlainKey("path of the model's weights to evaluate, infer with or export", or_none(TEXT)),
    },
    "How it is trained": {
        "epoch": PlainKey("the number of epochs", whole(1, 100_000), 12),
        "seed": PlainKey("the seed of weights, order and augmentation", or_none(whole(0, 2**32 - 1))),
        "use_ema": PlainKey("keep an exponential moving average of the weights", YES_NO, False),
        "ema_decay": PlainKey("the decay of that average", FRACTION, 0.9998),
        "ema_decay_type": PlainKey(
            "how the decay grows to that value", one_of("threshold", "normal", "exponential"), "threshold"
        ),
        "cycle_epoch": PlainKey("epochs after which the average starts afresh; -1: never", whole(-1), -1),
        "ema_black_list": PlainKey("names of weights that are copied, not averaged", or_none(TEXTS)),
        "ema_filter_no_grad": PlainKey("copy, not average, weights that are not trained", YES_NO, False),
        "amp": PlainKey("train in mixed precision", YES_NO, False),
        "amp_level": PlainKey("O1: operators that gain from it; O2: nearly all", one_of("O1", "O2"), "O1"),
        "amp_dtype": PlainKey(
            "its 16 bits; auto: bfloat16 where the device has it",
            one_of("auto", "float16", "bfloat16"),
            "auto",
        ),
        "custom_white_list": PlainKey(
            "operators that compute in 16 bits besides Paddle's list", or_none(TEXTS)
        ),
        "custom_black_list": PlainKey("operators that do not, besides Paddle's list", or_none(TEXTS)),
        "master_weight": PlainKey("keep float32 weights, as PPFCOS always does", or_none(YES_NO)),
        "init_loss_scaling": PlainKey(
            "the first factor of float16's loss", number(0, 10**12, above=True), 1024
        ),
        "quantization_aware_training": PlainKey(
            "train in the eight bits of the INT8 network that is exported; null: in float", or_none(MAPPING)
        ),
        "to_static": PlainKey("compile the network into a static graph for training", YES_NO, False),
        "lr_batch_size": PlainKey(
            "the total_batch_size that LearningRate.base_lr is meant for; another one scales it; null: never",
            or_none(whole(1, 1_000_000)),
        ),
        "on_nonfinite": PlainKey(
            "what to do about a step whose loss is not finite", one_of("stop", "skip"), "stop"
        ),
        "max_nonfinite_steps": PlainKey("how many such steps may be skipped", whole(1), 10),
        "max_bad_images": PlainKey("images that may fail to decode before the run stops", whole(0), 100),
    },
    "Where it runs": {
        "device": PlainKey("auto, cpu, gpu, xpu, npu, mlu or the name of a custom device", TEXT, "auto"),
        "use_gpu": PlainKey("PaddleDetection's way to say device: gpu or cpu", YES_NO),
        "use_xpu": PlainKey("PaddleDetection's way to say device: xpu", YES_NO),
        "use_npu": PlainKey("PaddleDetection's way to say device: npu", YES_NO),
        "use_mlu": PlainKey("PaddleDetection's way to say device: mlu", YES_NO),
        "annotation_cache": PlainKey(
            "folder where parsed COCO annotations are kept; null: nowhere", or_none(TEXT)
        ),
        "worker_num": PlainKey("processes that read images, in each training process", whole(0, 256), 2),
    },
    "What is written and printed": {
        "filename": PlainKey("the run's name; the configuration file's, unless set", RUN_NAME),
        "save_dir": PlainKey("checkpoints go to {save_dir}/{filename}", TEXT, "output"),
        "snapshot_epoch": PlainKey("epochs between two checkpoints and evaluations", whole(1), 1),
        "snapshot_minutes": PlainKey(
            "minutes after which a checkpoint is written within an epoch, too; null: never",
            or_none(number(0, 10**6, above=True)),
            15,
        ),
        "snapshot_steps": PlainKey(
            "steps between two checkpoints within an epoch; null: none", or_none(whole(1))
        ),
        "keep_checkpoints": PlainKey(
            "how many checkpoints of ends of epochs stay, besides the best; null: all", or_none(whole(1)), 5
        ),
        "log_iter": PlainKey("steps between two lines of the log", whole(1), 20),
        "loggers": PlainKey("metric loggers: VisualDL, and registered classes of your own", or_none(TEXTS)),
        "use_vdl": PlainKey("write a VisualDL log, as loggers: [VisualDL]", YES_NO, False),
        "vdl_log_dir": PlainKey("where the VisualDL log goes", or_none(TEXT)),
        "vdl_images": PlainKey("validation images that it shows after each evaluation", whole(0, 1000), 4),
        "output_eval": PlainKey("folder for the detections of an evaluation", or_none(TEXT)),
    },
    "How it is evaluated and exported": {
        "metric": PlainKey("the metric of the evaluation", one_of("COCO"), "COCO"),
        "coco_eval": PlainKey(
            "what computes it", one_of("faster_coco_eval", "pycocotools"), "faster_coco_eval"
        ),
        "max_detections": PlainKey(
            "detections per image and class that the evaluation counts (COCO: 100)", whole(11, 100_000), 100
        ),
        "classwise": PlainKey("print the average precision of each class", YES_NO, False),
        "tta": PlainKey(
            "multi-scale and flip testing, by tools/eval.py and by tools/infer.py -c; null: none",
            or_none(MAPPING),
        ),
        "export": PlainKey("what PaddleDetection may leave out of the exported program", EXPORT),
    },
}
PLAIN_KEYS = {key: plain for topic in PLAIN_KEYS_BY_TOPIC.values() for key, plain in topic.items()}
REQUIRED_KEYS = ("architecture",)

# Plain keys that hold keys of their own.
NESTED_KEYS = {
    "quantization_aware_training": {
        "range_momentum": PlainKey("share of the activations' ranges that a step keeps", FRACTION, 0.99),
        "freeze_ranges_after": PlainKey(
            "training steps after which they stay as they are; the weights learn on", whole(1), 2000
        ),
    },
    "tta": {
        "target_size": PlainKey(
            "sizes in which each image is looked at, as Resize takes them",
            SIZES,
            [[side, 2000] for side in range(400, 1300, 100)],
        ),
        "flip": PlainKey("in each of them mirrored, too", YES_NO, True),
        "merge": PlainKey("how the boxes of all passes become one answer", one_of("nms", "vote"), "nms"),
        "vote_iou": PlainKey("IoU with a kept box from which another one has a vote", FRACTION, 0.66),
        "size_ranges": PlainKey(
            "for each size, the least and the largest root of a box's area, in pixels of the resized image",
            or_none(RANGES),
        ),
    },
}

_TRANSFORM_KEYS = {
    "sample_transforms": PlainKey(
        "PaddleDetection's operators and ours, applied to each image in order", LIST
    ),
    "batch_transforms": PlainKey("PadBatch and PadGT, which our batching carries out", LIST),
}
READER_KEYS = {
    "TrainReader": {
        **_TRANSFORM_KEYS,
        "total_batch_size": PlainKey("images a step, over all processes", whole(1, 100_000)),
        "accumulate_steps": PlainKey(
            "parts in which each process takes its share of them, one after the other", whole(1, 100_000), 1
        ),
        "aspect_ratio_grouping": PlainKey("upright and wide images in batches of their own", YES_NO, True),
        "reduced_decoding": PlainKey("no longer used", YES_NO),
        "image_cache": PlainKey("no longer used", or_none(one_of("memory", "disk"))),
        "image_cache_gb": PlainKey("no longer used", number(0, 10**6, above=True)),
        "image_cache_dir": PlainKey("no longer used", or_none(TEXT)),
        "shuffle": PlainKey("another order in each epoch", YES_NO, True),
        "drop_last": PlainKey("leave out what does not fill a batch at the end of an epoch", YES_NO, True),
    },
    "EvalReader": {
        **_TRANSFORM_KEYS,
        "batch_size": PlainKey("images a step in each process", whole(1, 10_000), 1),
    },
    "TestReader": {
        **_TRANSFORM_KEYS,
        "batch_size": PlainKey("images a step in each process", whole(1, 10_000), 1),
    },
}
# What ppfcos.data understands of a data set besides the arguments of its class.
OUR_DATASET_KEYS = {"ImageFolder": ("class_names",)}
# What it understands of each data set in a list of them, the `datasets` of PPFCOSJoinedDataSet.
JOINED_DATASETS = "datasets"
JOINED_DATASET_KEYS = {"weight": number(0, 1000, above=True)}
BATCH_TRANSFORMS = ("PadBatch", "PadGT")

# Sections that tell a configuration of PaddleDetection's FCOS.
PADDLEDETECTION_SECTIONS = ("FCOS", "FCOSHead", "FCOSFeat", "FCOSLoss")
# Keys and operators that PaddleDetection knows and that have another place here.
MOVED_KEYS = {
    "TrainReader.batch_size": "PPFCOS counts over all processes: set TrainReader.total_batch_size",
    "EvalReader.total_batch_size": "the evaluation counts in each process: set EvalReader.batch_size",
    "TestReader.total_batch_size": "inference counts in each process: set TestReader.batch_size",
}
# What PaddleDetection 2.6.0's operators do to drawn boxes (tests/data/test_transforms.py).
_BOXES_FROM_0_TO_1 = "boxes stay x0, y0, x1, y1 in pixels here: remove it"
REFUSED_TRANSFORMS = {
    "NormalizeImage": "PPFCOS normalises on the device, by PPFCOS.image_mean and PPFCOS.image_std: remove it",
    "Gt2FCOSTarget": "PPFCOS makes its targets on the device, by PPFCOSTargets: remove it",
    "Mosaic": "its boxes lie up to 2 pixels beside the objects: use PPFCOSMosaic",
    "Mixup": "it leaves each box's weight to a gt_score that FCOS does not know: use PPFCOSMixup, made of it",
    "Cutmix": "it keeps the boxes of what it has cut away: use PPFCOSMosaic",
    "RandomScaledCrop": "it fails on every image: use PPFCOSScaleJitterCrop",
    "RandomShift": "it may move the boxes and not the picture: use PPFCOSRandomAffine",
    "AutoAugment": "its boxes do not follow the picture: use PPFCOSRandomAffine and RandomColorJitter",
    "PadResize": "its boxes lie more than a pixel beside the objects: use Resize; the batch pads",
    "GridMask": "it wants the number of the step, which no reader knows: use PPFCOSCutOut",
    "Lighting": "it is for normalised pixels, and PPFCOS normalises on the device: use RandomColorJitter",
    "CropWithSampling": _BOXES_FROM_0_TO_1,
    "CropWithDataAchorSampling": _BOXES_FROM_0_TO_1,
    "NormalizeBox": _BOXES_FROM_0_TO_1,
    "Norm2PixelBbox": _BOXES_FROM_0_TO_1,
    "BboxXYXY2XYWH": _BOXES_FROM_0_TO_1,
    "BboxCXCYWH2XYXY": _BOXES_FROM_0_TO_1,
}
