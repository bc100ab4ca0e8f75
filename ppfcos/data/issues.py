"""What can be wrong with a data set, and what training and evaluation do about each.

The texts speak of what the rooms data and engine do; the tests run those on bad data and compare.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

TRAINING, VALIDATION = "TrainDataset", "EvalDataset"  # the sections of a configuration

RARE = 20  # a class with fewer objects than this in the training set is called rare
OUTSIDE_TOLERANCE = 0.5  # pixels: tools that round write boxes which end this far beyond the picture


class Severity(Enum):
    """How bad a finding is, worst first."""

    ERROR = "error"  # nothing is trained, or something useless is
    WARNING = "warning"  # something is lost or doubtful
    NOTE = "note"  # it is dealt with, and good to know


class Outcome(Enum):
    """What becomes in training of the thing that was found."""

    REFUSED = "training does not start"
    IMAGE_LEFT_OUT = "the image is not trained on"
    IMAGE_REPLACED = "another image takes its place"
    BOX_LEFT_OUT = "the box is not trained on"
    REPAIRED = "repaired while reading"
    KEPT = "trained on as it is"


class Kind(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: How bad it is.
        meaning: What was found, to be read behind a number.
        outcome: What training does, in one of few words.
        training: The same in full.
        evaluation: What an evaluation does with it; empty where that is the same.
        fix: What `--fix` does about it; empty where that is for the user to decide.
    """

    severity: Severity
    meaning: str
    outcome: Outcome
    training: str
    evaluation: str
    fix: str = ""


class Issue(NamedTuple):
    """One thing that was found.

    Attributes:
        kind: A key of KINDS.
        section: TrainDataset or EvalDataset.
        where: The image, or the place in the annotation file.
        detail: What exactly, in this one case.
        image: Path of the image it is about; empty where it is about none.
        box: x0, y0, x1, y1 in the image's pixels; None where it is about no box.
    """

    kind: str
    section: str
    where: str
    detail: str
    image: str = ""
    box: tuple[float, ...] | None = None


_NO_START = "does not start: it ends with one line that names the place"
_ALIKE = ""
_RENUMBERED = "numbers all annotations anew, and says so in the log"
_REPLACED = (
    "takes the next readable image in its place and names it in the log; more than max_bad_images "
    "({max_bad_images}) of them end it"
)
_NOTHING_FOUND = "names it in the log and counts it as an image in which nothing was found"


def _refused(meaning: str, fix: str) -> Kind:
    return Kind(Severity.ERROR, meaning, Outcome.REFUSED, _NO_START, _ALIKE, fix)


def _unreadable(meaning: str) -> Kind:
    return Kind(
        Severity.WARNING, meaning, Outcome.IMAGE_REPLACED, _REPLACED, _NOTHING_FOUND, "leaves the image out"
    )


def _converted(meaning: str, training: str) -> Kind:
    return Kind(Severity.NOTE, meaning, Outcome.REPAIRED, training, _ALIKE)


def _filled_in(meaning: str, training: str, fix: str) -> Kind:
    return Kind(Severity.NOTE, meaning, Outcome.REPAIRED, training, _ALIKE, fix)


_OF_THE_WHOLE = {
    "refused": Kind(
        Severity.ERROR,
        "time that the data set is refused as a whole",
        Outcome.REFUSED,
        "does not start: it ends with this line",
        _ALIKE,
    ),
    "reader-warning": Kind(
        Severity.WARNING,
        "warning of the data set's own reader",
        Outcome.KEPT,
        "does what the line says, and puts it into the log",
        _ALIKE,
    ),
    "categories-differ": Kind(
        Severity.ERROR,
        "difference between the classes of training and validation",
        Outcome.KEPT,
        "runs, and takes a class's position in its own list for its number",
        "takes the same number for another class, without a word: its AP is 0, or -1 where it has no objects",
    ),
}

