"""A bundle's network from inputs to boxes, whichever kind of network the bundle holds."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ppfcos.deploy.bundle import BBOX, BBOX_NUM, HEADS, IM_SHAPE, IMAGE, INPUTS, SCALE_FACTOR, Bundle
from ppfcos.deploy.heads_decoder import LABEL, SCORE, HeadsDecoder
from ppfcos.errors import BundleError

MAX_SCORE = 1.001  # float16 may round a score up


class Network(Protocol):
    """A network in one of the runtimes."""

    input_names: tuple[str, ...]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs by name from the inputs in `input_names`."""


class Runtime(Protocol):
    """What detects objects in a batch: a bundle's network, or a checkpoint's model."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Compute bbox [N, 6] and bbox_num [B] from image, im_shape and scale_factor."""


class BundleNetwork:
    """A bundle's network with the decoding of its outputs, if these are not boxes.

    Args:
        network: the network in a runtime.
        bundle: the bundle it belongs to.

    Raises:
        BundleError: the network has an unknown input.
    """

    def __init__(self, network: Network, bundle: Bundle):
        unknown = [name for name in network.input_names if name not in INPUTS]
        if unknown:
            raise BundleError(
                f"{bundle.directory}: the network has the unknown input {reprlib.repr(unknown[0])}, "
                f"not {', '.join(INPUTS)} alone; export the bundle again"
            )
        self.network = network
        self.bundle = bundle
        self.decoder = None
        if bundle.kind == HEADS:
            self.decoder = HeadsDecoder(bundle.heads, bundle.postprocess, len(bundle.class_names))

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch.

        Args:
            inputs: image in the form the network takes, im_shape [B, 2] and scale_factor [B, 2], float32.

        Returns:
            bbox [N, 6] (label, score, x0, y0, x1, y1 in pixels of the original images) and bbox_num [B].

        Raises:
            BundleError: the outputs have another form, or values that no detection has.
        """
        return self.boxes(self.forward(inputs), inputs)

    def forward(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first stage of `run`: the network's outputs by name."""
        return self.network.run({name: inputs[name] for name in self.network.input_names})

    def boxes(
        self, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second stage of `run`: the boxes from the outputs of `forward` for these inputs."""
        try:
            if self.decoder is None:
                return check_boxes(outputs, len(inputs[IM_SHAPE]), len(self.bundle.class_names))
            size = self.bundle.input.image_size(inputs[IMAGE].shape)
            return self.decoder(outputs, size, inputs[IM_SHAPE], inputs[SCALE_FACTOR])
        except BundleError as error:
            raise BundleError(f"{self.bundle.directory}: {error}") from error


def check_boxes(
    outputs: Mapping[str, np.ndarray], batch: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """bbox [N, 6] and bbox_num [B] from a network's outputs; a `BundleError` if they are anything else."""

    def check(is_valid: bool, problem: str) -> None:
        if not is_valid:
            raise BundleError(f"the network's output {problem}; export the bundle again")

    for name in (BBOX, BBOX_NUM):
        check(isinstance(outputs.get(name), np.ndarray), f"{name} is missing or no array")
    bbox, counts = outputs[BBOX], outputs[BBOX_NUM].reshape(-1)
    is_table = not bbox.size or (bbox.ndim == 2 and bbox.shape[1] == 6)
    check(
        bbox.dtype.kind == "f" and is_table, f"{BBOX} is {bbox.dtype} {list(bbox.shape)}, not floats [N, 6]"
    )
    num_rows = len(bbox) if bbox.size else 0
    is_count = counts.dtype.kind in "iu" and ((counts >= 0) & (counts <= num_rows)).all()
    check(
        is_count and len(counts) == batch and sum(counts.tolist()) == num_rows,
        f"{BBOX_NUM} is not {batch} whole numbers with the sum {num_rows}, the rows of {BBOX}",
    )
    bbox = bbox.reshape(-1, 6)
    check(np.isfinite(bbox).all(), f"{BBOX} holds NaN or infinity")
    labels, scores = bbox[:, LABEL], bbox[:, SCORE]
    is_label = (labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))
    check(is_label.all(), f"{BBOX} holds labels other than 0 to {num_classes - 1}")
    check(((scores >= 0) & (scores <= MAX_SCORE)).all(), f"{BBOX} holds scores outside 0 to 1")
    return bbox, counts
