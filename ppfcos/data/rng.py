"""Random numbers that depend on a key only, such as (seed, epoch, index), not on who draws them or when."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


def generator(*key: int) -> np.random.RandomState:
    """A generator for a key of integers."""
    return np.random.RandomState(np.random.MT19937(_sequence(key)))


def seed_of(*key: int) -> int:
    """A seed below 2³² for a key of integers."""
    return int(_sequence(key).generate_state(1)[0])


@contextlib.contextmanager
def global_generators(*key: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators, which PaddleDetection's transforms use; then restore."""
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
