"""Describes a bundle's ONNX network as plain dicts and lists: layers, shapes, sizes, costs and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ppfcos.analysis.layers import DECODE, INPUT, Layer, Layers, Precisions, fused_names
from ppfcos.analysis.network import QUANTIZE, Network
from ppfcos.analysis.timing import layer_times, time_onnx_runtime, time_openvino
from ppfcos.deploy.bundle import ONNX, Bundle, NetworkInput
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import BundleError, ConfigError

DEFAULT_SIDE = 800  # of a bundle that does not resize
STRIDE = 32  # of height and width of a network without a fixed size


class NetworkInfo:
    """A bundle's ONNX network at one image size.

    Args:
        bundle: the bundle.
        precision: `fp32`, `fp16` or `int8`; None selects the bundle's first.
        size: (height, width) of the image; None selects the bundle's.

    Attributes:
        file: the ONNX file.
        inputs: of one run, by name: a batch of noise.

    Raises:
        BundleError: the bundle has no such network, or its file is invalid.
        ConfigError: the network does not take this size.
    """

    def __init__(self, bundle: Bundle, precision: str | None = None, size: tuple[int, int] | None = None):
        self.bundle = bundle
        self.precision = _select_precision(bundle, precision)
        self.file = bundle.onnx_network(self.precision)
        self._input = _sized_input(bundle, size)
        # Noise of a fixed seed: NMS takes more time the more boxes there are.
        noise = np.random.default_rng(0).integers(0, 256, (*self._input.size, 3), np.uint8)
        self.inputs = Preprocess(bundle.preprocess, self._input)([noise] * (self._input.batch or 1))
        self._network = Network(self.file, {name: array.shape for name, array in self.inputs.items()})
        self._layers = Layers(self._network, self._input.height)
        self._precisions = Precisions(self._network)
        self._is_quantized = any(node.op_type == QUANTIZE for node in self._network.nodes)

    def describe(self) -> dict[str, Any]:
        """Describe the network; docs/deploy.md explains the entries."""
        network, nodes = self._network, self._network.nodes
        height, width = self._input.size
        layers = [self._describe_layer(index, layer) for index, layer in enumerate(self._layers.all)]
        scales = self._head_scales()
        in_float = Counter(node.op_type for node in nodes if self._precisions.is_float(node))
        return {
            "bundle": str(self.bundle.directory),
            "kind": self.bundle.kind,
            "file": self.file.path.name,
            "file_bytes": len(self.file.content),
            "precision": self.precision,
            "opset": network.opset,
            "batch": self._input.batch or 1,
            "height": height,
            "width": width,
            "inputs": [self._describe_value(name) for name in network.inputs],
            "outputs": [
                {**self._describe_value(name), "scales": scales.get(name)} for name in network.outputs
            ],
            "operations": dict(Counter(network.operators).most_common()),
            "parameters": self._parameters(self._layers.all),
            "weight_bytes": self._weight_bytes(self._layers.all),
            "activation_bytes": sum(layer["activation_bytes"] or 0 for layer in layers),
            "multiply_adds": sum(layer["multiply_adds"] or 0 for layer in layers),
            "uncounted_layers": sum(layer["multiply_adds"] is None for layer in layers),
            "in_float": dict(in_float.most_common()) if self._is_quantized else None,
            "time": None,
            "layers": layers,
        }

    def describe_with_times(self, runtime: str, threads: int, device: str = "auto") -> dict[str, Any]:
        """Describe the network and measure its layers.

        Args:
            runtime: `onnxruntime` or `openvino`.
            threads: of the CPU.
            device: `auto`, `cpu`, `gpu`, or a name that the runtime knows.

        Raises:
            BundleError: the runtime cannot run the network.
            DeviceError: the device is not available.
            MissingLibraryError: the runtime is not installed.
        """
        if runtime == "openvino":
            nodes, device = time_openvino(self.file, self.inputs, threads, device, self.precision)
        else:
            nodes, device = time_onnx_runtime(self.file, self.inputs, threads, device)
        times = layer_times(nodes, self._network, self._layers, device)
        info = self.describe()
        for index, layer in enumerate(info["layers"]):
            layer["milliseconds"] = times.milliseconds.get(index)
            layer["devices"] = sorted(times.devices.get(index, ()))
        info["time"] = {
            "runtime": runtime,
            "device": device,
            "threads": threads,
            "milliseconds": sum(times.milliseconds.values()) + times.elsewhere,
            "elsewhere": times.elsewhere,
            "kinds_on_cpu": times.kinds_on_cpu,
        }
        return info

    def _describe_layer(self, index: int, layer: Layer) -> dict[str, Any]:
        network = self._network
        multiply_adds = [network.multiply_adds(node) for node in layer.nodes]
        output_bytes = [value.bytes for value in self._layers.stored_outputs(index)]
        in_float = Counter(node.op_type for node in layer.nodes if self._precisions.is_float(node))
        weight_scales = network.weight_scales(layer.nodes[0])
        return {
            "name": layer.name,
            "kind": layer.kind,
            "fused": fused_names(layer),
            "part": layer.part,
            "stride": layer.stride,
            "sources": layer.sources,
            "outputs": [self._describe_value(name) for name in self._layers.outputs(index)],
            "precision": self._precisions.of_layer(layer),
            "in_float": dict(in_float) if self._is_quantized else None,
            "scales": self._activation_scales(layer),
            "weight_scales": None
            if weight_scales is None
            else {"smallest": float(weight_scales.min()), "largest": float(weight_scales.max())},
            "parameters": self._parameters([layer]),
            "weight_bytes": self._weight_bytes([layer]),
            "activation_bytes": None if None in output_bytes else sum(output_bytes),
            "multiply_adds": None if None in multiply_adds else sum(multiply_adds),
            "operations": dict(Counter(node.op_type for node in layer.nodes)),
            "milliseconds": None,
            "devices": [],
        }

    def _describe_value(self, name: str) -> dict[str, Any]:
        value = self._network.value(name)
        return {"name": name, "type": value.type, "shape": None if value.shape is None else list(value.shape)}

    def _head_scales(self) -> dict[str, list[float]]:
        """The scales of integer heads, per channel, by the name of the output."""
        levels = self.bundle.heads.levels if self.bundle.heads else ()
        return {
            level.outputs[kind]: list(scales) for level in levels for kind, scales in level.scales.items()
        }

    def _activation_scales(self, layer: Layer) -> list[dict[str, Any]]:
        """Scale and zero point of each quantized activation of a layer."""
        entries = []
        for node in layer.nodes:
            if node.op_type == QUANTIZE and all(map(self._network.is_constant, node.input[1:])):
                scale, *zero_point = (self._network.array(name).reshape(-1) for name in node.input[1:3])
                zero_point = int(zero_point[0][0]) if zero_point else 0
                entries.append({"name": node.input[0], "scale": scale.tolist(), "zero_point": zero_point})
        return entries

    def _parameters(self, layers: Iterable[Layer]) -> int:
        """Number of learned parameters; shared ones count once."""
        counts: dict[str, int] = {}
        for layer in layers:
            if layer.part not in (INPUT, DECODE):
                for node in layer.nodes:
                    counts.update(self._network.parameters(node))
        return sum(counts.values())

    def _weight_bytes(self, layers: Iterable[Layer]) -> int:
        names = {name for layer in layers for node in layer.nodes for name in self._network.tensors(node)}
        return sum(self._network.value(name).bytes or 0 for name in names)


def _select_precision(bundle: Bundle, precision: str | None) -> str:
    available = bundle.networks.get(ONNX, {})
    if not available:
        raise BundleError(
            f"{bundle.directory}: has no ONNX network, only Paddle's program; export the model again with "
            "--formats paddle,onnx"
        )
    if precision is not None and precision not in available:
        raise BundleError(
            f"{bundle.directory}: has no ONNX network in {precision}; it has {', '.join(available)}: use "
            "--precision with one of these"
        )
    return precision or next(iter(available))


def _sized_input(bundle: Bundle, size: tuple[int, int] | None) -> NetworkInput:
    fixed = bundle.input.size
    if fixed is not None and size not in (None, fixed):
        raise ConfigError(
            f"--size {_joined(size)}: {bundle.directory} takes only images of {_joined(fixed)}; omit --size"
        )
    if size is not None and any(side < STRIDE or side % STRIDE for side in size):
        raise ConfigError(
            f"--size {_joined(size)}: height and width must be multiples of {STRIDE}, such as "
            f"{_joined(map(_rounded_up, size))}"
        )
    height, width = size or fixed or default_size(bundle)
    return replace(bundle.input, height=height, width=width)


def default_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width to which a bundle resizes, rounded up to multiples of STRIDE."""
    preprocess = Preprocess(bundle.preprocess, bundle.input)
    height, width = preprocess.natural_size or (DEFAULT_SIDE, DEFAULT_SIDE)
    return _rounded_up(height), _rounded_up(width)


def _rounded_up(side: int) -> int:
    return max(1, -(-side // STRIDE)) * STRIDE


def _joined(size: Iterable[int]) -> str:
    return ",".join(map(str, size))
