"""Bundles of the small detector: of every kind, with a Paddle program and an ONNX file."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import onnx
import paddle
import paddle2onnx
import yaml
from onnx import helper, numpy_helper
from paddle.static import InputSpec
from small_detector import CATEGORY_IDS, CLASS_NAMES, small_model

from ppfcos.deploy import bundle as layout
from ppfcos.export.bundle import ExportedNetwork, input_specs
from ppfcos.export.infer_config import infer_config

STRIDES = (8, 16, 32, 64, 128)
HEADS = [{"stride": s, **{kind: f"{kind}_{s}" for kind in layout.HEAD_OUTPUTS}} for s in STRIDES]
HEAD_NAMES = [level[kind] for kind in layout.HEAD_OUTPUTS for level in HEADS]
# By the kind of output: what one step of its 16-bit integers is worth, channel by channel.
STEPS = {
    "class_logits": [0.001, 0.0011, 0.0012],
    "distances": [0.02, 0.021, 0.022, 0.023],
    "quality_logits": [0.001],
}


class HeadsNetwork(paddle.nn.Layer):
    """All of the head's answers, kind by kind."""

    def __init__(self, model: paddle.nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image, im_shape):
        outputs = self.model.network(image, im_shape)
        return [*outputs.class_logits, *outputs.distances, *outputs.quality_logits]


class OfUint8(paddle.nn.Layer):
    """The exported network for [B, H, W, 3] uint8, blue first."""

    def __init__(self, model: paddle.nn.Layer):
        super().__init__()
        self.network = ExportedNetwork(model)

    def forward(self, image, im_shape, scale_factor):
        pixels = image.astype("float32").transpose([0, 3, 1, 2])
        red_first = paddle.concat([pixels[:, 2:3], pixels[:, 1:2], pixels[:, 0:1]], axis=1)
        return self.network(red_first, im_shape, scale_factor)


class OfNV12(paddle.nn.Layer):
    """The exported network for [B, 336, 320] NV12, by the formulas of BT.601."""

    def __init__(self, model: paddle.nn.Layer):
        super().__init__()
        self.network = ExportedNetwork(model)

    def forward(self, image, im_shape, scale_factor):
        values = image.astype("float32")
        luma = 1.164 * (values[:, :224] - 16)
        chroma = paddle.repeat_interleave(values[:, 224:].reshape([-1, 112, 160, 2]) - 128, 2, axis=1)
        u, v = paddle.repeat_interleave(chroma, 2, axis=2).unbind(axis=-1)
        colours = [luma + 1.596 * v, luma - 0.813 * v - 0.391 * u, luma + 2.018 * u]
        return self.network(paddle.stack(colours, axis=1).clip(0, 255), im_shape, scale_factor)


def pair_specs(batch: int = -1) -> list:
    return [InputSpec([batch, 2], "float32", "im_shape"), InputSpec([batch, 2], "float32", "scale_factor")]


@functools.cache
def end_to_end_bundle(folder: Path) -> Path:
    """Boxes out; any size in."""
    _, model = small_model(_made(folder))
    return write_bundle(folder, ExportedNetwork(model), input_specs(), layout.END_TO_END_OUTPUTS)


@functools.cache
def heads_bundle(folder: Path) -> Path:
    """The head's answers out; any size in."""
    _, model = small_model(_made(folder))
    heads = {"layout": "nchw", "locations": "centers", "distances": "pixels", "levels": HEADS}
    return write_bundle(folder, HeadsNetwork(model), input_specs()[:2], HEAD_NAMES, kind="heads", heads=heads)


@functools.cache
def integer_heads_bundle(folder: Path, of: Path) -> Path:
    """That bundle's ONNX with 16-bit outputs, channels last and distances in strides, as boards have them."""
    _made(folder)
    model = onnx.load(str(of / "model.onnx"))
    levels = []
    for level in HEADS:
        scales = {kind: np.array(STEPS[kind], np.float32) for kind in layout.HEAD_OUTPUTS}
        for kind, steps in scales.items():
            worth = steps * level["stride"] if kind == "distances" else steps
            _quantize_output(model.graph, level[kind], worth)
        levels.append({**level, "scales": {kind: steps.tolist() for kind, steps in scales.items()}})
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    heads = {"layout": "nhwc", "locations": "centers", "distances": "strides", "levels": levels}
    networks = {"onnx": {"fp32": {"file": "model.onnx"}}}
    return _describe(folder, networks, kind="heads", heads=heads)


