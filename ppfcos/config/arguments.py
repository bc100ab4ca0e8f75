"""Values that the arguments of registered classes accept, PaddleDetection's and ours.

An argument that is not in these tables accepts values of the type of its default.
"""

from __future__ import annotations

from typing import Any

from ppfcos.config.keys import (
    FRACTION,
    LIST,
    MAX_CLASSES,
    SIDE,
    TEXT,
    TEXTS,
    YES_NO,
    Kind,
    either,
    is_number,
    is_pair,
    list_of,
    number,
    one_of,
    or_none,
    whole,
)
from ppfcos.resizing import ROUNDINGS

PART = Kind(
    "the name of a registered class, or a mapping with its `name`",
    lambda value: isinstance(value, (str, dict)),
)
NO = Kind("false", lambda value: value is False)
BATCH_NORM = one_of("bn", "sync_bn")
CHANNELS = whole(1, 1024)
CONVS = whole(0, 32)
EXTRA_LEVELS = whole(0, 6)
STAGES = list_of(whole(0, 3), least=1, increasing=True)  # C2 to C5
WEIGHT = number(0, 10**6)
TOP_K = either(one_of(-1), whole(1, 100_000))
DECAY = number(0, 1000)

SIZE = either(SIDE, list_of(SIDE, least=2, most=2))  # one number for both sides, or two
INTERPOLATION = whole(0, 6)  # of OpenCV
RANGE = Kind(
    "a list of two numbers, the smaller first", lambda value: is_pair(value) and value[0] <= value[1]
)
RESIZE = {"target_size": SIZE, "keep_ratio": YES_NO, "interp": INTERPOLATION, "rounding": one_of(*ROUNDINGS)}

