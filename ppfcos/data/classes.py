"""Class names: read from text files, counted and compared."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ppfcos.errors import DataError
from ppfcos.fileio import read_text
from ppfcos.yaml_files import SURROGATES_AND_NUL

logger = logging.getLogger(__name__)

_SHOWN = 5  # names that a message lists


def set_num_classes(cfg: MutableMapping[str, Any], class_names: Sequence[str], source: str) -> None:
    """Set `num_classes` in the configuration from the data, or check it if it is set.

    Call this before the model is built: PaddleDetection's workspace passes the key to the parts of the model,
    with a default of 80.

    Args:
        cfg: The configuration, which is changed.
        class_names: TrainDataset's for training, EvalDataset's for evaluation, or a checkpoint's.
        source: The file that names them, for messages.

    Raises:
        DataError: The configuration has another number.
    """
    check_num_classes(cfg.get("num_classes"), class_names, source)
    if cfg.get("num_classes") is None:
        cfg["num_classes"] = len(class_names)
        logger.info("num_classes: %d (%s), from %s", len(class_names), shown(class_names), source)


def check_num_classes(num_classes: int | None, class_names: Sequence[str], source: str) -> None:
    """Raise a DataError if `num_classes` is set and is not the number of class names."""
    found = len(class_names)
    if num_classes not in (None, found):
        raise DataError(
            f"{source} has {counted(found, 'class', 'classes')}, but num_classes is {num_classes}: "
            f"set num_classes: {found}, or leave it out, or name the right file"
        )


def check_same_classes(known: Sequence[str], where: str, found: Sequence[str], there: str) -> None:
    """Check that two lists of classes are equal, including their order: a label is a position in them.

    Args:
        known: The class names of the model.
        where: The source of these, such as a file; for the message.
        found: The other class names.
        there: The source of those.

    Raises:
        DataError: They differ.
    """
    known, found = list(known), list(found)
    if known == found:
        return
    all_known, all_found = set(known), set(found)
    missing = [name for name in known if name not in all_found]
    added = [name for name in found if name not in all_known]
    if missing or added:
        sides = (("lacks", missing), ("adds", added))
        difference = " and ".join(f"{verb} {shown(names)}" for verb, names in sides if names)
    elif len(known) != len(found):
        difference = f"has {len(found)} instead of {len(known)}, for it names one twice"
    else:
        label = next(label for label, pair in enumerate(zip(known, found)) if pair[0] != pair[1])
        difference = f"has them in another order: class {label} is {found[label]}, not {known[label]}"
    raise DataError(
        f"the classes of {there} are not those of {where}: it {difference}; "
        "give both the same list in the same order"
    )


def counted(number: int, one: str, several: str) -> str:
    """Such as `1 class` and `2 classes`."""
    return f"{number} {one if number == 1 else several}"


def shown(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def read_names(path: Path) -> list[str]:
    """The class names in a text file with one per line (label_list.txt, classes.txt, obj.names).

    Raises:
        DataError: The file cannot be read, has no names, or has one twice.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of class names: {error}") from None
    return checked_names([line.strip() for line in lines if line.strip()], str(path))


def checked_names(names: Sequence[Any], source: str) -> list[str]:
    """Class names as text; `source` is for messages.

    Raises:
        DataError: There are none, one is empty or occurs twice, or one cannot be written as UTF-8.
    """
    texts = [str(name) for name in names]
    if not texts:
        raise DataError(f"{source} names no classes: a detection data set needs at least one")
    for label, text in enumerate(texts):
        if not text.strip() or SURROGATES_AND_NUL.search(text):
            what = "cannot be written as UTF-8" if text.strip() else "is empty"
            raise DataError(f"{source}: the name of class {label} {what}: {text!r}; give it another name")
    twice = sorted(text for text, count in Counter(texts).items() if count > 1)
    if twice:
        raise DataError(f"{source} names a class twice: {shown(twice)}")
    return texts
