"""Rewrites a configuration of PaddleDetection's FCOS (configs/fcos) into one of PPFCOS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppfcos.config.files import read_file
from ppfcos.config.keys import (
    BATCH_TRANSFORMS,
    DATASET_SECTIONS,
    OUR_DATASET_KEYS,
    PLAIN_KEYS,
    READER_KEYS,
    REFUSED_TRANSFORMS,
    SCHEDULES,
)
from ppfcos.config.show import config_text, resolved_config
from ppfcos.config.workspace import read_checked, registered_modules
from ppfcos.convert.rules import set_rounding
from ppfcos.errors import ConfigError
from ppfcos.fileio import replacing

CONVERTED = ("FCOS", "FPN", "FCOSHead", "FCOSFeat", "FCOSLoss", "MultiClassNMS")
STRIDES = [8, 16, 32, 64, 128]
# Keys of PaddleDetection without a counterpart, and the reason.
LEFT_OUT = {
    "metric": "PPFCOS evaluates all data sets with COCO's metric",
    "map_type": "PPFCOS evaluates all data sets with COCO's metric",
    "weights": "PPFCOS reads no checkpoint of PaddleDetection: run `ppfcos convert-weights`",
    "print_flops": "a training prints parameters and multiply-adds in any case",
    "print_params": "a training prints parameters and multiply-adds in any case",
    "use_shared_memory": "workers always use shared memory",
    "collate_batch": "batches are always collated",
    "fuse_normalize": "images are always normalized on the device",
    "inputs_def": "set the input size of a bundle with `ppfcos export --fixed_size`",
    "pretrained": "set pretrain_weights",
}
ALWAYS_EXPORTED = {"post_process": True, "nms": True, "benchmark": False, "fuse_conv_bn": False}


def convert_config(source: Path, target: Path, devices: int = 1) -> tuple[list[str], list[str]]:
    """Convert a configuration with its base files into one file.

    Args:
        source: a configuration of PaddleDetection.
        target: the file to write.
        devices: number of devices of a training with the source, whose batch size counts on each of them.

    Returns:
        One line for each change, and one line for each key of the result that is still wrong.

    Raises:
        ConfigError: the source cannot be read, or is not a configuration of FCOS.
        OutputError: the target cannot be written.
    """
    modules, datasets = registered_modules()
    theirs = read_file(str(source), (*SCHEDULES, *datasets))
    if theirs.get("architecture") != "FCOS":
        found = theirs.get("architecture")
        raise ConfigError(f"{source}: architecture is {found}: only PaddleDetection's FCOS is converted")
    conversion = _Conversion(theirs, modules, devices)
    config = conversion.convert()
    head = f"# Converted from {source.name} of PaddleDetection by `ppfcos convert-config`.\n"
    with replacing(target) as unfinished:
        unfinished.write_text(head + config_text(resolved_config(config)), encoding="utf-8")
    try:
        read_checked(str(target), ())
    except ConfigError as error:
        return conversion.changes, list(error.messages)
    return conversion.changes, []


class _Conversion:
    """One configuration.

    Args:
        theirs: the configuration, merged over its base files.
        modules: SchemaDict of every registered class, by name.
        devices: number of devices.
    """

    def __init__(self, theirs: Mapping[str, Any], modules: Mapping[str, Any], devices: int) -> None:
        self._theirs, self._modules, self._devices = theirs, modules, devices
        self.changes: list[str] = []

    def convert(self) -> dict[str, Any]:
        """The configuration of PPFCOS."""
        parts = self._part("FCOS", "FCOS")
        head = self._part("FCOSHead", parts["fcos_head"])
        ours = {
            "architecture": "PPFCOS",
            "PPFCOS": {"backbone": parts["backbone"], "neck": "PPFCOSFPN", "head": "PPFCOSHead"},
            "PPFCOSFPN": self._neck(self._part("FPN", parts["neck"])),
            "PPFCOSHead": self._head(head, self._part("FCOSFeat", head["fcos_feat"])),
            "PPFCOSLoss": self._loss(self._part("FCOSLoss", head["fcos_loss"])),
            "PPFCOSDecode": self._decode(self._part("MultiClassNMS", head["nms"])),
        }
        self._say("architecture, FCOS", "architecture: PPFCOS and its sections")
        for key, value in self._theirs.items():
            if key in READER_KEYS:
                ours[key] = self._reader(key, value or {}, ours)
            elif key in DATASET_SECTIONS:
                ours[key] = self._dataset(key, value or {})
            elif key in PLAIN_KEYS and key not in LEFT_OUT and key not in ("architecture", "export"):
                ours[key] = value
            elif key in self._modules and key not in CONVERTED:
                ours[key] = {
                    name: each for name, each in (value or {}).items() if self._is_kept(f"{key}.{name}", name)
                }
            elif key == "export" and {**ALWAYS_EXPORTED, **(value or {})} == ALWAYS_EXPORTED:
                self._drop(key, "PPFCOS always exports post-processing and NMS")
            elif key not in CONVERTED and (key, value) not in (("architecture", "FCOS"), ("metric", "COCO")):
                self._drop(key, LEFT_OUT.get(key, "PPFCOS has no such key"))
        return ours

    def _say(self, theirs: str, ours: str) -> None:
        self.changes.append(f"{theirs} -> {ours}")

    def _drop(self, key: str, reason: str) -> None:
        self.changes.append(f"{key} left out: {reason}")

    def _is_kept(self, path: str, name: str) -> bool:
        if name in LEFT_OUT:
            self._drop(path, LEFT_OUT[name])
        return name not in LEFT_OUT

    def _part(self, kind: str, value: Any) -> dict[str, Any]:
        """All arguments of a class, with PaddleDetection's defaults: its section, or what is in its place."""
        in_place = value if isinstance(value, Mapping) else {}
        name = in_place.get("name", kind if isinstance(value, Mapping) else value)
        if name != kind:
            raise ConfigError(f"{name} cannot be converted: PPFCOS has a counterpart of {kind} only")
        schema = self._modules[kind].schema
        defaults = {key: getattr(each, "default", None) for key, each in schema.items()}
        return {**defaults, **(self._theirs.get(kind) or {}), **in_place}

    def _require(self, part: Mapping[str, Any], path: str, key: str, value: Any) -> None:
        """Note a value that PPFCOS cannot have."""
        if key in part and part[key] != value:
            self._drop(f"{path}.{key}: {part[key]}", f"PPFCOS always computes as with {value}")

    def _neck(self, neck: Mapping[str, Any]) -> dict[str, Any]:
        for key, value in (("has_extra_convs", True), ("norm_type", None), ("relu_before_extra_convs", True)):
            self._require(neck, "FPN", key, value)
        self._say("FPN", "PPFCOSFPN: out_channels, extra_levels, extra_source (c5 as with use_c5, or p5)")
        self._drop("FPN.spatial_scales", "they follow from the backbone's return_idx")
        return {
            "out_channels": neck["out_channel"],
            "extra_levels": neck["extra_stage"],
            "extra_source": "c5" if neck["use_c5"] else "p5",
        }

    def _head(self, head: Mapping[str, Any], feat: Mapping[str, Any]) -> dict[str, Any]:
        for key, value in (
            ("fpn_stride", STRIDES),
            ("num_shift", 0.5),
            ("multiply_strides_reg_targets", False),
        ):
            self._require(head, "FCOSHead", key, value)
        self._say(
            "FCOSHead, FCOSFeat",
            "PPFCOSHead: num_convs, norm_type, deformable_convs (use_dcn), prior_prob, centerness_on "
            "(centerness_on_reg), distance (norm_reg_targets)",
        )
        self._drop("FCOSFeat.feat_in, feat_out, fpn_stride", "they follow from the neck")
        self._drop("learning rate of the towers' biases", "PPFCOS trains them at base_lr, not at twice that")
        return {
            "num_convs": feat["num_convs"],
            "norm_type": feat["norm_type"],
            "deformable_convs": feat["num_convs"] if feat["use_dcn"] else 0,
            "prior_prob": head["prior_prob"],
            "centerness_on": "box" if head["centerness_on_reg"] else "class",
            "distance": "relu" if head["norm_reg_targets"] else "exp",
        }

    def _loss(self, loss: Mapping[str, Any]) -> dict[str, Any]:
        self._say(
            "FCOSLoss",
            "PPFCOSLoss: focal_alpha (loss_alpha), focal_gamma (loss_gamma), box_loss (iou_loss_type), "
            "box_weight (reg_weights), quality, and iou_smoothing: 1, which PaddleDetection's code has",
        )
        return {
            "focal_alpha": loss["loss_alpha"],
            "focal_gamma": loss["loss_gamma"],
            "box_loss": loss["iou_loss_type"],
            "box_weight": loss["reg_weights"],
            "quality": loss["quality"],
            "iou_smoothing": 1.0,
        }

    def _decode(self, nms: Mapping[str, Any]) -> dict[str, Any]:
        self._say(
            "FCOSHead.nms",
            "PPFCOSDecode: class_top_k (nms_top_k), keep_top_k, score_threshold, nms_threshold, clip: never; "
            "pre_nms_top_k: 4000 limits the candidates of a level, which PaddleDetection does not",
        )
        thresholds = {key: nms[key] for key in ("score_threshold", "nms_threshold")}
        top_k = {"keep_top_k": nms["keep_top_k"], "class_top_k": nms["nms_top_k"], "pre_nms_top_k": 4000}
        return {**thresholds, **top_k, "clip": "never"}

    def _reader(self, reader: str, section: Mapping[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        is_training = reader == "TrainReader"
        batch_size = section.get("batch_size", 1)
        result: dict[str, Any] = {"sample_transforms": [], "batch_transforms": []}
        for key, value in section.items():
            if key in ("sample_transforms", "batch_transforms"):
                for element in value or ():
                    [(name, arguments)] = element.items()
                    self._transform(f"{reader}.{key}.{name}", name, arguments or {}, result, ours)
            elif key == "batch_size" and is_training:
                continue
            elif key not in READER_KEYS[reader]:
                self._drop(f"{reader}.{key}", LEFT_OUT.get(key, "PPFCOS has no such key"))
            else:
                result[key] = value
        # As PaddleDetection resizes since 2.6.1.
        transforms = [*result["sample_transforms"], {"Permute": {}}]
        result["sample_transforms"] = set_rounding(transforms, "nearest")
        if is_training:
            result["batch_transforms"].append({"PadGT": {}})
            total = result["total_batch_size"] = batch_size * self._devices
            self._say(
                f"TrainReader.batch_size: {batch_size} on each device",
                f"total_batch_size: {total} over all devices (--devices {self._devices})",
            )
        return result

    def _transform(
        self, path: str, name: str, arguments: Mapping[str, Any], result: dict[str, Any], ours: dict[str, Any]
    ) -> None:
        """Add a transform to the reader, or do in the model what it does."""
        if name == "Permute":
            return  # last in sample_transforms, wherever it was
        if name == "NormalizeImage":
            self._require(arguments, path, "is_scale", True)
            self._require(arguments, path, "norm_type", "mean_std")
            values = {f"image_{key}": list(arguments[key]) for key in ("mean", "std") if key in arguments}
            if "image_mean" not in ours["PPFCOS"]:
                self._say(path, "PPFCOS.image_mean and image_std")
                ours["PPFCOS"].update(values)
            elif any(ours["PPFCOS"].get(key) != value for key, value in values.items()):
                self._drop(path, "all readers have the mean and std of the first")
        elif name == "Gt2FCOSTarget":
            self._say(path, "PPFCOSTargets: size_ranges (object_sizes_boundary), center_sampling_radius")
            self._require(arguments, path, "downsample_ratios", STRIDES)
            ours["PPFCOSTargets"] = {
                "size_ranges": arguments["object_sizes_boundary"],
                "center_sampling_radius": arguments["center_sampling_radius"],
            }
        elif name in REFUSED_TRANSFORMS:
            self._drop(path, REFUSED_TRANSFORMS[name])
        elif name in BATCH_TRANSFORMS:
            result["batch_transforms"].append({name: dict(arguments)})
        elif ".batch_transforms." in path:
            self._drop(path, "PPFCOS has no such batch transform")
        else:
            result["sample_transforms"].append({name: dict(arguments)})

    def _dataset(self, key: str, section: Mapping[str, Any]) -> dict[str, Any]:
        name = section.get("name")
        schema = self._modules[name].schema if name in self._modules else {}
        known = ("name", *schema, *OUR_DATASET_KEYS.get(name, ()))
        for unknown in set(section) - set(known):
            self._drop(f"{key}.{unknown}", f"{name} does not read it")
        return {each: section[each] for each in section if each in known}
