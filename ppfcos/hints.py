"""What a message says about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_LIST_SHOWN = 12


def hint(name: Any, valid: Iterable[str]) -> str:
    """End a message about an unknown name with the nearest valid one, or all of them if they are few."""
    name, valid = str(name), sorted(valid)
    by_lower = {candidate.lower(): candidate for candidate in valid}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean '{by_lower[nearest[0]]}'?"
    return f"; there are: {', '.join(valid)}" if 0 < len(valid) <= LONGEST_LIST_SHOWN else ""
