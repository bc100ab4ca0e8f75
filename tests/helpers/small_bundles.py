"""Bundles of the small detector, as Paddle program and as ONNX."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import onnx
import paddle
import yaml
from conftest import skip_without_export
from onnx import helper, numpy_helper

from helpers.small_detector import CATEGORY_IDS, CLASS_NAMES, small_model
from ppfcos.deploy import bundle as layout
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.export.bundle import ExportOptions, export_bundle
from ppfcos.export.program import HeadsSpec, network_input

# Scale of each channel of the 16-bit integer outputs.
STEPS = {
    "class_logits": [0.001, 0.0011, 0.0012],
    "distances": [0.02, 0.021, 0.022, 0.023],
    "quality_logits": [0.001],
}
FIXED_SIZE = (224, 320)


@functools.cache
def heads_bundle(folder: Path) -> Path:
    """Heads as Paddle program and ONNX, of any size; weights and configuration are in the same folder."""
    return _export(folder, network_input(), ("paddle", "onnx"), HeadsSpec())


@functools.cache
def end_to_end_bundle(folder: Path) -> Path:
    """The same end to end."""
    return _export(folder, network_input(), ("paddle", "onnx"), None)


@functools.cache
def uint8_bundle(folder: Path) -> Path:
    """Batches of two BGR uint8 images of 224×320."""
    return _export(folder, network_input("uint8", "bgr", batch=2, size=FIXED_SIZE), ("onnx",), HeadsSpec())


@functools.cache
def nv12_bundle(folder: Path) -> Path:
    """NV12 images of 224×320."""
    return _export(folder, network_input("nv12", size=FIXED_SIZE), ("onnx",), HeadsSpec())


def _export(folder: Path, input_spec: NetworkInput, formats: tuple, heads: HeadsSpec | None) -> Path:
    skip_without_export()
    folder.mkdir(parents=True)
    cfg, model = small_model(folder)
    paddle.save(model.state_dict(), str(folder / "weights.pdparams"))
    options = ExportOptions(heads=heads, input_spec=input_spec, formats=formats)
    return export_bundle(model, cfg, CLASS_NAMES, folder / "bundle", CATEGORY_IDS, options)


def integer_heads_bundle(folder: Path, of: Path) -> Path:
    """A bundle with int16 NHWC outputs and distances in strides, as on edge accelerators."""
    folder.mkdir(parents=True)
    manifest = yaml.safe_load((of / layout.MANIFEST_FILE).read_text())
    model = onnx.load(str(of / layout.onnx_file("fp32")))
    for limit, value in (("least_int16", -32768), ("most_int16", 32767)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), limit))
    for level in manifest["heads"]["levels"]:
        level["scales"] = STEPS
        for kind, steps in STEPS.items():
            scale = np.array(steps, np.float32) * (level["stride"] if kind == "distances" else 1)
            _quantize_output(model.graph, level[kind], scale)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    manifest["heads"] |= {"layout": "nhwc", "distances": "strides"}
    manifest["networks"] = {"onnx": {"fp32": {"file": "model.onnx"}}}
    manifest["files"] = {"model.onnx": file_entry(folder / "model.onnx")}
    (folder / layout.MANIFEST_FILE).write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def file_entry(path: Path) -> dict:
    """The manifest entry of a file."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def _quantize_output(graph: onnx.GraphProto, name: str, scale: np.ndarray) -> None:
    """Quantize an output to int16 NHWC with these scales."""
    for node in graph.node:
        node.input[:] = [f"{name}_float" if each == name else each for each in node.input]
        node.output[:] = [f"{name}_float" if each == name else each for each in node.output]
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.node.extend(
        [
            helper.make_node("Transpose", [f"{name}_float"], [f"{name}_last"], perm=[0, 2, 3, 1]),
            helper.make_node("Div", [f"{name}_last", f"{name}_scale"], [f"{name}_steps"]),
            helper.make_node("Round", [f"{name}_steps"], [f"{name}_whole"]),
            helper.make_node("Clip", [f"{name}_whole", "least_int16", "most_int16"], [f"{name}_inside"]),
            helper.make_node("Cast", [f"{name}_inside"], [name], to=onnx.TensorProto.INT16),
        ]
    )
    graph.output.remove(next(output for output in graph.output if output.name == name))
    shape = [None, None, None, len(scale)]
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT16, shape))
