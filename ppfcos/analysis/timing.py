"""Time per layer of an ONNX network, from the profile of ONNX Runtime or the counters of OpenVINO."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from ppfcos.analysis.layers import Layers
from ppfcos.analysis.network import Network
from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.deploy.runtimes.onnx_runtime import CPU_PROVIDER, open_session
from ppfcos.deploy.runtimes.openvino import compile_network
from ppfcos.errors import BundleError, one_line

WARM_UP_RUNS, MIN_RUNS, MAX_RUNS, MAX_SECONDS = 1, 3, 20, 3.0
KERNEL_SUFFIX = "_kernel_time"  # of ONNX Runtime's events
# Suffixes that the runtimes add to the names of nodes that they rewrite.
REWRITTEN = re.compile(r"(_nchwc|_token_\d+|_quant|/duplicated|/WithoutBiases)+$")


class NodeTime(NamedTuple):
    """Time of a node of the runtime's optimized network.

    Attributes:
        operator: in the runtime's words.
        names: of the original nodes or values it may stand for, the most specific first.
        outputs: names by which later nodes refer to it.
        milliseconds: of a run.
        device: on which it ran.
    """

    operator: str
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    milliseconds: float
    device: str


@dataclass
class LayerTimes:
    """Times of the layers by index; a layer that was fused into another has none.

    Attributes:
        milliseconds: of each layer.
        elsewhere: milliseconds of nodes that belong to no layer.
        devices: on which each layer ran.
        kinds_on_cpu: number of nodes of each operator that ran on the CPU instead of the selected device.
    """

    milliseconds: dict[int, float] = field(default_factory=dict)
    elsewhere: float = 0.0
    devices: dict[int, set[str]] = field(default_factory=dict)
    kinds_on_cpu: dict[str, int] = field(default_factory=dict)


def time_onnx_runtime(
    file: OnnxFile, inputs: Mapping[str, np.ndarray], threads: int, device: str
) -> tuple[list[NodeTime], str]:
    """Run a network with ONNX Runtime's profiler.

    Returns:
        The median time of each node, and the selected execution provider.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = open_session(
            file,
            threads,
            device,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder) / "profile"),
            optimized_model_filepath=str(optimized),
        )
        feeds = {each.name: inputs[each.name] for each in session.get_inputs()}
        _repeat(lambda: session.run(None, feeds), file.path)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = onnx.load(optimized, load_external_data=False).graph.node
    runs: dict[str, list[float]] = {}
    providers: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL_SUFFIX):
            name = event["name"].removesuffix(KERNEL_SUFFIX)
            runs.setdefault(name, []).append(event["dur"] / 1000)
            providers[name] = event["args"].get("provider", "")
    times = [
        NodeTime(
            node.op_type,
            (_original_name(node.name), *node.output, *node.input),
            tuple(node.output),
            statistics.median(runs[node.name][WARM_UP_RUNS:] or runs[node.name]),
            providers[node.name],
        )
        for node in nodes
        if node.name in runs
    ]
    return times, session.get_providers()[0]


def time_openvino(
    file: OnnxFile, inputs: Mapping[str, np.ndarray], threads: int, device: str, precision: str
) -> tuple[list[NodeTime], str]:
    """Run a network with OpenVINO's performance counters.

    Returns:
        The mean time of each node, and the device.
    """
    compiled = compile_network(file, threads, device, precision, PERF_COUNT=True)
    feeds = {name: inputs[name] for name in (each.get_any_name() for each in compiled.inputs)}
    request = compiled.create_infer_request()
    _repeat(lambda: request.infer(feeds), file.path)
    device = ",".join(compiled.get_property("EXECUTION_DEVICES"))
    times = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        name, microseconds = node.get_friendly_name(), info.get("execTimeMcs", "not_executed")
        sources = [node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())]
        originals = [each for each in info.get("originalLayersNames", "").split(",") if each]
        names = tuple(map(_original_name, (*originals, name, *sources)))
        milliseconds = 0.0 if microseconds == "not_executed" else float(microseconds) / 1000
        outputs = (_original_name(name),)
        times.append(NodeTime(info.get("layerType", ""), names, outputs, milliseconds, device))
    return times, device


def layer_times(nodes: Iterable[NodeTime], network: Network, layers: Layers, device: str) -> LayerTimes:
    """Sum the times of nodes, in the order in which they run, by layer.

    A node that the runtime has added, such as a reorder, belongs to the layer of its input.

    Args:
        nodes: of the runtime.
        network: the original network.
        layers: of the network.
        device: the selected one.
    """
    owners = dict(layers.of_value)
    owners.update({node.name: layers.of_value[node.output[0]] for node in network.nodes if node.name})
    times = LayerTimes()
    for node in nodes:
        index = next((owners[name] for name in node.names if name in owners), None)
        if node.device == CPU_PROVIDER != device:
            times.kinds_on_cpu[node.operator] = times.kinds_on_cpu.get(node.operator, 0) + 1
        if index is None:
            times.elsewhere += node.milliseconds
            continue
        for name in node.outputs:
            owners.setdefault(name, index)
        if node.milliseconds:
            times.milliseconds[index] = times.milliseconds.get(index, 0.0) + node.milliseconds
            times.devices.setdefault(index, set()).add(node.device)
    return times


def _original_name(name: str) -> str:
    return REWRITTEN.sub("", name)


def _repeat(run: Callable[[], Any], path: Path) -> None:
    """Warm up, then run until MAX_RUNS or MAX_SECONDS, but at least MIN_RUNS times."""
    try:
        for _ in range(WARM_UP_RUNS):
            run()
        start, runs = time.perf_counter(), 0
        while runs < MIN_RUNS or (runs < MAX_RUNS and time.perf_counter() - start < MAX_SECONDS):
            run()
            runs += 1
    except Exception as error:  # the runtimes raise errors of many types
        raise BundleError(f"{path}: the runtime stopped ({one_line(error)})") from error
