"""What the classes are called: read from files that only name them, counted, and compared."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ppfcos.errors import DataError
from ppfcos.fileio import read_text

logger = logging.getLogger(__name__)

_SHOWN = 5  # names that a message lists


def set_num_classes(cfg: MutableMapping[str, Any], class_names: Sequence[str], source: str) -> None:
    """Sets `num_classes` to what the data has, or sees that it is what the configuration says.

    To be called before the model is built: PaddleDetection's workspace gives the key to the parts of the
    model, and a default of 80 where nobody has set it.

    Args:
        cfg: The configuration; `num_classes` may be absent or null.
        class_names: TrainDataset's for a training, EvalDataset's for an evaluation, or a checkpoint's.
        source: What names them, such as a file; for messages.

    Raises:
        DataError: The configuration says another number.
    """
    found, wanted = len(class_names), cfg.get("num_classes")
    if wanted is None:
        cfg["num_classes"] = found
        logger.info("num_classes: %d (%s), from %s", found, shown(class_names), source)
    elif wanted != found:
        raise DataError(
            f"{source} has {found} classes, but num_classes is {wanted}: "
            f"set num_classes: {found}, or leave it out, or name the right file"
        )


def check_same_classes(known: Sequence[str], where: str, found: Sequence[str], there: str) -> None:
    """Sees that two lists of classes are the same, in the same order: a label is a position in them.

    Otherwise a model would be compared with classes that it was not trained on, and found to know none.

    Args:
        known: The names by which the model is, or is to be, trained.
        where: What says so, such as a file; for the message.
        found: The other names.
        there: What says those.

    Raises:
        DataError: They differ; the message says where.
    """
    known, found = list(known), list(found)
    if known == found:
        return
    missing = [name for name in known if name not in found]
    added = [name for name in found if name not in known]
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


def shown(names: Sequence[str]) -> str:
    """Names for a message, the first few of them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def read_names(path: Path) -> list[str]:
    """The class names in a text file, one a line (label_list.txt, classes.txt, obj.names).

    Args:
        path: The file.

    Returns:
        The names; the position is the label.

    Raises:
        DataError: It cannot be read, has no names, or has one twice.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of class names: {error}") from None
    return checked_names([line.strip() for line in lines if line.strip()], str(path))


def checked_names(names: Sequence[Any], source: str) -> list[str]:
    """Class names as text.

    Args:
        names: What a file or a configuration lists.
        source: Where, for messages.

    Raises:
        DataError: There are none, or one is there twice.
    """
    texts = [str(name) for name in names]
    if not texts:
        raise DataError(f"{source} names no classes: a detection data set needs at least one")
    twice = sorted(text for text, count in Counter(texts).items() if count > 1)
    if twice:
        raise DataError(f"{source} names a class twice: {shown(twice)}")
    return texts