_IMAGES = {
    "image-missing": Kind(
        Severity.WARNING,
        "image whose file is missing",
        Outcome.IMAGE_LEFT_OUT,
        "leaves the images out, with their boxes, and counts them in the log; if all are missing it does not "
        "start",
        _ALIKE,
        "leaves the image out",
    ),
    "annotation-file-missing": Kind(
        Severity.WARNING,
        "listed image without an annotation file",
        Outcome.IMAGE_LEFT_OUT,
        "leaves the images out and counts them in the log",
        _ALIKE,
        "leaves the image out",
    ),
    "image-unreadable": _unreadable("image that is no picture or cannot be decoded"),
    "image-truncated": _unreadable("image that is cut short"),
    "image-size-differs": _unreadable("image of another size than its annotation states"),
    "image-huge": _unreadable("image of more pixels or scans than are decoded"),
    "image-size-unstated": _filled_in(
        "image whose size is not stated",
        "takes the size from the picture; its boxes are clipped only when the picture is resized",
        "states the picture's size",
    ),
    "image-turned": Kind(
        Severity.NOTE,
        "image with an EXIF rotation that is followed",
        Outcome.REPAIRED,
        "turns the picture as EXIF says, since the stated size is that of the turned picture",
        _ALIKE,
    ),
    "image-not-turned": Kind(
        Severity.WARNING,
        "image with an EXIF rotation that is not followed",
        Outcome.KEPT,
        "reads the pixels as they are stored: look whether the boxes fit",
        _ALIKE,
    ),
    "image-turn-unclear": Kind(
        Severity.WARNING,
        "image with an EXIF orientation that its size cannot confirm",
        Outcome.REPAIRED,
        "turns the picture as EXIF says; if the boxes were made on the stored pixels, they are wrong",
        _ALIKE,
    ),
    "image-grey": _converted("grey image", "repeats the grey in red, green and blue"),
    "image-cmyk": _converted("CMYK image", "converts it to RGB, without its colour profile"),
    "image-16-bit": _converted(
        "image with 16 bits a channel", "keeps the upper 8 bits: a dark picture becomes black"
    ),
    "image-palette": _converted("image with a palette", "looks the colours up"),
    "image-alpha": _converted(
        "image with an alpha channel",
        "leaves alpha away: transparent pixels show whatever colour they hide",
    ),
    "image-duplicate": Kind(
        Severity.WARNING,
        "image with the same pixels as another one",
        Outcome.KEPT,
        "learns from every copy; where their boxes differ, they contradict each other",
        "counts every copy",
        "keeps the copy with the most boxes",
    ),
    "image-listed-twice": Kind(
        Severity.WARNING,
        "image file that is listed more than once",
        Outcome.KEPT,
        "takes every entry for an image of its own: an object that another entry has is background here",
        "takes every entry for an image of its own",
        "makes them one entry with all the boxes",
    ),
    "image-leak": Kind(
        Severity.ERROR,
        "image of the training set with the pixels of a validation image",
        Outcome.KEPT,
        "learns from it, and the evaluation tests what was learnt by heart: its figures are too good",
        _ALIKE,
        "leaves the image out of the training set",
    ),
    "image-without-objects": Kind(
        Severity.NOTE,
        "image without objects",
        Outcome.IMAGE_LEFT_OUT,
        "leaves the images out and counts them in the log; with TrainDataset.allow_empty: true they are "
        "negatives, of background only",
        "keeps it: what is found in it is wrong",
    ),
    "too-many-boxes": Kind(
        Severity.WARNING,
        "image with more objects than the model gives boxes",
        Outcome.KEPT,
        "learns from all of them, but the model answers with the best {limit} boxes "
        "(PPFCOSDecode.keep_top_k)",
        "looks at 100 boxes an image at most: the other objects count as missed",
    ),
}

