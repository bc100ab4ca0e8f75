"""Compare the networks of a bundle with the peak speed of the machine, in each runtime and precision.

    python benchmarks/network_speed.py output_inference/fcos_r50_fpn_1x_coco

The peak is the speed of the most frequent convolution in FCOS (3×3, 256 to 256 channels, 100×168) in float32,
in the faster one of ONNX Runtime and OpenVINO. Networks and convolutions alternate in one process, on random
pixels. MACs are counted as by `ppfcos model-info`. The time includes decoding and NMS, which have next to no
MACs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
from machine import day_and_machine
from onnx import TensorProto, helper, numpy_helper

from ppfcos.analysis.info import NetworkInfo
from ppfcos.deploy.bundle import PRECISIONS, Bundle, read_bundle
from ppfcos.deploy.onnx_files import read_onnx
from ppfcos.deploy.runtimes.choice import LIBRARIES, default_threads, open_network
from ppfcos.deploy.runtimes.onnx_runtime import OnnxRuntime
from ppfcos.deploy.runtimes.openvino import OpenVinoRuntime
from ppfcos.errors import PPFCOSError

CHANNELS, HEIGHT, WIDTH, KERNEL = 256, 100, 168, 3
CONVOLUTION = CHANNELS * CHANNELS * KERNEL * KERNEL * HEIGHT * WIDTH  # multiply-adds
WARM_UP = 2
PAUSE = 0.25  # Paddle's threads spin for that long


def write_convolution(file: Path) -> np.ndarray:
    """Write a network of one convolution, and return its input."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal([CHANNELS, CHANNELS, KERNEL, KERNEL]).astype("float32")
    shape = [1, CHANNELS, HEIGHT, WIDTH]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"], pads=[KERNEL // 2] * 4)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), file)
    return rng.standard_normal(shape).astype("float32")


def convolutions(folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Return functions that run the convolution, one per runtime."""
    file = folder / "convolution.onnx"
    inputs = {"x": write_convolution(file)}
    return {
        "a convolution in onnxruntime": partial(OnnxRuntime(read_onnx(file), threads).run, inputs),
        "a convolution in openvino": partial(OpenVinoRuntime(read_onnx(file), threads).run, inputs),
    }


def networks(bundle: Bundle, threads: int) -> dict[str, Callable[[], object]]:
    """Return functions that run the bundle's networks, one per available runtime and precision."""
    inputs = NetworkInfo(bundle).inputs
    found = {}
    for precision in PRECISIONS:
        for runtime in LIBRARIES:
            try:
                network = open_network(bundle, runtime, precision, threads, "cpu")
            except PPFCOSError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            wanted = {name: inputs[name] for name in network.input_names}
            found[f"{runtime}, {precision}"] = partial(network.run, wanted)
    return found


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each over alternating runs."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + repeats):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=default_threads(), help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="counted runs of each (default 7)")
    args = parser.parse_args()
    bundle = read_bundle(args.bundle)
    figures = NetworkInfo(bundle).describe()
    with tempfile.TemporaryDirectory() as folder:
        peaks = convolutions(Path(folder), args.threads)
        found = measure({**peaks, **networks(bundle, args.threads)}, args.repeats)
    speed = {
        name: (CONVOLUTION if name in peaks else figures["multiply_adds"]) / seconds / 1e9
        for name, seconds in found.items()
    }
    peak = max(speed[name] for name in peaks)
    first = next(seconds for name, seconds in found.items() if name not in peaks)
    size = "{height}×{width}".format(**figures)
    print(
        f"{day_and_machine()}, {args.threads} threads, {bundle.directory.name} at {size}, "
        f"median of {args.repeats}"
    )
    print("| | seconds | GFLOPs a second (multiply-adds) | of the peak | faster than the first network |")
    print("|---|---|---|---|---|")
    for name, seconds in found.items():
        ratio = "" if name in peaks else f"{first / seconds:.2f}"
        print(f"| {name} | {seconds:.3f} | {speed[name]:.0f} | {speed[name] / peak:.0%} | {ratio} |")


if __name__ == "__main__":
    main()
