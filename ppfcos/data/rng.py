"""Randomness that depends on a key alone, whichever process draws it and in whatever order."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


def generator(*key: int) -> np.random.RandomState:
    """A generator of its own for a key of whole numbers; the same key gives the same numbers everywhere."""
    return np.random.RandomState(np.random.MT19937(_sequence(key)))


def seed_of(*key: int) -> int:
    """One number below 2³² for a key of whole numbers, for generators that are seeded by one."""
    return int(_sequence(key).generate_state(1)[0])


@contextlib.contextmanager
def global_generators(*key: int) -> Iterator[None]:
    """Python's and numpy's global generators seeded from a key, and afterwards as they were before.

    PaddleDetection's transforms draw from the global ones.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    words = _sequence(key).generate_state(8)
    random.seed(words.tobytes())
    np.random.seed(words)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _sequence(key: tuple) -> np.random.SeedSequence:
    return np.random.SeedSequence([int(number) % 2**32 for number in key])