_ANNOTATIONS = {
    "image-id-twice": _refused(
        "image id that is there twice",
        "makes one of entries that are the same; leaves out different images with one id, with their boxes",
    ),
    "image-malformed": _refused("entry of `images` without a file name", "leaves the entry out"),
    "category-id-twice": _refused(
        "category id that is there twice",
        "makes one of entries with the same name; of two names, the first keeps the boxes",
    ),
    "category-malformed": _refused("category without a name", "names it after its id"),
    "id-missing": _refused("entry without a usable id", "numbers images and categories; drops annotations"),
    "id-as-text": _refused("id that is written as text", "writes numbers"),
    "annotation-malformed": _refused("annotation that is no JSON object", "drops it"),
    "box-as-text": _refused("box whose numbers are written as text", "writes numbers"),
    "box-malformed": _refused("box that is not four finite numbers", "drops the box"),
    "annotation-of-unknown-category": _refused(
        "annotation of a category that is not in the list", "drops the annotation"
    ),
    "annotation-file-unreadable": _refused("annotation file that is no XML", "leaves the image out"),
    "annotation-of-unknown-image": Kind(
        Severity.WARNING,
        "annotation of an image that is not listed",
        Outcome.BOX_LEFT_OUT,
        "leaves them out and counts them in the log",
        _ALIKE,
        "drops the annotation",
    ),
    "box-missing": Kind(
        Severity.WARNING,
        "annotation without a box",
        Outcome.BOX_LEFT_OUT,
        "leaves them out and counts them in the log",
        _ALIKE,
        "drops the annotation",
    ),
    "area-missing": _filled_in(
        "annotation without a usable area",
        "takes the box's area, and counts them in the log",
        "writes the box's area",
    ),
    "crowd-unclear": Kind(
        Severity.WARNING,
        "annotation whose `iscrowd` is neither 0 nor 1",
        Outcome.KEPT,
        "takes it for an ordinary object",
        _ALIKE,
        "writes 0, or 1 for the text '1'",
    ),
    "annotation-id-missing": _filled_in(
        "annotation whose id is no whole number", _RENUMBERED, "numbers the annotations"
    ),
    "annotation-id-zero": _filled_in(
        "annotation with an id of 0 or below, which pycocotools takes for no object",
        _RENUMBERED,
        "numbers the annotations",
    ),
    "annotation-id-twice": _filled_in(
        "annotation id that is there twice", _RENUMBERED, "numbers the annotations"
    ),
    "category-id-zero": Kind(
        Severity.NOTE,
        "category with the id 0",
        Outcome.KEPT,
        "takes it for a class like any other: a class's number is its position in the list, not its id",
        _ALIKE,
    ),
}

_CATEGORIES = {
    "category-background": Kind(
        Severity.WARNING,
        "category that names the background",
        Outcome.KEPT,
        "takes it for a class of objects, counted in num_classes; FCOS needs none for the background",
        "takes it for a class of objects",
        "removes it where no box has it; num_classes becomes one less",
    ),
    "category-names-alike": Kind(
        Severity.WARNING,
        "category whose name is that of another but for capitals, spaces and dashes",
        Outcome.KEPT,
        "teaches two classes that look the same",
        "takes the one for a mistake where the other is wanted",
        "makes them one; num_classes becomes less",
    ),
    "category-never-seen": Kind(
        Severity.WARNING,
        "category without an object",
        Outcome.KEPT,
        "teaches the class to answer never",
        "gives it an AP of -1, which stays out of the mean",
    ),
    "category-rare": Kind(
        Severity.NOTE,
        "category with few objects",
        Outcome.KEPT,
        "learns from what there is: fewer than {rare} objects",
        "gives it an AP that a single object can change by much",
    ),
    "category-only-in-validation": Kind(
        Severity.WARNING,
        "category that is in the validation set and never in the training set",
        Outcome.KEPT,
        "teaches the class to answer never; its AP of 0 is part of the mean",
        _ALIKE,
    ),
}

