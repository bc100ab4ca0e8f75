"""The options of an export in INT8: which pictures it is calibrated with, and how."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppfcos.cli import command
from ppfcos.errors import ConfigError, DataError
from ppfcos.regular_files import read_text

if TYPE_CHECKING:
    from ppfcos.export.int8 import Calibration
    from ppfcos.export.trained_ranges import TrainedRanges

INT8 = "int8"
COUNT = 64
SECTIONS = ("TrainDataset", "TestDataset")
FOLDER_KEYS = ("dataset_dir", "image_dir", "datasets")
# Each option and the name of what it sets.
SETTINGS = {"calibration": "method", "disagreement": "disagreement", "most_float": "most_float"}
OF_CALIBRATION = ("calibration_images", "calibration_count", *SETTINGS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; those not given are None."""
    add = parser.add_argument
    add(
        "--calibration_images",
        metavar="FOLDER|LIST",
        help="for int8: pictures like those to come, in a folder or named in a text file, one a line "
        "(default: TrainDataset's, else TestDataset's)",
    )
    add(
        "--calibration_count",
        type=int,
        metavar="N",
        help=f"for int8: take so many of them, evenly chosen (default: {COUNT})",
    )
    add(
        "--calibration",
        metavar="METHOD",
        help="for int8: minmax, percentile or entropy, by which the ranges are found (default: minmax)",
    )
    add(
        "--disagreement",
        type=float,
        metavar="X",
        help="for int8: the share of the boxes, by score, that may differ from float before layers are left "
        "in float (default: 0.06)",
    )
    add(
        "--most_float",
        type=float,
        metavar="X",
        help="for int8: the largest share of the layers that may be left in float (default: 0.25)",
    )
    command.add_switch(
        parser,
        "--integer_outputs",
        "for int8 and --kind heads: integers come out, and bundle.yml has their scales",
    )


def calibration(options: argparse.Namespace, cfg: Mapping[str, Any]) -> Calibration | TrainedRanges | None:
    """What the options say. After a quantisation-aware training there is nothing to calibrate.

    Args:
        options: the parsed command line, of which `precision` counts too.
        cfg: the configuration, whose data sets have the pictures where the options name none.

    Returns:
        None where no network in INT8 is wanted.

    Raises:
        ConfigError: an option has an impossible value, or is given without `--precision int8`, or to a
            configuration whose ranges were trained.
        DataError: there are no pictures.
    """
    given = [name for name in (*OF_CALIBRATION, "integer_outputs") if getattr(options, name) is not None]
    if INT8 not in options.precision:
        if given:
            raise ConfigError(f"--{given[0]} is for --precision int8; add it or leave --{given[0]} out")
        return None
    if cfg.get("quantization_aware_training") is not None:
        return _trained_ranges(options)
    from ppfcos.export.int8 import Calibration
    from ppfcos.export.quantization import QuantizationSettings, evenly_chosen

    values = {name: getattr(options, option) for option, name in SETTINGS.items()}
    settings = QuantizationSettings(**{name: value for name, value in values.items() if value is not None})
    if options.calibration_images is None:
        files = _images_of_datasets(cfg)
    else:
        files = _named_images(Path(options.calibration_images))
    count = COUNT if options.calibration_count is None else options.calibration_count
    return Calibration(evenly_chosen(files, count), settings, bool(options.integer_outputs))


def _trained_ranges(options: argparse.Namespace) -> TrainedRanges:
    from ppfcos.export.trained_ranges import TrainedRanges

    for name in OF_CALIBRATION:
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name} is for a network that was trained in float, and this one's ranges were trained "
                f"with it: leave --{name} out, or calibrate anew with -o quantization_aware_training=null"
            )
    return TrainedRanges(bool(options.integer_outputs))


def _named_images(path: Path) -> list[str]:
    """The pictures in a folder, or those that a list names, relative to the list's folder."""
    from ppfcos.data.images import list_images

    if path.is_dir():
        files = list_images(path)
    else:
        try:
            lines = (line.strip() for line in read_text(path).splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"--calibration_images {path}: cannot be read ({getattr(error, 'strerror', None) or error}); "
                "name a folder of pictures, or a text file with the path of a picture on each line"
            ) from error
        files = [str(path.parent / line) for line in lines if line]
        for file in files:
            if not Path(file).is_file():
                raise DataError(
                    f"--calibration_images {path}: names {file}, which is not there; correct the list"
                )
    if not files:
        raise DataError(f"--calibration_images {path}: holds no pictures; name a folder or a list that does")
    return files


def _images_of_datasets(cfg: Mapping[str, Any]) -> list[str]:
    """The pictures of the first data set that is there."""
    from ppfcos.data.datasets import build_dataset

    reason = "the configuration names none"
    for section in SECTIONS:
        if not any((cfg.get(section) or {}).get(key) for key in FOLDER_KEYS):
            continue
        try:
            return [str(record["im_file"]) for record in build_dataset(cfg, section).records]
        except DataError as error:
            reason = str(error)
    raise DataError(
        f"there are no pictures to calibrate INT8 with ({reason}); "
        "name a folder or a list of some with --calibration_images"
    )
