"""Whether an exported network says what the model said before the export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppfcos.deploy import Detections
from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.predictor import Runtime

BOX_TOLERANCE = 1e-2  # pixels
SCORE_TOLERANCE = 1e-4
# Two candidates whose scores differ by less than a float's rounding may change places in the NMS, and a score
# may fall on the other side of the threshold. That costs single boxes, whereas a wrong graph moves all.
TOLERATED_SHARE = 0.05


@dataclass(frozen=True)
class Agreement:
    """How two runs compare: boxes found by either, and those of them that the other did not find."""

    boxes: int
    unmatched: int

    @property
    def holds(self) -> bool:
        """Whether no more than single boxes differ."""
        return self.unmatched <= max(1.0, TOLERATED_SHARE * self.boxes)


def compare(reference: Runtime, candidate: Runtime, batches: Sequence[dict[str, np.ndarray]]) -> Agreement:
    """Run two networks on the same batches and match their boxes by label, score and place.

    Args:
        reference: the model.
        candidate: its export.
        batches: network inputs.

    Returns:
        The counts over all batches.
    """
    boxes = unmatched = 0
    for batch in batches:
        pairs = zip(split_batch(*reference.run(batch), ()), split_batch(*candidate.run(batch), ()))
        for expected, found in pairs:
            boxes += len(expected) + len(found)
            unmatched += _lonely(expected, found) + _lonely(found, expected)
    return Agreement(boxes, unmatched)


def noise_batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Inputs that a detector may have something to say about: coarse blocks under fine noise.

    Returns:
        One image of 256 × 320, and two of different sizes padded to 192 × 384.
    """
    random = np.random.default_rng(seed)
    return [
        _noise(random, 256, 320, [(256, 320)], 1.0),
        _noise(random, 192, 384, [(192, 300), (150, 384)], 0.6),
    ]


def _noise(
    random: np.random.Generator, height: int, width: int, valid: list[tuple[int, int]], scale: float
) -> dict[str, np.ndarray]:
    images = np.zeros((len(valid), 3, height, width), np.float32)
    for image, (rows, columns) in zip(images, valid):
        blocks = random.uniform(0, 255, (3, height // 32, width // 32)).repeat(32, axis=1).repeat(32, axis=2)
        pixels = np.clip(blocks + random.normal(0, 20, blocks.shape), 0, 255).round()
        image[:, :rows, :columns] = pixels[:, :rows, :columns]
    return {
        "image": images,
        "im_shape": np.array(valid, np.float32),
        "scale_factor": np.full((len(valid), 2), scale, np.float32),
    }


def _lonely(ones: Detections, others: Detections) -> int:
    """How many of `ones` have no counterpart among `others`."""
    if not len(ones) or not len(others):
        return len(ones)
    same = ones.labels[:, None] == others.labels[None]
    same &= np.abs(ones.scores[:, None] - others.scores[None]) <= SCORE_TOLERANCE
    same &= np.abs(ones.boxes[:, None] - others.boxes[None]).max(axis=2) <= BOX_TOLERANCE
    return int(np.count_nonzero(~same.any(axis=1)))
