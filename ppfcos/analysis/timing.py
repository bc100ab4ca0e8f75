"""How long each layer of an exported network takes, as the runtime itself measures it."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from ppfcos.analysis.network import Network
from ppfcos.analysis.layers import Layers
from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.deploy.runtimes.onnx_runtime import CPU_PROVIDER, open_session
from ppfcos.deploy.runtimes.openvino import compile_network
from ppfcos.errors import BundleError, one_line

WARM_UP, LEAST_RUNS, MOST_RUNS, ENOUGH_SECONDS = 1, 3, 20, 3.0
KERNEL = "_kernel_time"
# What ONNX Runtime and OpenVINO put behind the names of what they rewrote.
REWRITTEN = re.compile(r"(_nchwc|_token_\d+|_quant|/duplicated|/WithoutBiases)+$")
NOT_EXECUTED = "not_executed"


class NodeTime(NamedTuple):
    """What a runtime says of a node of the network that it made of ours.

    Attributes:
        kind: of the operation, in the runtime's words.
        names: of nodes or values of ours that it may stand for, the most telling first.
        makes: names that later nodes may know it by.
        milliseconds: a run.
        device: where it ran.
    """

    kind: str
    names: tuple[str, ...]
    makes: tuple[str, ...]
    milliseconds: float
    device: str


@dataclass
class LayerTimes:
    """How long the layers take.

    Attributes:
        milliseconds: of each layer, by its number; a layer that was fused into another one is not in it.
        elsewhere: milliseconds of what belongs to no layer.
        devices: by the number of the layer, the names of the devices that it ran on.
        kinds_on_cpu: of nodes that the wanted device did not take, how many of each kind run on the CPU.
    """

    milliseconds: dict[int, float] = field(default_factory=dict)
    elsewhere: float = 0.0
    devices: dict[int, set[str]] = field(default_factory=dict)
    kinds_on_cpu: dict[str, int] = field(default_factory=dict)


def onnx_runtime_times(
    file: OnnxFile, inputs: Mapping[str, np.ndarray], threads: int, device: str
) -> tuple[list[NodeTime], str]:
    """Run a network in ONNX Runtime with its profiler.

    Args:
        file: the ONNX file.
        inputs: of one run.
        threads: of the CPU.
        device: as for `ppfcos.deploy.runtimes.onnx_runtime.OnnxRuntime`.

    Returns:
        Median times of the nodes, and the provider that was to run them.

    Raises:
        BundleError: it cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "rewritten.onnx"
        session = open_session(
            file,
            threads,
            device,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder) / "profile"),
            optimized_model_filepath=str(rewritten),
        )
        taken = {each.name: inputs[each.name] for each in session.get_inputs()}
        _repeat(lambda: session.run(None, taken), file.path)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = onnx.load(rewritten, load_external_data=False).graph.node
    return node_times(events, nodes), session.get_providers()[0]


def node_times(events: Iterable[Mapping[str, Any]], nodes: Iterable[onnx.NodeProto]) -> list[NodeTime]:
    """Put together what ONNX Runtime's profiler wrote and the network that it ran.

    Args:
        events: of the profiler's file.
        nodes: of the rewritten network, in their order.

    Returns:
        Median times, the first run left out.
    """
    runs: dict[str, list[float]] = {}
    providers: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            name = event["name"][: -len(KERNEL)]
            runs.setdefault(name, []).append(event["dur"] / 1000)
            providers[name] = event["args"].get("provider", "")
    return [
        NodeTime(
            node.op_type,
            (_plain(node.name), *node.output, *node.input),
            tuple(node.output),
            statistics.median(runs[node.name][WARM_UP:] or runs[node.name]),
            providers[node.name],
        )
        for node in nodes
        if node.name in runs
    ]


def openvino_times(
    file: OnnxFile, inputs: Mapping[str, np.ndarray], threads: int, device: str, precision: str
) -> tuple[list[NodeTime], str]:
    """Run a network in OpenVINO with its counters.

    Args:
        file: the ONNX file.
        inputs: of one run.
        threads: of the CPU.
        device: as for `ppfcos.deploy.runtimes.openvino.OpenVinoRuntime`.
        precision: likewise.

    Returns:
        Mean times of the nodes, and the device that ran them.

    Raises:
        BundleError: it cannot be loaded or run.
    """
    compiled = compile_network(file, threads, device, precision, PERF_COUNT=True)
    taken = {name: inputs[name] for name in (each.get_any_name() for each in compiled.inputs)}
    request = compiled.create_infer_request()
    _repeat(lambda: request.infer(taken), file.path)
    ran_on = ",".join(compiled.get_property("EXECUTION_DEVICES"))
    return list(_openvino_nodes(compiled.get_runtime_model(), ran_on)), ran_on


def _openvino_nodes(model: Any, device: str) -> Iterator[NodeTime]:
    for node in model.get_ordered_ops():
        says = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        name, spent = node.get_friendly_name(), says.get("execTimeMcs", NOT_EXECUTED)
        before = [node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())]
        originals = [each for each in says.get("originalLayersNames", "").split(",") if each]
        milliseconds = 0.0 if spent == NOT_EXECUTED else float(spent) / 1000
        names = tuple(map(_plain, (*originals, name, *before)))
        yield NodeTime(says.get("layerType", ""), names, (_plain(name),), milliseconds, device)


def layer_times(nodes: Iterable[NodeTime], graph: Network, layers: Layers, wanted: str) -> LayerTimes:
    """Share out the time of a runtime's nodes among the layers.

    A node that a runtime added, such as one that reorders channels, goes to the layer that it takes its input
    from.

    Args:
        nodes: in the order in which they run.
        graph: the network.
        layers: of it.
        wanted: device that was to run everything.

    Returns:
        The times.
    """
    owners = dict(layers.of_value)
    owners.update({node.name: layers.of_value[node.output[0]] for node in graph.nodes if node.name})
    times = LayerTimes()
    for node in nodes:
        number = next((owners[name] for name in node.names if name in owners), None)
        if number is not None:
            for name in node.makes:
                owners.setdefault(name, number)
        if node.device == CPU_PROVIDER != wanted:
            times.kinds_on_cpu[node.kind] = times.kinds_on_cpu.get(node.kind, 0) + 1
        if number is None:
            times.elsewhere += node.milliseconds
        elif node.milliseconds:
            times.milliseconds[number] = times.milliseconds.get(number, 0.0) + node.milliseconds
            times.devices.setdefault(number, set()).add(node.device)
    return times


def _plain(name: str) -> str:
    return REWRITTEN.sub("", name)


def _repeat(run: Callable[[], Any], file: Path) -> None:
    """Run it as often as it takes for times that can be trusted, and not for long."""
    try:
        for _ in range(WARM_UP):
            run()
        begun, done = time.perf_counter(), 0
        while done < LEAST_RUNS or (done < MOST_RUNS and time.perf_counter() - begun < ENOUGH_SECONDS):
            run()
            done += 1
    except Exception as error:  # of the runtimes, without a type in common
        raise BundleError(f"{file}: the runtime stopped ({one_line(error)})") from error
