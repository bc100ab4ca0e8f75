"""A network's answers as boxes, whatever kind of network a bundle holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ppfcos.deploy.bundle import BBOX, BBOX_NUM, IM_SHAPE, IMAGE, SCALE_FACTOR, Bundle
from ppfcos.deploy.postprocess import HeadsDecoder


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
    """

    def __init__(self, network: Network):
        self.network = network

    def forward(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first part of `run`: the network's outputs by name."""
        return self.network.run({name: inputs[name] for name in self.network.input_names})

    def boxes(
        self, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second part of `run`: what it returns, of the outputs of `forward` for these inputs."""
        return outputs[BBOX], outputs[BBOX_NUM]

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch.

        Args:
            inputs: image as the network takes it, im_shape [B, 2] and scale_factor [B, 2], float32.

        Returns:
            bbox [N, 6] (label, score, x0, y0, x1, y1 in pixels of the original images) and bbox_num [B].
        """
        return self.boxes(self.forward(inputs), inputs)


class DecodedHeads:
    """A network whose outputs are the head's, decoded here.

    Args:
        network: of the kind `heads`.
        bundle: that it is of.
    """

    def __init__(self, network: Network, bundle: Bundle):
        self.network = network
        self.form = bundle.input
        self.decoder = HeadsDecoder(bundle.heads, bundle.postprocess)

    def forward(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first part of `run`: the network's outputs by name."""
        return self.network.run({name: inputs[name] for name in self.network.input_names})

    def boxes(
        self, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second part of `run`: decoding and suppression of the outputs of `forward` for these inputs."""
        size = self.form.picture_size(inputs[IMAGE].shape)
        return self.decoder(outputs, size, inputs[IM_SHAPE], inputs[SCALE_FACTOR])

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch; arguments and result as of `EndToEnd.run`."""
        return self.boxes(self.forward(inputs), inputs)
