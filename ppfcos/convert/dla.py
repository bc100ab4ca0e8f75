"""ImageNet backbones of the authors of DLA (ucbdrive/dla)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppfcos.convert.backbones import DLA_FIRST_CONV, dla_of, dla_rules, unused_dla_rules
from ppfcos.convert.rules import (
    BATCH_COUNTER,
    CLASSIFIER,
    REAL_TIME_BASES,
    Format,
    Recipe,
    Translation,
    imagenet_pixels,
    translate,
)


def _translate(source: str, arrays: Mapping[str, np.ndarray]) -> Translation:
    ignored = [BATCH_COUNTER, CLASSIFIER, *unused_dla_rules("")]
    return translate(arrays, dla_of(source, arrays, ""), dla_rules(""), ignored)


FORMAT = Format(
    "dla",
    "the DLA authors' ImageNet backbones",
    lambda arrays: DLA_FIRST_CONV in arrays,
    _translate,
    {"imagenet": Recipe("dla34", lambda dla: {"PPFCOS": imagenet_pixels()}, bases=REAL_TIME_BASES)},
    backbone_only=True,
)