ARGUMENTS: dict[str, dict[str, Kind]] = {
    "PPFCOS": {
        **dict.fromkeys(("backbone", "neck", "head", "targets", "loss", "decode"), PART),
        "image_mean": list_of(number(-1000, 1000), least=3, most=3),
        "image_std": list_of(number(1e-6, 1000), least=3, most=3),
        "locations": one_of("centers", "anchors"),
    },
    "PPFCOSFPN": {
        "out_channels": CHANNELS,
        "extra_levels": EXTRA_LEVELS,
        "extra_source": one_of("p5", "c5"),
    },
    "PPFCOSBiFPN": {
        "out_channels": CHANNELS,
        "num_layers": whole(1, 32),
        "extra_levels": EXTRA_LEVELS,
        "fusion": one_of("fast", "sum"),
        "norm_type": BATCH_NORM,
    },
    "PPFCOSHRFPN": {"out_channels": CHANNELS, "num_levels": whole(1, 7)},
    "PPFCOSHead": {
        "num_classes": whole(1, MAX_CLASSES),
        "num_convs": CONVS,
        "norm_type": one_of("gn", "bn", "sync_bn", "none"),
        "deformable_convs": CONVS,
        "prior_prob": number(1e-9, 1 - 1e-9),
        "centerness_on": one_of("box", "class", "none"),
        "distance": one_of("relu", "exp"),
        "norm_per_level": YES_NO,
        "num_share_convs": CONVS,
        "separable": YES_NO,
    },
    "PPFCOSTargets": {
        "size_ranges": list_of(number(0, 10**6, above=True), increasing=True),
        "center_sampling_radius": number(-1000, 1000),
        "chunk_elements": whole(1, 2**31),
        "ignore_crowd": YES_NO,
    },
    "PPFCOSLoss": {
        "focal_alpha": FRACTION,
        "focal_gamma": number(0, 100),
        "box_loss": one_of("giou", "linear_iou", "iou"),
        "iou_smoothing": number(0, 1000),
        "quality": one_of("centerness", "iou"),
        "class_weight": WEIGHT,
        "box_weight": WEIGHT,
        "quality_weight": WEIGHT,
    },
    "PPFCOSDecode": {
        "pre_nms_top_k": whole(1, 100_000),
        "score_threshold": FRACTION,
        "nms_threshold": FRACTION,
        "keep_top_k": TOP_K,
        "sqrt_score": YES_NO,
        "class_threshold": FRACTION,
        "rank_by": one_of("score", "class"),
        "class_top_k": TOP_K,
        "clip": one_of("before", "after", "never"),
        "inclusive": YES_NO,
    },
    "PPFCOSMobileNetV2": {
        "scale": number(0.05, 10),
        "norm_type": BATCH_NORM,
        "freeze_norm": YES_NO,
        "freeze_at": whole(-1, 3),
        "return_idx": STAGES,
    },
    "PPFCOSEfficientNet": {
        "scale": one_of("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"),
        "activation": one_of("swish", "relu", "relu6"),
        "squeeze_excitation": YES_NO,
        "norm_type": BATCH_NORM,
    },
    "PPFCOSDLA": {
        "depth": one_of(34),
        "norm_type": BATCH_NORM,
        "return_idx": list_of(whole(0, 5), least=1, increasing=True),
    },
    "ResNet": {
        "depth": one_of(18, 34, 50, 101, 152),
        "ch_in": whole(1, 1024),
        "variant": one_of("a", "b", "c", "d"),
        "lr_mult_list": list_of(number(0, 1000), least=4, most=4),
        "groups": whole(1, 1024),
        "base_width": whole(1, 1024),
        "norm_type": one_of("bn", "sync_bn", "affine_channel"),
        "norm_decay": number(0, 1),
        "freeze_norm": YES_NO,
        "freeze_at": whole(-1, 3),
        "return_idx": either(whole(0, 3), STAGES),
        "dcn_v2_stages": either(whole(-1, 3), list_of(whole(-1, 3), least=1, most=4)),
        "num_stages": whole(1, 4),
        "std_senet": YES_NO,
    },
    "HRNet": {
        "width": one_of(18, 30, 32, 40, 44, 48, 60, 64),
        "has_se": YES_NO,
        "freeze_at": whole(-1, 3),
        "freeze_norm": YES_NO,
        "norm_momentum": FRACTION,
        "norm_decay": number(0, 1),
        "return_idx": STAGES,
        "upsample": NO,  # with upsample or downsample, HRNet returns no list of feature maps
        "downsample": NO,
    },
    "LearningRate": {"base_lr": number(0, 1000, above=True), "schedulers": LIST},
    "OptimizerBuilder": {
        "clip_grad_by_norm": or_none(number(0, 10**9, above=True)),
        "clip_grad_by_value": or_none(number(0, 10**9, above=True)),
    },
}

_EPOCHS = whole(1, 100_000)
SCHEDULE_ARGUMENTS: dict[str, dict[str, Kind]] = {
    "PiecewiseDecay": {
        "gamma": either(number(0, 1000), list_of(number(0, 1000))),
        "milestones": list_of(number(0, 100_000, above=True), increasing=True),
        "values": or_none(list_of(number(0, 1000), least=1)),
        "use_warmup": YES_NO,
    },
    "CosineDecay": {
        "max_epochs": _EPOCHS,
        "use_warmup": YES_NO,
        "min_lr_ratio": FRACTION,
        "last_plateau_epochs": whole(0, 100_000),
    },
    "LinearWarmup": {
        "steps": whole(0, 1_000_000),
        "start_factor": FRACTION,
        "epochs": or_none(whole(0, 1000)),
    },
    "ExpWarmup": {"steps": whole(0, 1_000_000), "power": number(0, 100), "epochs": or_none(whole(0, 1000))},
}

# PaddleDetection passes these to eval(), so only the names that it is written for are accepted.
EVALUATED_ARGUMENTS = {
    "act_fn": one_of("gelu", "ReLU"),
    "block_fn": one_of("BasicBlock"),
    "model_name": one_of("ResNet50", "ResNet101", "large", "small"),
    "norm_layer": one_of("nn.LayerNorm"),
    "set_param_lr_func": one_of("layerwise_lr_decay"),
    "stage_fn": one_of("CSPStage"),
}