@functools.cache
def uint8_bundle(folder: Path) -> Path:
    """Two pictures of 224x320 at once, uint8 and blue first."""
    _, model = small_model(_made(folder))
    specs = [InputSpec([2, 224, 320, 3], "uint8", "image"), *pair_specs(2)]
    form = {"type": "uint8", "channels": "bgr", "layout": "nhwc", "batch": 2, "height": 224, "width": 320}
    return write_bundle(folder, OfUint8(model), specs, layout.END_TO_END_OUTPUTS, input=form)


@functools.cache
def nv12_bundle(folder: Path) -> Path:
    """NV12 of 224x320."""
    _, model = small_model(_made(folder))
    specs = [InputSpec([-1, 336, 320], "uint8", "image"), *pair_specs()]
    form = {"type": "nv12", "batch": None, "height": 224, "width": 320}
    return write_bundle(folder, OfNV12(model), specs, layout.END_TO_END_OUTPUTS, input=form)


def write_bundle(folder: Path, network: paddle.nn.Layer, specs: list, outputs: list, **described) -> Path:
    """Save a network as a Paddle program and as ONNX, and describe it."""
    network.eval()
    program = paddle.jit.to_static(network, input_spec=specs, full_graph=True)
    paddle.jit.save(program, str(folder / layout.MODEL_PREFIX))
    paths = [str(folder / name) for name in (layout.PROGRAM_FILE, layout.WEIGHTS_FILE, "model.onnx")]
    paddle2onnx.export(*paths, opset_version=17, optimize_tool="None")
    model = onnx.load(paths[2])
    for output, name in zip(model.graph.output, outputs):
        _rename(model.graph, output.name, name)
    onnx.save(model, paths[2])
    networks = {
        "paddle": {"fp32": {"program": layout.PROGRAM_FILE, "weights": layout.WEIGHTS_FILE}},
        "onnx": {"fp32": {"file": "model.onnx"}},
    }
    return _describe(folder, networks, **described)


def _describe(folder: Path, networks: dict, kind: str = "end_to_end", **described) -> Path:
    cfg, _ = small_model(folder)
    config = infer_config(cfg, CLASS_NAMES, CATEGORY_IDS)
    (folder / layout.CONFIG_FILE).write_text(yaml.safe_dump(config))
    named = [name for form in networks.values() for files in form.values() for name in files.values()]
    manifest = {
        "format_version": 1,
        "ppfcos": "0.1.0",
        "kind": kind,
        "input": {"type": "float32", "channels": "rgb", "layout": "nchw"},
        "preprocess": config["Preprocess"],
        "postprocess": {"score_threshold": 0.05},
        "classes": [{"name": name, "id": number} for name, number in zip(CLASS_NAMES, CATEGORY_IDS)],
        "networks": networks,
        "files": {name: file_entry(folder / name) for name in [*named, layout.CONFIG_FILE]},
        **described,
    }
    (folder / layout.MANIFEST_FILE).write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def file_entry(path: Path) -> dict:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for output in graph.output:
        output.name = new if output.name == old else output.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _quantize_output(graph: onnx.GraphProto, name: str, worth: np.ndarray) -> None:
    """The output, channels last, in whole multiples of what its channels' steps are worth."""
    _rename(graph, name, f"{name}_float")
    constant = numpy_helper.from_array(worth, f"{name}_worth")
    graph.initializer.append(constant)
    graph.node.extend(
        [
            helper.make_node("Transpose", [f"{name}_float"], [f"{name}_last"], perm=[0, 2, 3, 1]),
            helper.make_node("Div", [f"{name}_last", constant.name], [f"{name}_steps"]),
            helper.make_node("Round", [f"{name}_steps"], [f"{name}_whole"]),
            helper.make_node("Clip", [f"{name}_whole", "least_int16", "most_int16"], [f"{name}_inside"]),
            helper.make_node("Cast", [f"{name}_inside"], [name], to=onnx.TensorProto.INT16),
        ]
    )
    for limit, value in (("least_int16", -32768), ("most_int16", 32767)):
        if limit not in [each.name for each in graph.initializer]:
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), limit))
    old = next(output for output in graph.output if output.name == f"{name}_float")
    graph.output.remove(old)
    graph.output.append(
        helper.make_tensor_value_info(name, onnx.TensorProto.INT16, [None] * 3 + [len(worth)])
    )
