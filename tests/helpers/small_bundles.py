"""Bundles of the small detector: of every kind, as Paddle program and as ONNX."""

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
from ppfcos.export.program import network_input
from ppfcos.export.program import HeadsSpec

# By the kind of output, what one step of its 16-bit integers is worth, channel by channel.
STEPS = {
    "class_logits": [0.001, 0.0011, 0.0012],
    "distances": [0.02, 0.021, 0.022, 0.023],
    "quality_logits": [0.001],
}
FIXED_SIZE = (224, 320)


@functools.cache
def heads_bundle(folder: Path) -> Path:
    """Paddle program and ONNX, for pictures of any size; beside it the weights and the configuration."""
    return _export(folder, network_input(), ("paddle", "onnx"), HeadsSpec())


@functools.cache
def end_to_end_bundle(folder: Path) -> Path:
    """The same with boxes as the network's outputs."""
    return _export(folder, network_input(), ("paddle", "onnx"), None)


@functools.cache
def uint8_bundle(folder: Path) -> Path:
    """Two pictures of 224x320 at once, uint8 and blue first."""
    return _export(folder, network_input("uint8", "bgr", batch=2, size=FIXED_SIZE), ("onnx",), HeadsSpec())


@functools.cache
def nv12_bundle(folder: Path) -> Path:
    """NV12 of 224x320."""
    return _export(folder, network_input("nv12", size=FIXED_SIZE), ("onnx",), HeadsSpec())


def _export(folder: Path, form: NetworkInput, formats: tuple, heads: HeadsSpec | None) -> Path:
    skip_without_export()
    folder.mkdir(parents=True)
    cfg, model = small_model(folder)
    paddle.save(model.state_dict(), str(folder / "weights.pdparams"))
    wanted = ExportOptions(heads=heads, form=form, formats=formats)
    return export_bundle(model, cfg, CLASS_NAMES, folder / "bundle", CATEGORY_IDS, wanted)


def integer_heads_bundle(folder: Path, of: Path) -> Path:
    """That bundle's ONNX with 16-bit outputs, channels last and distances in strides, as boards have them."""
    folder.mkdir(parents=True)
    manifest = yaml.safe_load((of / layout.MANIFEST_FILE).read_text())
    model = onnx.load(str(of / layout.onnx_file("fp32")))
    for limit, value in (("least_int16", -32768), ("most_int16", 32767)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), limit))
    for level in manifest["heads"]["levels"]:
        level["scales"] = STEPS
        for kind, steps in STEPS.items():
            worth = np.array(steps, np.float32) * (level["stride"] if kind == "distances" else 1)
            _quantize_output(model.graph, level[kind], worth)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    manifest["heads"] |= {"layout": "nhwc", "distances": "strides"}
    manifest["networks"] = {"onnx": {"fp32": {"file": "model.onnx"}}}
    manifest["files"] = {"model.onnx": file_entry(folder / "model.onnx")}
    (folder / layout.MANIFEST_FILE).write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def file_entry(path: Path) -> dict:
    """What a manifest says of a file."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def _quantize_output(graph: onnx.GraphProto, name: str, worth: np.ndarray) -> None:
    """The output, channels last, in whole multiples of what its channels' steps are worth."""
    for node in graph.node:
        node.input[:] = [f"{name}_float" if each == name else each for each in node.input]
        node.output[:] = [f"{name}_float" if each == name else each for each in node.output]
    graph.initializer.append(numpy_helper.from_array(worth, f"{name}_worth"))
    graph.node.extend(
        [
            helper.make_node("Transpose", [f"{name}_float"], [f"{name}_last"], perm=[0, 2, 3, 1]),
            helper.make_node("Div", [f"{name}_last", f"{name}_worth"], [f"{name}_steps"]),
            helper.make_node("Round", [f"{name}_steps"], [f"{name}_whole"]),
            helper.make_node("Clip", [f"{name}_whole", "least_int16", "most_int16"], [f"{name}_inside"]),
            helper.make_node("Cast", [f"{name}_inside"], [name], to=onnx.TensorProto.INT16),
        ]
    )
    graph.output.remove(next(output for output in graph.output if output.name == name))
    shape = [None, None, None, len(worth)]
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT16, shape))
