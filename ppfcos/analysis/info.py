"""All that there is to say of a bundle's ONNX network, as plain dicts and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ppfcos.analysis.network import QUANTIZE, Network
from ppfcos.analysis.layers import DECODE, INPUT, Layers, Precisions, fused_names, layer_precision
from ppfcos.analysis.timing import LayerTimes, layer_times, onnx_runtime_times, openvino_times
from ppfcos.deploy.bundle import ONNX, Bundle, NetworkInput
from ppfcos.deploy.preprocess import Preprocess, Resize
from ppfcos.errors import BundleError, ConfigError

NATURAL_SIDE = 800  # of a bundle that does not resize
STRIDE = 32  # heights and widths of networks of a free size are multiples of it


class NetworkInfo:
    """A bundle's network in ONNX at one size of picture.

    Args:
        bundle: that it is of.
        precision: `fp32`, `fp16` or `int8`; None: the first that the bundle has.
        size: (height, width) of the picture; None: that of the bundle.

    Attributes:
        precision: of the network.
        file: that it is in, with its content.
        form: of its `image`, with the size of the picture.
        inputs: of one run, by name: pictures of noise.

    Raises:
        BundleError: the bundle has no such network, or its file cannot be read.
        ConfigError: the network does not take this size.
    """

    def __init__(self, bundle: Bundle, precision: str | None = None, size: tuple[int, int] | None = None):
        self.bundle = bundle
        self.precision = _precision(bundle, precision)
        self.file = bundle.onnx_network(self.precision)
        self.form = _form(bundle, size)
        # Noise of a fixed seed, for time may depend on what is found.
        noise = np.random.default_rng(0).integers(0, 256, (*self.form.size, 3), np.uint8)
        self.inputs = Preprocess(bundle.preprocess, self.form)([noise] * (self.form.batch or 1))
        self._graph = Network(self.file, {name: each.shape for name, each in self.inputs.items()})
        self._layers = Layers(self._graph, self.form.height)
        self._precisions = Precisions(self._graph)
        self._is_quantised = any(node.op_type == QUANTIZE for node in self._graph.nodes)

    def figures(self) -> dict[str, Any]:
        """What the network is made of: figures that JSON can hold. docs/deploy.md says what they mean."""
        height, width = self.form.size
        layers = [self._layer(number) for number in range(len(self._layers.all))]
        return {
            "bundle": str(self.bundle.directory),
            "kind": self.bundle.kind,
            "file": self.file.path.name,
            "file_bytes": len(self.file.content),
            "precision": self.precision,
            "opset": self._graph.opset,
            "batch": self.form.batch or 1,
            "height": height,
            "width": width,
            "inputs": [self._described(name) for name in self._graph.inputs],
            "outputs": [
                {**self._described(name), "scales": self._scales().get(name)} for name in self._graph.outputs
            ],
            "operations": dict(Counter(self._graph.all_operations()).most_common()),
            "parameters": self._parameters(range(len(layers))),
            "weight_bytes": self._weight_bytes(range(len(layers))),
            "activation_bytes": sum(each["activation_bytes"] or 0 for each in layers),
            "multiply_adds": sum(each["multiply_adds"] or 0 for each in layers),
            "uncounted_layers": sum(each["multiply_adds"] is None for each in layers),
            "in_float": self._in_float() if self._is_quantised else None,
            "time": None,
            "layers": layers,
        }

    def timed_figures(self, runtime: str, threads: int, device: str = "auto") -> dict[str, Any]:
        """The same, with the time of each layer: the network is run.

        Args:
            runtime: `onnxruntime` or `openvino`.
            threads: of the CPU.
            device: `auto`, `cpu`, `gpu`, or a name that the runtime knows.

        Raises:
            BundleError: the runtime cannot run it.
            DeviceError: the device is not there.
            MissingLibraryError: the runtime is not installed.
        """
        if runtime == "openvino":
            nodes, wanted = openvino_times(self.file, self.inputs, threads, device, self.precision)
        else:
            nodes, wanted = onnx_runtime_times(self.file, self.inputs, threads, device)
        times = layer_times(nodes, self._graph, self._layers, wanted)
        figures = self.figures()
        for number, layer in enumerate(figures["layers"]):
            layer["milliseconds"] = times.milliseconds.get(number)
            layer["devices"] = sorted(times.devices.get(number, ()))
        figures["time"] = _time(times, runtime, wanted, threads)
        return figures

    def _layer(self, number: int) -> dict[str, Any]:
        layer, graph = self._layers.all[number], self._graph
        work = [graph.multiply_adds(node) for node in layer.nodes]
        stored = self._layers.stored_outputs(number)
        precision = layer_precision(layer, self._precisions)
        in_float = [node.op_type for node in layer.nodes if self._precisions.fell_back(node)]
        return {
            "name": layer.name,
            "kind": layer.kind,
            "fused": fused_names(layer),
            "part": layer.part,
            "stride": layer.stride,
            "sources": layer.sources,
            "outputs": [self._described(name) for name in self._layers.outputs(number)],
            "precision": precision,
            "in_float": dict(Counter(in_float)) if self._is_quantised else None,
            "scales": self._activation_scales(number),
            "weight_scales": self._weight_scales(number),
            "parameters": self._parameters([number]),
            "weight_bytes": self._weight_bytes([number]),
            "activation_bytes": None
            if any(each.bytes is None for each in stored)
            else sum(each.bytes for each in stored),
            "multiply_adds": None if None in work else sum(work),
            "operations": dict(Counter(node.op_type for node in layer.nodes)),
            "milliseconds": None,
            "devices": [],
        }

    def _described(self, name: str) -> dict[str, Any]:
        value = self._graph.value(name)
        shape = None if value.shape is None else list(value.shape)
        return {"name": name, "type": value.type, "shape": shape}

    def _scales(self) -> dict[str, list[float]]:
        """Of integer heads, by the name of the output: what each of its channels is multiplied by."""
        heads = self.bundle.heads
        if heads is None:
            return {}
        return {
            level.outputs[kind]: list(scales)
            for level in heads.levels
            for kind, scales in level.scales.items()
        }

    def _activation_scales(self, number: int) -> list[dict[str, Any]]:
        """What a step of each quantised value of a layer is worth, and which integer stands for 0."""
        found = []
        for node in self._layers.all[number].nodes:
            if node.op_type == QUANTIZE and all(map(self._graph.is_constant, node.input[1:])):
                scale, *zero = (self._graph.array(name) for name in node.input[1:3])
                zero_point = int(zero[0].reshape(-1)[0]) if zero else 0
                found.append(
                    {"name": node.input[0], "scale": scale.reshape(-1).tolist(), "zero_point": zero_point}
                )
        return found

    def _weight_scales(self, number: int) -> dict[str, float] | None:
        """What a step of quantised weights is worth in the channels of a layer; None of float weights."""
        scales = self._graph.kernel_scales(self._layers.all[number].nodes[0])
        if scales is None:
            return None
        return {"smallest": float(scales.min()), "largest": float(scales.max())}

    def _parameters(self, numbers: Iterable[int]) -> int:
        """Numbers that were learnt: those of the layers with weights, each once however often it is used."""
        found: dict[str, int] = {}
        for number in numbers:
            layer = self._layers.all[number]
            for node in layer.nodes if layer.part not in (INPUT, DECODE) else ():
                found.update(self._graph.parameters(node))
        return sum(found.values())

    def _weight_bytes(self, numbers: Iterable[int]) -> int:
        nodes = (node for number in numbers for node in self._layers.all[number].nodes)
        names = {name for node in nodes for name in self._graph.stored(node)}
        return sum(self._graph.value(name).bytes or 0 for name in names)

    def _in_float(self) -> dict[str, int]:
        kinds = (node.op_type for node in self._graph.nodes if self._precisions.fell_back(node))
        return dict(Counter(kinds).most_common())


def _precision(bundle: Bundle, wanted: str | None) -> str:
    there = bundle.networks.get(ONNX, {})
    if not there:
        raise BundleError(
            f"{bundle.directory}: has no ONNX network to look into, only Paddle's program; export the model "
            "again with --formats paddle,onnx"
        )
    if wanted is not None and wanted not in there:
        raise BundleError(
            f"{bundle.directory}: has no ONNX network in {wanted}; it has {', '.join(there)}, take one of "
            "these with --precision"
        )
    return wanted or next(iter(there))


def _form(bundle: Bundle, size: tuple[int, int] | None) -> NetworkInput:
    fixed = bundle.input.size
    if fixed is not None and size not in (None, fixed):
        raise ConfigError(
            f"--size {_joined(size)}: {bundle.directory} takes pictures of {_joined(fixed)} alone; "
            "leave --size out"
        )
    if size is not None and any(side < STRIDE or side % STRIDE for side in size):
        raise ConfigError(
            f"--size {_joined(size)}: height and width are multiples of {STRIDE}, such as "
            f"{_joined(map(_rounded_up, size))}"
        )
    height, width = size or fixed or natural_size(bundle)
    return replace(bundle.input, height=height, width=width)


def natural_size(bundle: Bundle) -> tuple[int, int]:
    """The largest picture that a network of a free size gets: what its bundle resizes to, and pads.

    Args:
        bundle: its description.

    Returns:
        Height and width, multiples of STRIDE.
    """
    steps = Preprocess(bundle.preprocess, bundle.input).steps
    targets = [step.target_size for step in steps if isinstance(step, Resize)]
    height, width = targets[-1] if targets else (NATURAL_SIDE, NATURAL_SIDE)
    return _rounded_up(height), _rounded_up(width)


def _rounded_up(side: int) -> int:
    return max(1, -(-side // STRIDE)) * STRIDE


def _joined(size: Iterable[int]) -> str:
    return ",".join(map(str, size))


def _time(times: LayerTimes, runtime: str, device: str, threads: int) -> Mapping[str, Any]:
    return {
        "runtime": runtime,
        "device": device,
        "threads": threads,
        "milliseconds": sum(times.milliseconds.values()) + times.elsewhere,
        "elsewhere": times.elsewhere,
        "kinds_on_cpu": times.kinds_on_cpu,
    }