_MISSED = "keeps it as an object that no box can match: the recall is lower"
_BOXES = {
    "box-without-area": Kind(
        Severity.WARNING,
        "box without area",
        Outcome.BOX_LEFT_OUT,
        "drops the boxes and counts them in the log; an image that loses its last one is left out unless "
        "allow_empty",
        _MISSED,
        "drops the box",
    ),
    "box-upside-down": Kind(
        Severity.WARNING,
        "box that is upside down or left to right",
        Outcome.BOX_LEFT_OUT,
        "drops the boxes, as having no area, and counts them in the log",
        _MISSED,
        "exchanges the sides",
    ),
    "box-outside": Kind(
        Severity.WARNING,
        "box outside its image",
        Outcome.BOX_LEFT_OUT,
        "drops the boxes, as having no area in the image, and counts them in the log",
        _MISSED,
        "drops the box",
    ),
    "box-partly-outside": Kind(
        Severity.NOTE,
        "box that reaches beyond its image",
        Outcome.REPAIRED,
        "clips the boxes to the image and counts them in the log",
        "compares with the box as it is written: the overlap is less than it could be",
        "clips the box",
    ),
    "box-twice": Kind(
        Severity.WARNING,
        "box that is the same as another of its image and class",
        Outcome.KEPT,
        "gives every location to the first of them",
        "counts one of them as missed or the second answer as wrong",
        "drops the second",
    ),
    "box-tiny": Kind(
        Severity.NOTE,
        "box that is tiny after resizing",
        Outcome.KEPT,
        "learns from it if a location falls into it; a side is shorter than half the finest level's stride",
        "counts it like any other",
    ),
    "box-no-location": Kind(
        Severity.WARNING,
        "box that no location of any level is responsible for",
        Outcome.KEPT,
        "learns nothing from it: to the network it is background",
        "counts it like any other: it will be missed",
    ),
    "box-covered": Kind(
        Severity.WARNING,
        "box all of whose locations belong to smaller boxes",
        Outcome.KEPT,
        "learns nothing from it: every location goes to the smallest box around it",
        "counts it like any other: it will most often be missed",
    ),
    "box-crowd": Kind(
        Severity.NOTE,
        "box around a crowd (iscrowd)",
        Outcome.BOX_LEFT_OUT,
        "leaves the boxes out and counts them in the log (with load_crowd: true they are objects like any "
        "other); a location in one that answers for no other box is background, unless "
        "PPFCOSTargets.ignore_crowd: true leaves it out of the loss",
        "counts what is found in it neither as right nor as wrong",
    ),
    "box-ignored": Kind(
        Severity.NOTE,
        "box that is marked with `ignore`",
        Outcome.BOX_LEFT_OUT,
        "leaves the boxes out and counts them in the log; a location in one that answers for no other box is "
        "background",
        "counts it like any other object",
    ),
}

KINDS: dict[str, Kind] = {**_OF_THE_WHOLE, **_IMAGES, **_ANNOTATIONS, **_CATEGORIES, **_BOXES}

# Where the true boxes of an evaluation are our records, and not a COCO file as it stands.
_EVALUATION_OF_RECORDS = {
    "box-without-area": "drops the boxes and counts them in the log",
    "box-upside-down": "drops the boxes, as having no area, and counts them in the log",
    "box-outside": "drops the boxes, as having no area in the image, and counts them in the log",
    "box-partly-outside": "clips the boxes to the image and counts them in the log",
}


def consequence(kind: str, in_training: bool, from_coco_file: bool) -> str:
    """What is done about a finding, a sentence with the places of some figures in braces.

    Args:
        kind: A key of KINDS.
        in_training: Whether it is in the data that is trained on, or in that of the evaluation.
        from_coco_file: Whether the true boxes of an evaluation are read from a COCO file.
    """
    entry = ISSUE_TYPES[kind]
    if in_training:
        return f"the training {entry.training}"
    special = {} if from_coco_file else _EVALUATION_OF_RECORDS
    return f"the evaluation {special.get(kind) or entry.evaluation or entry.training}"