# Arguments of every optimizer, and of its groups of weights.
OPTIMIZER_ARGUMENTS: dict[str, Kind] = {
    **EVALUATED_ARGUMENTS,
    **dict.fromkeys(("momentum", "beta1", "beta2", "rho", "momentum_decay"), FRACTION),
    "epsilon": number(0, 1),
    "learning_rate": number(0, 1000),
    **dict.fromkeys(("weight_decay", "lamb_weight_decay"), DECAY),
    "layerwise_decay": number(0, 1, above=True),
    "n_layers": whole(1, 1000),
    "use_nesterov": YES_NO,
    **dict.fromkeys(("params", "skip_decay_names", "set_param_lr_params"), or_none(TEXTS)),
}

# Arguments of every data set.
DATASET_ARGUMENTS: dict[str, Kind] = {
    **dict.fromkeys(
        ("dataset_dir", "image_dir", "anno_path", "anno_dir", "image_set", "label_dir", "label_list"),
        or_none(TEXT),
    ),
    **dict.fromkeys(("allow_empty", "load_crowd"), YES_NO),
    "use_default_label": or_none(YES_NO),
    "class_names": or_none(TEXTS),
    "data_fields": TEXTS,
    "sample_num": whole(-1),
    "empty_ratio": number(-1, 1000),
    "repeat": whole(1, 1000),
}

_MANY_SIZES = list_of(SIZE, least=1, most=1000)
OPERATOR_ARGUMENTS: dict[str, dict[str, Kind]] = {
    "PadBatch": {
        "pad_to_stride": Kind(
            "a whole multiple of 32 up to 8192",
            lambda value: whole(32, 8192).accepts(value) and value % 32 == 0,
        )
    },
    "Resize": RESIZE,
    "RandomResize": {
        **RESIZE,
        "target_size": either(SIZE, _MANY_SIZES),
        **dict.fromkeys(("random_range", "random_size", "random_interp"), YES_NO),
    },
    "RandomFlip": {"prob": FRACTION},
    "RandomColorJitter": {
        "prob": FRACTION,
        "hue": number(0, 0.5),
        **dict.fromkeys(("brightness", "contrast", "saturation"), number(0, 100)),
    },
    "RandomGaussianBlur": {"prob": FRACTION},
    "RandomSelect": {"p": FRACTION, "transforms1": LIST, "transforms2": LIST},
    "RandomExpand": {"ratio": number(1.01, 10, above=True), "prob": FRACTION},
    "RandomCrop": {
        "aspect_ratio": RANGE,
        "thresholds": list_of(FRACTION, least=1),
        "scaling": RANGE,
        "num_attempts": whole(1, 1000),
        "allow_no_crop": YES_NO,
        "cover_all_box": YES_NO,
        "is_mask_crop": YES_NO,
    },
    "RandomDistort": {
        **dict.fromkeys(
            ("hue", "saturation", "contrast", "brightness"), list_of(number(-1000, 1000), least=3, most=3)
        ),
        "count": whole(0, 100),
        "random_apply": YES_NO,
        "random_channel": YES_NO,
        "prob": FRACTION,
    },
    "RandomErasingImage": {"prob": FRACTION, "lower": FRACTION, "higher": FRACTION},
    "RandomSizeCrop": {"min_size": SIDE, "max_size": SIDE},
    "PPFCOSMixup": dict.fromkeys(("alpha", "beta"), number(0, 10**6, above=True)),
}


def kind_of_default(default: Any) -> Kind:
    """The values that an argument accepts if only its default is known."""
    if isinstance(default, bool):
        return YES_NO
    if is_number(default):
        numbers = number(-(10**9), 10**9)
        return either(numbers, list_of(numbers), or_none(numbers))
    if isinstance(default, str):  # a name may also be null or a mapping
        return Kind("text or null", lambda value: value is None or isinstance(value, (str, dict, list)))
    return Kind("any value", lambda value: value == value)  # except NaN
