"""Whether an exported network says what the model said before the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from ppfcos.deploy.bundle import IM_SHAPE, IMAGE, SCALE_FACTOR, NetworkInput
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.deploy.networks import Runtime
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.export.program import image_layer

RUNS = 3
NOISE_SIZE = 256, 320
NOISE_SCALE = 0.75
NOISE_BLOCK = 32


@dataclass(frozen=True)
class Tolerance:
    """How far two answers may be apart.

    Attributes:
        boxes: pixels that a side may be off.
        scores: that a score may be off.
        share: of the boxes that may have no counterpart. Two candidates whose scores differ by less than the
            rounding may change places in the NMS, and a score may fall on the other side of the threshold.
            That costs single boxes, whereas a wrong graph moves all.
    """

    boxes: float
    scores: float
    share: float = 0.05


TOLERANCES = {
    "fp32": Tolerance(1e-2, 1e-4),
    "fp16": Tolerance(0.5, 1e-2),
    # How good INT8 is the quantisation measures and says. A network that is not the model's loses nearly all.
    "int8": Tolerance(16, 0.1, share=0.5),
}


@dataclass(frozen=True)
class Agreement:
    """How two runs compare.

    Attributes:
        boxes: found by either.
        unmatched: those of them that the other did not find.
        tolerated: number of these at the most.
    """

    boxes: int
    unmatched: int
    tolerated: float

    @property
    def holds(self) -> bool:
        """Whether no more than single boxes differ."""
        return self.unmatched <= self.tolerated


class PixelsFirst:
    """A model that takes images as its exported network does.

    Args:
        form: of the network's input.
        model: what takes [B, 3, H, W], red first.
    """

    def __init__(self, form: NetworkInput, model: Runtime):
        self.pixels = image_layer(form)
        self.model = model

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch that is in the network's form."""
        image = self.pixels(paddle.to_tensor(inputs[IMAGE])).numpy()
        return self.model.run({**inputs, IMAGE: image})


def compare(
    reference: Runtime,
    candidate: Runtime,
    batches: Sequence[dict[str, np.ndarray]],
    tolerance: Tolerance = TOLERANCES["fp32"],
) -> Agreement:
    """Run two networks on the same batches and match their boxes by label, score and place.

    Args:
        reference: the model.
        candidate: its export.
        batches: network inputs.
        tolerance: how near is the same.

    Returns:
        The counts over all batches.
    """
    boxes = unmatched = 0
    for batch in batches:
        pairs = zip(split_batch(*reference.run(batch), ()), split_batch(*candidate.run(batch), ()))
        for expected, found in pairs:
            boxes += len(expected) + len(found)
            unmatched += _lonely(expected, found, tolerance) + _lonely(found, expected, tolerance)
    return Agreement(boxes, unmatched, max(1.0, tolerance.share * boxes))


class Remembering:
    """A runtime that answers a batch a second time without running it.

    Args:
        runtime: what answers the first time.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self._answers: dict[int, tuple] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch, which must live as long as this."""
        if id(inputs) not in self._answers:
            self._answers[id(inputs)] = self.runtime.run(inputs)
        return self._answers[id(inputs)]


def picture_batches(
    preprocess: Preprocess, pictures: Sequence[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Pictures as a network's batches of one and of two images, or of as many as it takes.

    Args:
        preprocess: of the bundle.
        pictures: [H, W, 3] uint8, blue first; at least one.

    Yields:
        `RUNS` batches; the pictures come round again where there are too few.
    """
    position = 0
    for run in range(RUNS):
        count = preprocess.form.batch or 1 + run % 2
        yield preprocess([pictures[(position + i) % len(pictures)] for i in range(count)])
        position += count


def noise_batches(form: NetworkInput, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches that a detector may have something to say about: coarse blocks under fine noise.

    Args:
        form: of the network's input.
        seed: of the noise.

    Yields:
        `RUNS` batches of images of different sizes, as if they had been made smaller.
    """
    random = np.random.default_rng(seed)
    height, width = form.size or NOISE_SIZE
    sizes = (height, width), (height * 3 // 4, width), (height, width * 3 // 4)
    pictures = [_noise(random, *size) for size in sizes]
    for batch in picture_batches(Preprocess([{"type": "PadStride", "stride": NOISE_BLOCK}], form), pictures):
        yield {**batch, SCALE_FACTOR: batch[SCALE_FACTOR] * np.float32(NOISE_SCALE)}


def filled(form: NetworkInput, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch of a network that cannot tell padding from picture: the pictures fill it."""
    size = form.picture_size(batch[IMAGE].shape)
    return {**batch, IM_SHAPE: np.full_like(batch[IM_SHAPE], size)}


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    blocks = random.uniform(0, 255, (-(-height // NOISE_BLOCK), -(-width // NOISE_BLOCK), 3))
    blocks = blocks.repeat(NOISE_BLOCK, axis=0).repeat(NOISE_BLOCK, axis=1)[:height, :width]
    return np.clip(blocks + random.normal(0, 20, blocks.shape), 0, 255).round().astype(np.uint8)


def _lonely(ones: Detections, others: Detections, tolerance: Tolerance) -> int:
    """How many of `ones` have no counterpart among `others`."""
    if not len(ones) or not len(others):
        return len(ones)
    same = ones.labels[:, None] == others.labels[None]
    same &= np.abs(ones.scores[:, None] - others.scores[None]) <= tolerance.scores
    same &= np.abs(ones.boxes[:, None] - others.boxes[None]).max(axis=2) <= tolerance.boxes
    return int(np.count_nonzero(~same.any(axis=1)))
