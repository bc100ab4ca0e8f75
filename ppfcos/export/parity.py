"""Parity check: does an exported network output the boxes of the model?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from ppfcos.deploy.bundle import IM_SHAPE, IMAGE, SCALE_FACTOR, NetworkInput
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.deploy.networks import Runtime
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.export.program import pixels_layer

NUM_BATCHES = 3
NOISE_SIZE = 256, 320
NOISE_SCALE = 0.75
NOISE_BLOCK = 32


@dataclass(frozen=True)
class Tolerance:
    """How much two outputs may differ: coordinates in pixels, scores, and the fraction of unmatched boxes.

    NMS may swap candidates whose scores differ by less than the rounding, and a score may fall below the
    threshold. That affects single boxes, whereas a wrong graph changes all.
    """

    boxes: float
    scores: float
    unmatched: float = 0.05


TOLERANCES = {
    "fp32": Tolerance(1e-2, 1e-4),
    "fp16": Tolerance(0.5, 1e-2),
    # The quantization measures how good INT8 is. With a wrong graph, nearly all boxes differ.
    "int8": Tolerance(16, 0.1, unmatched=0.5),
}


@dataclass(frozen=True)
class ParityCheck:
    """Number of boxes of both networks, how many of them the other one lacks, and how many it may lack."""

    boxes: int
    unmatched: int
    tolerated: float

    @property
    def holds(self) -> bool:
        """Whether the outputs are equal within the tolerance."""
        return self.unmatched <= self.tolerated


class ExportedInputRuntime:
    """Gives a runtime for [B, 3, H, W] RGB float32 the input of an exported network."""

    def __init__(self, input_spec: NetworkInput, runtime: Runtime):
        self.pixels = pixels_layer(input_spec)
        self.runtime = runtime

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch."""
        image = self.pixels(paddle.to_tensor(inputs[IMAGE])).numpy()
        return self.runtime.run({**inputs, IMAGE: image})


def compare(
    reference: Runtime,
    candidate: Runtime,
    batches: Sequence[Mapping[str, np.ndarray]],
    tolerance: Tolerance = TOLERANCES["fp32"],
) -> ParityCheck:
    """Run two networks on the same batches, and match their boxes by label, score and coordinates."""
    boxes = unmatched = 0
    for batch in batches:
        pairs = zip(split_batch(*reference.run(batch), ()), split_batch(*candidate.run(batch), ()))
        for expected, found in pairs:
            boxes += len(expected) + len(found)
            unmatched += _count_unmatched(expected, found, tolerance)
            unmatched += _count_unmatched(found, expected, tolerance)
    return ParityCheck(boxes, unmatched, max(1.0, tolerance.unmatched * boxes))


class CachedRuntime:
    """A runtime that runs each batch once. The batches must outlive it."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self._outputs: dict[int, tuple] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch."""
        if id(inputs) not in self._outputs:
            self._outputs[id(inputs)] = self.runtime.run(inputs)
        return self._outputs[id(inputs)]


def image_batches(preprocess: Preprocess, images: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """`NUM_BATCHES` alternating batches of 1 and 2 images, or of the network's fixed size; images repeat."""
    first = 0
    for number in range(NUM_BATCHES):
        count = preprocess.input_spec.batch or 1 + number % 2
        yield preprocess([images[(first + i) % len(images)] for i in range(count)])
        first += count


def noise_batches(input_spec: NetworkInput, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """`NUM_BATCHES` batches of coarse blocks with fine noise, of different sizes, with a scale factor."""
    random = np.random.default_rng(seed)
    height, width = input_spec.size or NOISE_SIZE
    sizes = (height, width), (height * 3 // 4, width), (height, width * 3 // 4)
    images = [_noise(random, *size) for size in sizes]
    preprocess = Preprocess([{"type": "PadStride", "stride": NOISE_BLOCK}], input_spec)
    for batch in image_batches(preprocess, images):
        yield {**batch, SCALE_FACTOR: batch[SCALE_FACTOR] * np.float32(NOISE_SCALE)}


def without_padding(input_spec: NetworkInput, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch as a network without im_shape sees it: the padding is part of the images."""
    size = input_spec.image_size(batch[IMAGE].shape)
    return {**batch, IM_SHAPE: np.full_like(batch[IM_SHAPE], size)}


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    blocks = random.uniform(0, 255, (-(-height // NOISE_BLOCK), -(-width // NOISE_BLOCK), 3))
    blocks = blocks.repeat(NOISE_BLOCK, axis=0).repeat(NOISE_BLOCK, axis=1)[:height, :width]
    return np.clip(blocks + random.normal(0, 20, blocks.shape), 0, 255).round().astype(np.uint8)


def _count_unmatched(boxes: Detections, others: Detections, tolerance: Tolerance) -> int:
    """How many detections have no match among `others`."""
    if not len(boxes) or not len(others):
        return len(boxes)
    is_match = boxes.labels[:, None] == others.labels[None]
    is_match &= np.abs(boxes.scores[:, None] - others.scores[None]) <= tolerance.scores
    is_match &= np.abs(boxes.boxes[:, None] - others.boxes[None]).max(axis=2) <= tolerance.boxes
    return int(np.count_nonzero(~is_match.any(axis=1)))
