"""What can be wrong with a data set, and what training and evaluation do about it.

Readers report issues to a `Report`: training and the converter pass a `RaiseOnError`, the checker collects
them. The tests run training and evaluation on bad data and compare them with the texts here.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, Callable, NamedTuple

from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import DataError

TRAINING, VALIDATION = "TrainDataset", "EvalDataset"  # the sections of a configuration
RARE = 20  # a class with fewer objects than this in the training set is called rare
OUTSIDE_TOLERANCE = 0.5  # pixels: tools that round write boxes that reach this far beyond the image


class Severity(Enum):
    """How bad an issue is, worst first."""

    ERROR = "error"  # training is impossible or useless
    WARNING = "warning"  # something is lost or doubtful
    NOTE = "note"  # handled, but good to know


class Outcome(Enum):
    """What training does with the image or box of an issue."""

    REFUSED = "training does not start"
    IMAGE_LEFT_OUT = "the image is not trained on"
    IMAGE_REPLACED = "another image takes its place"
    BOX_LEFT_OUT = "the box is not trained on"
    REPAIRED = "repaired while reading"
    KEPT = "trained on as it is"


class IssueType(NamedTuple):
    """A type of issue.

    Attributes:
        severity: How bad it is.
        outcome: What training does, as one of a few outcomes.
        meaning: What the issue is; follows a number.
        training: What training does; follows "the training".
        evaluation: What an evaluation does; follows "the evaluation". Empty if it is the same.
        fix: What `--fix` does; follows "it". Empty if the user must decide.
    """

    severity: Severity
    outcome: Outcome
    meaning: str
    training: str
    evaluation: str = ""
    fix: str = ""


class Issue(NamedTuple):
    """One issue.

    Attributes:
        kind: A key of ISSUE_TYPES.
        section: TrainDataset or EvalDataset.
        where: The image, or the place in the annotation file.
        detail: What exactly is wrong.
        image: Path of the image; empty if the issue is about none.
        box: x0, y0, x1, y1 in the image's pixels; None if the issue is about no box.
    """

    kind: str
    section: str
    where: str
    detail: str
    image: str = ""
    box: tuple[float, ...] | None = None


def _refused(meaning: str, fix: str) -> IssueType:
    training = "does not start: it ends with one line that names the place"
    return IssueType(Severity.ERROR, Outcome.REFUSED, meaning, training, fix=fix)


def _unreadable(meaning: str) -> IssueType:
    return IssueType(
        Severity.WARNING,
        Outcome.IMAGE_REPLACED,
        meaning,
        "takes the next readable image instead and names it in the log; it stops after max_bad_images "
        "({max_bad_images}) of them",
        "names it in the log and counts it as an image without detections",
        "leaves the image out",
    )


def _left_out(severity: Severity, outcome: Outcome, meaning: str, fix: str) -> IssueType:
    return IssueType(severity, outcome, meaning, "leaves them out and counts them in the log", fix=fix)


def _repaired(meaning: str, training: str, fix: str = "") -> IssueType:
    return IssueType(Severity.NOTE, Outcome.REPAIRED, meaning, training, fix=fix)


def _kept(
    meaning: str, training: str, evaluation: str = "", fix: str = "", severity: Severity = Severity.WARNING
) -> IssueType:
    return IssueType(severity, Outcome.KEPT, meaning, training, evaluation, fix)


def _dropped(meaning: str, fix: str) -> IssueType:
    return IssueType(
        Severity.WARNING,
        Outcome.BOX_LEFT_OUT,
        meaning,
        "drops boxes without area in the image and counts them in the log; an image that loses its last box "
        "is left out unless allow_empty",
        "keeps it as an object that no detection can match: the recall is lower",
        fix,
    )


_RENUMBERS = "renumbers all annotations and says so in the log", "numbers the annotations"
ISSUE_TYPES: dict[str, IssueType] = {
    # The data set as a whole
    "refused": _refused("error that stops training", ""),
    "reader-warning": _kept("warning of the reader", "does what the line says and logs it"),
    "annotations-lost": _kept(
        "data set of which a large part of the annotations is left out",
        "runs on the rest and warns in the log; what is left out is background to the network",
        "compares with the rest only",
        severity=Severity.ERROR,
    ),
    "label-file-without-image": _kept(
        "label file that belongs to no image",
        "ignores the file and counts them in the log: its objects are lost",
        severity=Severity.ERROR,
    ),
    "boxes-normalized": _refused("data set whose boxes are fractions instead of pixels", ""),
    "boxes-in-another-form": _refused("data set whose boxes are not written as its format has them", ""),
    "categories-differ": _kept(
        "difference between the classes of training and validation",
        "does not start with --eval; without, it uses the position of a class in its own list as the label",
        "does not start if the checkpoint names its classes; else it reads the same label as another class: "
        "its AP is 0, or -1 where it has no objects",
        severity=Severity.ERROR,
    ),
    # Images
    "image-missing": _left_out(
        Severity.WARNING, Outcome.IMAGE_LEFT_OUT, "image whose file is missing", "leaves the image out"
    ),
    "annotation-file-missing": _left_out(
        Severity.WARNING,
        Outcome.IMAGE_LEFT_OUT,
        "listed image without an annotation file",
        "leaves the image out",
    ),
    "image-unreadable": _unreadable("file that cannot be decoded as an image"),
    "image-truncated": _unreadable("truncated image"),
    "image-size-differs": _unreadable("image of another size than its annotation states"),
    "image-huge": _unreadable("image with more pixels or scans than are decoded"),
    "image-size-unstated": _repaired(
        "image whose size is not stated",
        "reads the size from the image; its boxes are clipped only when it is resized",
        "states the image's size",
    ),
    "image-turned": _repaired(
        "image whose EXIF rotation is applied", "rotates it: the stated size is that of the rotated image"
    ),
    "image-not-turned": _kept(
        "image whose EXIF rotation is not applied", "reads the stored pixels: check that the boxes fit"
    ),
    "image-turn-unclear": _repaired(
        "image with an EXIF orientation that its size cannot confirm",
        "rotates it as EXIF says; boxes drawn on the stored pixels would be wrong",
    )._replace(severity=Severity.WARNING),
    "image-grey": _repaired("grayscale image", "repeats the gray values in red, green and blue"),
    "image-cmyk": _repaired("CMYK image", "converts it to RGB without its color profile"),
    "image-16-bit": _repaired(
        "image with 16 bits per channel", "keeps the upper 8 bits: a dark image becomes black"
    ),
    "image-palette": _repaired("image with a palette", "looks the colors up"),
    "image-alpha": _repaired(
        "image with an alpha channel", "ignores alpha: transparent pixels show the color that they hide"
    ),
    "image-duplicate": _kept(
        "image with the same pixels as another one",
        "learns from every copy, even where their boxes contradict each other",
        "counts every copy",
        "keeps the copy with the most boxes",
    ),
    "image-listed-twice": _kept(
        "image file that is listed more than once",
        "uses every entry as an image of its own: objects of the other entries are background in it",
        "uses every entry as an image of its own",
        "merges them into one entry with all boxes",
    ),
    "image-leak": _kept(
        "image of the training set with the pixels of a validation image",
        "learns from it, so the metrics of the evaluation are too good",
        fix="leaves the image out of the training set",
        severity=Severity.ERROR,
    ),
    "image-without-objects": IssueType(
        Severity.NOTE,
        Outcome.IMAGE_LEFT_OUT,
        "image without objects",
        "leaves the images out and counts them in the log; with TrainDataset.allow_empty: true it trains on "
        "them as background",
        "keeps it: every detection in it is wrong",
    ),
    "too-many-boxes": _kept(
        "image with more objects than the model has detections",
        "learns from all of them, but the model returns the best {limit} boxes (PPFCOSDecode.keep_top_k)",
        "counts the best {evaluation_limit} detections per image (PPFCOSDecode.keep_top_k, max_detections): "
        "the other objects are missed",
    ),
    # Annotations
    "image-id-twice": _refused(
        "image id that occurs twice",
        "merges equal entries; leaves out different images with one id, and their boxes",
    ),
    "image-malformed": _refused("entry of `images` without a file name", "leaves the entry out"),
    "category-id-twice": _refused(
        "category id that occurs twice",
        "merges entries with the same name; of two names, the first keeps the boxes",
    ),
    "category-malformed": _refused("category without a name", "names it after its id"),
    "id-missing": _refused("entry without a usable id", "numbers images and categories; drops annotations"),
    "id-as-text": _refused("id that is written as text", "writes numbers"),
    "annotation-malformed": _refused("annotation that cannot be parsed", "drops it"),
    "box-as-text": _refused("box whose numbers are written as text", "writes numbers"),
    "box-malformed": _refused("box that is not four finite numbers in range", "drops the box"),
    "annotation-of-unknown-category": _refused(
        "annotation of a category that is not in the list", "drops the annotation"
    ),
    "annotation-file-unreadable": _refused("annotation file that cannot be read", "leaves the image out"),
    "annotation-of-unknown-image": _left_out(
        Severity.WARNING,
        Outcome.BOX_LEFT_OUT,
        "annotation of an image that is not listed",
        "drops the annotation",
    ),
    "box-missing": _left_out(
        Severity.WARNING, Outcome.BOX_LEFT_OUT, "annotation without a box", "drops the annotation"
    ),
    "box-from-polygon": _repaired(
        "annotation with a polygon and without a box",
        "uses the bounding box of the polygon and counts them in the log",
        "writes the box",
    ),
    "area-missing": _repaired(
        "annotation without a usable area",
        "uses the area of the box and counts them in the log",
        "writes the area of the box",
    ),
    "crowd-unclear": _kept(
        "annotation whose `iscrowd` is neither 0 nor 1",
        "reads it as an ordinary object",
        fix="writes 0, or 1 for the text '1'",
    ),
    "annotation-id-missing": _repaired("annotation whose id is no integer", *_RENUMBERS),
    "annotation-id-zero": _repaired(
        "annotation with an id of 0 or below, which pycocotools cannot match", *_RENUMBERS
    ),
    "annotation-id-twice": _repaired("annotation id that occurs twice", *_RENUMBERS),
    "category-id-zero": _kept(
        "category with the id 0",
        "uses it like any other class: the label is the position in the list, not the id",
        severity=Severity.NOTE,
    ),
    # Categories
    "category-background": _kept(
        "category that names the background",
        "trains it as a class of objects; FCOS needs no class for the background",
        "evaluates it as a class of objects",
        "removes it where no box has it; num_classes becomes one less",
    ),
    "category-names-alike": _kept(
        "category whose name differs from another only in case, spaces or dashes",
        "trains two classes that look the same",
        "counts one as an error where the other is expected",
        "merges them; num_classes becomes less",
    ),
    "category-never-seen": _kept(
        "category without an object",
        "learns never to predict the class",
        "gives it an AP of -1, which the mean leaves out",
    ),
    "category-rare": _kept(
        "category with few objects",
        "learns from fewer than {rare} objects",
        "gives it an AP that depends much on single objects",
        severity=Severity.NOTE,
    ),
    "category-only-in-validation": _kept(
        "category that occurs in the validation set and never in the training set",
        "learns never to predict the class; its AP of 0 is part of the mean",
    ),
    # Boxes
    "box-without-area": _dropped("box without area", "drops the box"),
    "box-upside-down": _dropped("box with exchanged sides", "exchanges the sides"),
    "box-outside": _dropped("box outside its image", "drops the box"),
    "box-partly-outside": _repaired(
        "box that reaches beyond its image", "clips the boxes and counts them in the log", "clips the box"
    )._replace(evaluation="compares with the box as written: the overlap is less than it could be"),
    "box-twice": _kept(
        "box that equals another of its image and class",
        "assigns all points to the first of them",
        "counts one of them as missed or a second detection as wrong",
        "drops the second",
    ),
    "box-tiny": _kept(
        "box that is tiny after resizing",
        "learns from it if a point falls into it; a side is shorter than half the finest stride",
        "counts it like any other",
        severity=Severity.NOTE,
    ),
    "box-no-location": _kept(
        "box that is assigned no point on any level",
        "learns nothing from it: it is background to the network",
        "counts it like any other, and will most likely miss it",
    ),
    "box-covered": _kept(
        "box that loses all its points to other boxes",
        "learns nothing from it: the other boxes take every point in it",
        "counts it like any other, and will most likely miss it",
    ),
    "box-crowd": IssueType(
        Severity.NOTE,
        Outcome.BOX_LEFT_OUT,
        "box around a crowd (iscrowd)",
        "leaves the boxes out and counts them in the log (with load_crowd: true they are objects like any "
        "other); other points in it are background, or ignored with PPFCOSTargets.ignore_crowd: true",
        "ignores detections in it",
    ),
    "box-ignored": IssueType(
        Severity.NOTE,
        Outcome.BOX_LEFT_OUT,
        "box that is marked with `ignore`",
        "leaves the boxes out and counts them in the log; other points in it are background",
        "counts it like any other object",
    ),
}

# An evaluation of COCO files compares with the boxes as written; of other formats, with the records.
_EVALUATION_OF_RECORDS = {
    **dict.fromkeys(
        ("box-without-area", "box-upside-down", "box-outside"), "drops the boxes and counts them in the log"
    ),
    "box-partly-outside": "clips the boxes and counts them in the log",
}


def describe_consequence(kind: str, in_training: bool, from_coco_file: bool) -> str:
    """What training or evaluation does about an issue, as a sentence with placeholders in braces.

    Args:
        kind: A key of ISSUE_TYPES.
        in_training: Whether the data is trained on or evaluated.
        from_coco_file: Whether the ground truth of an evaluation is read from a COCO file.
    """
    issue_type = ISSUE_TYPES[kind]
    if in_training:
        return f"the training {issue_type.training}"
    special = {} if from_coco_file else _EVALUATION_OF_RECORDS
    return f"the evaluation {special.get(kind) or issue_type.evaluation or issue_type.training}"


# What a reader counts for the log
_EVENTS = {
    "image-missing": LoadEvent.MISSING_IMAGE,
    "annotation-file-missing": LoadEvent.MISSING_IMAGE,
    "label-file-without-image": LoadEvent.ORPHAN_LABELS,
    "annotation-of-unknown-image": LoadEvent.UNKNOWN_IMAGE,
    "box-missing": LoadEvent.NO_BOX,
    "box-from-polygon": LoadEvent.POLYGON_BOX,
    "area-missing": LoadEvent.FILLED_AREA,
}

# report(issue type, where, detail, path of the image = "")
Report = Callable[..., None]


class RaiseOnError:
    """A `Report` that does what training does: raises for some types of issues, counts others.

    Args:
        prefix: What precedes the place in messages, such as the annotation file.

    Attributes:
        tally: What was left out and filled in.
    """

    def __init__(self, prefix: str):
        self._prefix = prefix
        self.tally = LoadStatistics()

    def __call__(self, kind: str, where: str, detail: str, image: str = "") -> None:
        if ISSUE_TYPES[kind].outcome is Outcome.REFUSED:
            raise DataError(f"{self._prefix}{where}: {detail}")
        if kind in _EVENTS:
            self.tally.add(_EVENTS[kind], first=image or where)


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no text."""
    return not isinstance(value, str) and as_number(value) is not None
