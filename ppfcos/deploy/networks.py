"""A network's answers as boxes, whatever kind of network a bundle holds."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ppfcos.deploy.bundle import BBOX, BBOX_NUM, IM_SHAPE, IMAGE, INPUTS, SCALE_FACTOR, Bundle
from ppfcos.deploy.heads_decoder import LABEL, SCORE, HeadsDecoder
from ppfcos.errors import BundleError

MOST_SCORE = 1.001  # float16 may round a score up


class Network(Protocol):
    """A bundle's network in some library."""

    input_names: tuple[str, ...]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """From the inputs that it takes to its outputs by name."""


class Runtime(Protocol):
    """What finds boxes in a batch: a bundle's network in some library, or a checkpoint's."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """From image, im_shape and scale_factor to bbox [N, 6] and bbox_num [B]."""


class EndToEnd:
    """A network whose outputs are boxes.

    Args:
        network: of the kind `end_to_end`.
        bundle: that it is of.

    Raises:
        BundleError: the network takes an input that no image has.
    """

    def __init__(self, network: Network, bundle: Bundle):
        _check_inputs(network, bundle)
        self.network = network
        self.bundle = bundle

    def forward(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first part of `run`: the network's outputs by name."""
        return self.network.run({name: inputs[name] for name in self.network.input_names})

    def boxes(
        self, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second part of `run`: what it returns, of the outputs of `forward` for these inputs."""
        try:
            return checked_boxes(outputs, len(inputs[IM_SHAPE]), len(self.bundle.class_names))
        except BundleError as error:
            raise BundleError(f"{self.bundle.directory}: {error}; export the bundle again") from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch.

        Args:
            inputs: image as the network takes it, im_shape [B, 2] and scale_factor [B, 2], float32.

        Returns:
            bbox [N, 6] (label, score, x0, y0, x1, y1 in pixels of the original images) and bbox_num [B].

        Raises:
            BundleError: the outputs are not of that form, or hold labels that are no class.
        """
        return self.boxes(self.forward(inputs), inputs)


class DecodedHeads:
    """A network whose outputs are the head's, decoded here.

    Args:
        network: of the kind `heads`.
        bundle: that it is of.

    Raises:
        BundleError: the network takes an input that no image has.
    """

    def __init__(self, network: Network, bundle: Bundle):
        _check_inputs(network, bundle)
        self.network = network
        self.bundle = bundle
        self.decoder = HeadsDecoder(bundle.heads, bundle.postprocess, len(bundle.class_names))

    def forward(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first part of `run`: the network's outputs by name."""
        return self.network.run({name: inputs[name] for name in self.network.input_names})

    def boxes(
        self, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second part of `run`: decoding and suppression of the outputs of `forward` for these inputs."""
        size = self.bundle.input.picture_size(inputs[IMAGE].shape)
        try:
            return self.decoder(outputs, size, inputs[IM_SHAPE], inputs[SCALE_FACTOR])
        except BundleError as error:
            raise BundleError(f"{self.bundle.directory}: {error}") from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch; arguments and result as of `BundleNetwork.run`."""
        return self.boxes(self.forward(inputs), inputs)


def checked_boxes(
    outputs: Mapping[str, np.ndarray], images: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """bbox [N, 6] and bbox_num [B] of a network's outputs.

    Args:
        outputs: by name.
        images: B, of the batch.
        num_classes: C; labels are whole numbers below it.

    Raises:
        BundleError: an output is missing, or is not of that form.
    """
    for name in (BBOX, BBOX_NUM):
        if not isinstance(outputs.get(name), np.ndarray):
            raise BundleError(f"the network has no output {name} that is an array")
    bbox, counts = outputs[BBOX], outputs[BBOX_NUM].reshape(-1)
    if bbox.dtype.kind != "f" or (bbox.size and (bbox.ndim != 2 or bbox.shape[1] != 6)):
        raise BundleError(
            f"the network's output {BBOX} is {bbox.dtype} {list(bbox.shape)}, not floats [N, 6]"
        )
    rows = len(bbox) if bbox.size else 0
    if (
        counts.dtype.kind not in "iu"
        or len(counts) != images
        or (counts > rows).any()
        or (counts < 0).any()
        or sum(counts.tolist()) != rows
    ):
        raise BundleError(
            f"the network's output {BBOX_NUM} is not {images} whole numbers that add up to the {rows} rows "
            f"of {BBOX}"
        )
    bbox = bbox.reshape(-1, 6)
    if not np.isfinite(bbox).all():
        raise BundleError(f"the network's output {BBOX} holds NaN or infinity")
    labels, scores = bbox[:, LABEL], bbox[:, SCORE]
    if (labels < 0).any() or (labels >= num_classes).any() or (labels != np.floor(labels)).any():
        raise BundleError(f"the network's output {BBOX} holds labels other than 0 to {num_classes - 1}")
    if (scores < 0).any() or (scores > MOST_SCORE).any():
        raise BundleError(f"the network's output {BBOX} holds scores other than from 0 to 1")
    return bbox, counts


def _check_inputs(network: Network, bundle: Bundle) -> None:
    unknown = [name for name in network.input_names if name not in INPUTS]
    if unknown:
        raise BundleError(
            f"{bundle.directory}: the network takes {reprlib.repr(unknown[0])}, and a network takes "
            f"{', '.join(INPUTS)} alone; export the bundle again"
        )
