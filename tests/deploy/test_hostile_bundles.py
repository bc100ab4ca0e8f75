"""Malicious bundles: each raises a BundleError of one line that names a file."""

from __future__ import annotations

import copy
import datetime
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from helpers.small_bundles import file_entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ppfcos.deploy import Predictor
from ppfcos.deploy.bundle import MANIFEST_FILE, read_bundle
from ppfcos.deploy.onnx_files import MAX_FIELDS, checked_onnx
from ppfcos.deploy.runtimes.paddle_program import check_program
from ppfcos.errors import BundleError

RUNTIMES = ("onnxruntime", "openvino")
IMAGE = np.zeros((32, 32, 3), np.uint8)
SECRET = np.float32([0, 0.9, 1, 2, 3, 4])
BOXES = {"bbox": SECRET[None], "bbox_num": np.int32([1])}
MANIFEST = {
    "format_version": 1,
    "ppfcos": "0.1.0",
    "kind": "end_to_end",
    "input": {"type": "float32", "batch": None, "height": None, "width": None},
    "preprocess": [
        {"type": "Resize", "target_size": [32, 32], "keep_ratio": True, "interp": 1},
        {"type": "Permute"},
        {"type": "PadStride", "stride": 32},
    ],
    "postprocess": {
        "pre_nms_top_k": 1000,
        "score_threshold": 0.05,
        "nms_threshold": 0.6,
        "keep_top_k": 100,
        "sqrt_score": False,
        "class_threshold": 0.0,
        "rank_by": "score",
        "class_top_k": -1,
        "clip": "before",
        "inclusive": False,
    },
    "classes": [{"name": "circle", "id": 3}, {"name": "square", "id": 7}],
    "source": {"config": "small.yml"},
    "networks": {"onnx": {"fp32": {"file": "model.onnx", "opset": 17}}},
}  # fmt: skip
HEADS = {
    "layout": "nchw",
    "locations": "centers",
    "distances": "pixels",
    "levels": [{"stride": 32, "class_logits": "c", "distances": "d", "quality_logits": "q"}],
}
HEAD_OUTPUTS = {
    "c": np.float32([[[[5]], [[-9]]]]),
    "d": np.full((1, 4, 1, 1), 4, np.float32),
    "q": np.full((1, 1, 1, 1), 3, np.float32),
}


def network(outputs: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A network with these constant outputs."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, "H", "W"])
    arrays = [numpy_helper.from_array(value, f"{name}_value") for name, value in outputs.items()]
    values = [
        helper.make_tensor_value_info(name, array.data_type, array.dims)
        for name, array in zip(outputs, arrays)
    ]
    nodes = [helper.make_node("Identity", [array.name], [name]) for name, array in zip(outputs, arrays)]
    graph = helper.make_graph(nodes, "constant", [image], values, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_bundle(folder: Path, model: onnx.ModelProto | bytes, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    manifest = {**MANIFEST, "files": {"model.onnx": file_entry(folder / "model.onnx")}, **changes}
    (folder / MANIFEST_FILE).write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A valid bundle."""
    return write_bundle(tmp_path_factory.mktemp("whole") / "bundle", network(BOXES))


def assert_refused(action, *named: str) -> None:
    with pytest.raises(BundleError) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message and message.isprintable() and len(message) < 1000
    for each in named:
        assert each in message


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_valid_bundle_works(whole, tmp_path, runtime):
    [found] = Predictor(whole, runtime).predict([IMAGE])
    np.testing.assert_array_equal(found.boxes, [[1, 2, 3, 4]])
    heads = write_bundle(tmp_path / "heads", network(HEAD_OUTPUTS), kind="heads", heads=HEADS)
    [found] = Predictor(heads, runtime).predict([IMAGE])
    np.testing.assert_array_equal(found.boxes, [[12, 12, 20, 20]])


# ONNX files ------------------------------------------------------------------------------------------------


def external(location: str, name: str = "bbox_value") -> TensorProto:
    """A tensor with external data."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1, 6])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "24")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["absolute", "above", "link", "linked folder", "beside", "memory"])
def test_external_data_is_refused(tmp_path, monkeypatch, kind, runtime):
    secret, folder = tmp_path / "secret", tmp_path / "bundle"
    secret.write_bytes(SECRET.tobytes())
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "linked folder").symlink_to(tmp_path)
    shutil.copy(secret, folder / "beside")
    location = {
        "absolute": str(secret),
        "above": "../secret",
        "linked folder": "linked folder/secret",
        "memory": "*/_ORT_MEM_ADDR_/*",  # ONNX Runtime's own: the offset is an address
    }.get(kind, kind)
    model = network(BOXES)
    model.graph.initializer[0].CopyFrom(external(location))
    write_bundle(folder, model)
    monkeypatch.chdir(folder)
    assert_refused(lambda: Predictor(folder, runtime), "model.onnx")


def models_with(tensor: TensorProto) -> dict[str, onnx.ModelProto]:
    """Models with the tensor in every place that onnx.proto has for one."""
    models = {name: network(BOXES) for name in ("initializer", "values", "indices", "function", "training")}
    models["initializer"].graph.initializer.append(tensor)
    models["values"].graph.sparse_initializer.add().values.CopyFrom(tensor)
    models["indices"].graph.sparse_initializer.add().indices.CopyFrom(tensor)
    constant = helper.make_node("Constant", [], ["x"], value=tensor)
    models["function"].functions.add(name="f", domain="own").node.append(constant)
    models["training"].training_info.add().algorithm.node.append(constant)
    attribute = onnx.AttributeProto(name="a", type=onnx.AttributeProto.TENSOR, t=tensor)
    models["default of a function"] = network(BOXES)
    models["default of a function"].functions.add(name="f", domain="own").attribute_proto.append(attribute)
    inner = helper.make_graph([constant], "inner", [], [])
    inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "outer", [], [])
    values = {"t": tensor, "tensors": [tensor], "g": inner, "graphs": [inner]}
    values |= {"sparse_tensor": onnx.SparseTensorProto(values=tensor)}
    values |= {"sparse_tensors": [onnx.SparseTensorProto(indices=tensor)]}
    for name, value in values.items():
        models[name] = network(BOXES)
        models[name].graph.node.add(op_type="Constant").attribute.append(
            onnx.AttributeProto(name="a", **{name: value})
        )
    return models


def test_external_data_is_found_everywhere():
    inside = numpy_helper.from_array(SECRET, "inside")
    only_location = TensorProto(name="x", data_location=TensorProto.EXTERNAL)
    only_data = TensorProto(name="x")
    only_data.external_data.add(key="location", value="x")
    for place, model in models_with(inside).items():
        assert checked_onnx(Path("model.onnx"), model.SerializeToString()).content, place
    for tensor in (external("x"), only_location, only_data):
        for model in models_with(tensor).values():
            content = model.SerializeToString()
            assert_refused(lambda content=content: checked_onnx(Path("model.onnx"), content), "model.onnx")


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int, least: int = 1) -> bytes:
    digits = [value >> 7 * i & 0x7F for i in range(max(least, -(-value.bit_length() // 7)))]
    return bytes(digit | 0x80 for digit in digits[:-1]) + bytes(digits[-1:])


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = field(1, field(5, field(6, content)))  # the graph of an attribute of a node
    return field(7, content)


MALICIOUS_WIRES = {
    "a location of more than 32 bits": field(7, field(5, field(14, 2**32 + 1))),
    "a negative location": field(7, field(5, field(14, 2**64 - 1))),
    "a long tag": field(7, varint(5 << 3 | 2, 5) + varint(2) + field(14, 1)),
    "a location in the second of two graphs": field(7, b"") + field(7, field(5, field(14, 1))),
    "a tensor whose location is taken back": field(7, field(5, field(14, 1) + field(14, 0))),
    "a node that was compiled elsewhere": field(7, field(1, field(4, b"EPContext"))),
    "nothing": b"",
    "no graph": field(1, 8),
    "a text": b"<?xml version='1.0'?><net version='11'></net>",
    "a group": b"\x0b\x0c" + field(7, b""),
    "field 0": b"\x00\x00" + field(7, b""),
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
    "a length of 70 bits": b"\x3a" + b"\xff" * 10 + b"\x01",
    "a number without an end": b"\x3a" + b"\xff" * 100,
    "cut short": network(BOXES).SerializeToString()[:-1],
    "deep": nested(200),
    "very deep": nested(3000),
    "many fields": b"\x08\x01" * (MAX_FIELDS + 1),
}


@pytest.mark.parametrize("content", MALICIOUS_WIRES.values(), ids=MALICIOUS_WIRES)
def test_malicious_protobuf_is_refused(content):
    assert_refused(lambda: checked_onnx(Path("model.onnx"), content), "model.onnx")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_external_data_is_found_in_mutated_files(data):
    """Wherever onnx reads external data after any mutation, the check refuses it."""
    content = bytearray(network({**BOXES, "more": np.zeros(2, np.float32)}).SerializeToString())
    tensor = external("x").SerializeToString()
    start = data.draw(st.integers(0, len(content)))
    content[start:start] = data.draw(
        st.sampled_from([b"", field(5, tensor), field(7, field(5, tensor)), tensor])
    )
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        checked_onnx(Path("model.onnx"), bytes(content))
    except BundleError:
        return
    try:
        tensors = onnx.load_from_string(bytes(content)).graph.initializer
    except Exception:  # of protobuf, whose errors have no type in common
        return
    assert not any(each.external_data or each.data_location for each in tensors)


def test_ort_format_is_not_read(tmp_path):
    """Bytes 4 to 7 of ONNX Runtime's own format are ORTM; here they are part of a text field of ONNX."""
    content = field(2, b"..ORTM") + network(BOXES).SerializeToString()
    assert content[4:8] == b"ORTM"
    [found] = Predictor(write_bundle(tmp_path / "bundle", content), "onnxruntime").predict([IMAGE])
    np.testing.assert_array_equal(found.boxes, [[1, 2, 3, 4]])


# Paddle programs -------------------------------------------------------------------------------------------


def as_json(*names: Any) -> bytes:
    operators = [{"#": name, "A": [], "I": [], "O": [], "OA": []} for name in names]
    regions = [{"#": "region_0", "blocks": [{"#": "block_0", "args": [], "ops": operators}]}]
    base = {"magic": "pir", "version": 1}
    return json.dumps({"base_code": base, "program": {"regions": regions}}).encode()


def old_program(*operators: bytes) -> bytes:
    """A program of Paddle 2.6 in protobuf: one block of operators."""
    return field(1, b"".join(field(4, each) for each in operators))


def old_operator(name: str, column: int | None = None) -> bytes:
    number = b"" if column is None else field(4, field(1, b"col") + field(3, column))
    return field(3, name.encode()) + number


MALICIOUS_PROGRAMS = {
    **{
        repr(name): as_json("1.conv2d", name)
        for name in (
            *("1.read_file", "1.load_combine", "1.save_combine", "1.print", "1.py_layer", "1.while", "1.if"),
            *("1.send_v2", "1.comm_init_all", "1.ap_variadic", "1.decode_jpeg", "2.read_file"),
            "pd_op.read_file",
            *("py_func", "run_program", "", "1.", 1, None, ["1.conv2d"], "1.conv2d\n", "1.\u00e9"),
        )
    },
    "a key twice": as_json("1.conv2d").replace(b'"#": "1.conv2d"', b'"#": "1.read_file", "#": "1.conv2d"'),
    "an escape": as_json("1.read_file").replace(b'"#"', b'"\\u0023"'),
    "another encoding": as_json("1.conv2d").decode().encode("utf-16"),
    "a parameter without attributes": as_json("p"),
    "an operator without attributes": as_json("1.conv2d").replace(b'"OA"', b'"oa"'),
    "an operator without outputs": as_json("1.conv2d").replace(b'"O"', b'"o"'),
    "no JSON": b"\x00\x01",
    "nothing": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "digits": b'{"program": {"a": ' + b"9" * 5000 + b"}}",
    "NaN": b'{"program": {"a": NaN}}',
    "of Paddle 2": b'{"modelTopology": {}}',
}  # fmt: skip


@pytest.mark.parametrize("content", MALICIOUS_PROGRAMS.values(), ids=MALICIOUS_PROGRAMS)
def test_programs_with_other_operators_are_refused(content):
    assert check_program(Path("model.json"), as_json("1.conv2d")) == 1
    assert_refused(lambda: check_program(Path("model.json"), content), "model.json")


CONV, FEED = old_operator("conv2d"), old_operator("feed", 0)
MALICIOUS_OLD_PROGRAMS = {
    **{
        name: old_program(FEED, CONV, old_operator(name))
        for name in ("load_combine", "save", "py_func", "while", "conditional_block", "run_program", "print")
    },
    "no name": old_program(CONV, b""),
    "two names": old_program(CONV, field(3, b"conv2d") + field(3, b"load_combine")),
    "another block": old_program(CONV) + old_program(old_operator("load")),
    "an input of number -1": old_program(CONV, old_operator("feed", (1 << 64) - 1)),
    "an input of number 2^30": old_program(FEED, CONV, old_operator("feed", 1 << 30)),
    "an output without a number": old_program(FEED, CONV, old_operator("fetch")),
    "two numbers": old_program(CONV, FEED + field(4, field(1, b"x") + field(1, b"col") + field(3, 1 << 30))),
    "a number twice": old_program(FEED, FEED, CONV),
    "an attribute named twice": old_program(
        CONV, field(3, b"feed") + field(4, field(1, b"x") + field(1, b"col") + field(3, 1 << 30))
    ),
    "no operators": old_program(),
    "truncated": old_program(CONV)[:-1],
    "JSON": as_json("1.conv2d"),
    "nothing": b"",
}


@pytest.mark.parametrize("content", MALICIOUS_OLD_PROGRAMS.values(), ids=MALICIOUS_OLD_PROGRAMS)
def test_old_programs_with_other_operators_are_refused(content):
    assert check_program(Path("model.pdmodel"), old_program(FEED, CONV)) == 0
    assert_refused(lambda: check_program(Path("model.pdmodel"), content), "model.pdmodel")


# Outputs ---------------------------------------------------------------------------------------------------


def rows(**columns: float) -> np.ndarray:
    places = {"label": 0, "score": 1, "x0": 2, "y1": 5}
    made = np.repeat(SECRET[None], 2, axis=0)
    for name, value in columns.items():
        made[1, places[name]] = value
    return made


WRONG_BOXES = {
    **{
        f"{name} {value}": {"bbox": rows(**{name: value}), "bbox_num": np.int32([2])}
        for name, value in (
            *(("label", 2), ("label", -1), ("label", 0.5), ("label", math.nan), ("label", 1e30)),
            *(("score", math.nan), ("score", math.inf), ("score", -0.5), ("score", 7)),
            *(("x0", math.nan), ("y1", math.inf), ("y1", -math.inf)),
        )
    },
    **{
        f"bbox_num {counts}": {"bbox": rows(), "bbox_num": np.array(counts)}
        for counts in ([3], [1], [-1], [], [1, 1], [2, 0], [-1, 3], [2.0], [2**62], [True], [math.nan], 2.5)
    },
    "texts": {"bbox": np.array([["a"] * 6], object), "bbox_num": np.int32([1])},
    "integers": {"bbox": np.ones((1, 6), np.int64), "bbox_num": np.int32([1])},
    "five columns": {"bbox": np.ones((6, 5), np.float32), "bbox_num": np.int32([6])},
    "one dimension": {"bbox": np.ones(6, np.float32), "bbox_num": np.int32([1])},
    "three dimensions": {"bbox": np.ones((1, 1, 6), np.float32), "bbox_num": np.int32([1])},
    "without bbox_num": {"bbox": rows()},
    "without bbox": {"bbox_num": np.int32([0])},
    "without either": {"boxes": rows()},
}  # fmt: skip


@pytest.mark.parametrize("outputs", WRONG_BOXES.values(), ids=WRONG_BOXES)
def test_wrong_boxes_are_refused(tmp_path, outputs):
    folder = write_bundle(tmp_path / "bundle", network(outputs))
    assert_refused(lambda: Predictor(folder, "onnxruntime").predict([IMAGE]), str(folder))


def test_no_boxes_are_valid(tmp_path):
    nothing = {"bbox": np.empty((0, 6), np.float32), "bbox_num": np.int32([0])}
    [found] = Predictor(write_bundle(tmp_path / "bundle", network(nothing))).predict([IMAGE])
    assert len(found) == 0


WRONG_HEADS = {
    "no logits": {"c": None},
    "a class more": {"c": np.zeros((1, 3, 1, 1), np.float32)},
    "a class less": {"c": np.zeros((1, 1, 1, 1), np.float32)},
    "channels last": {"d": np.zeros((1, 1, 1, 4), np.float32)},
    "five distances": {"d": np.zeros((1, 5, 1, 1), np.float32)},
    "another height": {"q": np.zeros((1, 1, 2, 1), np.float32)},
    "three dimensions": {"q": np.zeros((1, 1, 1), np.float32)},
    "no dimension": {"q": np.float32(0)},
    "two images": {name: np.repeat(value, 2, axis=0) for name, value in HEAD_OUTPUTS.items()},
    "no cells": {name: value[:, :, :0] for name, value in HEAD_OUTPUTS.items()},
    "integers": {"c": np.zeros((1, 2, 1, 1), np.int32)},
    "booleans": {"c": np.zeros((1, 2, 1, 1), bool)},
    "texts": {"c": np.array([[[["a"]], [["b"]]]], object)},
    "NaN in class logits": {"c": np.full((1, 2, 1, 1), math.nan, np.float32)},
    "NaN in distances": {"d": np.full((1, 4, 1, 1), math.nan, np.float32)},
    "NaN in quality": {"q": np.full((1, 1, 1, 1), math.nan, np.float32)},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("changes", WRONG_HEADS.values(), ids=WRONG_HEADS)
def test_wrong_heads_are_refused(tmp_path, changes):
    outputs = {name: value for name, value in {**HEAD_OUTPUTS, **changes}.items() if value is not None}
    folder = write_bundle(tmp_path / "bundle", network(outputs), kind="heads", heads=HEADS)
    assert_refused(lambda: Predictor(folder, "onnxruntime").predict([IMAGE]), str(folder))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.inf, -math.inf, 3e38])
def test_infinite_distances_are_clipped_or_refused(tmp_path, value):
    outputs = {**HEAD_OUTPUTS, "d": np.full((1, 4, 1, 1), value, np.float32)}
    folder = write_bundle(tmp_path / "bundle", network(outputs), kind="heads", heads=HEADS)
    [found] = Predictor(folder, "onnxruntime").predict([IMAGE])
    np.testing.assert_array_equal(found.boxes, [[0, 0, 32, 32]] if value > 0 else np.empty((0, 4)))
    postprocess = {**MANIFEST["postprocess"], "clip": "never"}
    write_bundle(folder, network(outputs), kind="heads", heads=HEADS, postprocess=postprocess)
    if math.isinf(value):
        assert_refused(lambda: Predictor(folder, "onnxruntime").predict([IMAGE]), str(folder))
    else:
        assert len(Predictor(folder, "onnxruntime").predict([IMAGE])[0]) == 1


def test_unknown_input_is_refused(tmp_path):
    model = network(BOXES)
    model.graph.input.append(helper.make_tensor_value_info("secret", TensorProto.FLOAT, [1]))
    folder = write_bundle(tmp_path / "bundle", model)
    assert_refused(lambda: Predictor(folder, "onnxruntime"), str(folder), "secret")


# bundle.yml ------------------------------------------------------------------------------------------------

HUGE = 10**18
OTHERS = [
    None, True, -1, 0, HUGE, 1.5, math.nan, math.inf, -math.inf, "", "x", "a\x1b[2Jb", "a\nb", "../x", [], {},
    [None], {"a": 1}, datetime.date(2020, 1, 1), b"\xff", "x" * 100_000, [[]] * 2000, 1e300, 0.5, "1", {1: 2},
]  # fmt: skip
KEYS = [
    ("format_version",), ("kind",), ("input",), ("preprocess",), ("postprocess",), ("classes",), ("source",),
    ("networks",), ("files",), ("heads",), ("input", "type"), ("input", "channels"), ("input", "layout"),
    ("input", "batch"), ("input", "height"), ("input", "width"), ("preprocess", 0), ("preprocess", 0, "type"),
    ("preprocess", 0, "target_size"), ("preprocess", 0, "keep_ratio"), ("preprocess", 0, "interp"),
    ("preprocess", 1, "more"), ("preprocess", 2, "stride"),
    *(("postprocess", key) for key in MANIFEST["postprocess"]),
    ("classes", 0), ("classes", 0, "name"), ("classes", 0, "id"), ("networks", "onnx"),
    ("networks", "onnx", "fp32"), ("networks", "onnx", "fp32", "file"), ("files", "model.onnx"),
    ("files", "model.onnx", "bytes"), ("files", "model.onnx", "sha256"), ("files", "../x"), ("files", "\x1b"),
    ("heads", "layout"), ("heads", "levels"), ("heads", "levels", 0), ("heads", "levels", 0, "stride"),
    ("heads", "levels", 0, "class_logits"), ("heads", "levels", 0, "scales"),
]  # fmt: skip
WRONG_VALUES = {
    ("format_version",): [None, True, 0, -1, 1.0, "1", HUGE, []],
    ("kind",): [None, "x", 1, ["heads"]],
    ("input", "batch"): [True, 0, -1, 1.5, "1", HUGE, 1025, [1]],
    ("input", "height"): [32, 0, HUGE, math.nan],
    ("preprocess",): [None, [], {}, "Permute", ["Permute"], [{"type": "Permute"}] * 17],
    ("preprocess", 0): [
        {"type": "NormalizeImage", "mean": [0.5, 0.5], "std": [0, 0, 0]}, {"type": ["Resize"]},
        {"type": None}, {},
        {"type": "Permute", "x": 1}, {"type": "Permute", 1: 2}, {"type": "x\x1b[2J"}, {"type": "Resize"},
    ],
    ("preprocess", 0, "target_size"): [0, -3, True, HUGE, [1], [1, 2, 3], [32, "32"], "32", 1.5, 20_000,
        [math.nan] * 2],
    ("preprocess", 0, "keep_ratio"): [None, 1, "true", []],
    ("preprocess", 0, "interp"): [99, -1, True, 1.0, "1", None, HUGE],
    ("preprocess", 2, "stride"): [True, "32", 1.5, HUGE, None, [32]],
    ("postprocess", "pre_nms_top_k"): [0, -1, True, HUGE, 1.5, "1"],
    ("postprocess", "score_threshold"): [math.nan, math.inf, -0.1, 1.1, True, "0.5", [0.5], HUGE],
    ("postprocess", "nms_threshold"): [math.nan, -1, 2, False],
    ("postprocess", "class_threshold"): [math.nan, -1, 2],
    ("postprocess", "keep_top_k"): [-2, True, HUGE, 1.5, "many"],
    ("postprocess", "class_top_k"): [-2, True, HUGE],
    ("postprocess", "rank_by"): ["x", 1, True, ["score"]],
    ("postprocess", "clip"): ["x", False],
    ("postprocess", "inclusive"): [0, 1, "yes", []],
    ("classes",): [None, [], {}, "circle", ["circle"], [None]],
    ("classes", 0, "name"): [None, 3, True, "", [], "a\x1b[2Jb", "a\nb", "a\u2028b", "a\x9bb",
        datetime.date(2020, 1, 1)],
    ("classes", 0, "id"): [7, -1, True, 1.5, "3", 2**63],
    ("source",): ["x", [1], 3],
    ("networks",): [None, {}, [], "x", {"onnx": {}}, {"onnx": {"fp8": {"file": "model.onnx"}}}],
    ("networks", "onnx", "fp32", "file"): [None, 3, "../model.onnx", "/etc/passwd", "other", "x\x1b"],
    ("files",): [None, {}, [], {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}},
        {5: {"bytes": 1, "sha256": "0" * 64}}],
    ("files", "model.onnx", "bytes"): [-1, True, 1.5, "1", 1, HUGE, None],
    ("files", "model.onnx", "sha256"): [None, 5, "x", "0" * 63, "0" * 65, "G" * 64],
    ("heads", "levels"): [None, [], {}, HEADS["levels"] * 2],
    ("heads", "levels", 0, "stride"): [0, -8, True, 1.5, HUGE, "8", math.nan],
    ("heads", "levels", 0, "class_logits"): [None, 3, "", "d"],
    ("heads", "levels", 0, "scales"): [
        [], 3, {}, {"class_logits": [1, 2], "distances": [1, 1, 1, math.nan], "quality_logits": [1]},
        {"class_logits": [1, 0], "distances": [1] * 4, "quality_logits": [1]},
        {"class_logits": [1], "distances": [1] * 4, "quality_logits": [1]},
        {"class_logits": [True, 1], "distances": [1] * 4, "quality_logits": [math.inf]},
    ],
}  # fmt: skip


def changed(folder: Path, keys: tuple, value: Any) -> Path:
    """Set one value of a bundle.yml."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["files"] = {"model.onnx": file_entry(folder / "model.onnx")}
    if keys[0] == "heads":
        manifest |= {"kind": "heads", "heads": copy.deepcopy(HEADS)}
    place = manifest
    for key in keys[:-1]:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    place[keys[-1]] = value
    (folder / MANIFEST_FILE).write_text(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copied")


@pytest.mark.parametrize("keys", WRONG_VALUES, ids=lambda keys: ".".join(map(str, keys)))
def test_wrong_values_are_refused(copied, keys):
    for value in WRONG_VALUES[keys]:
        try:
            assert_refused(lambda value=value: read_bundle(changed(copied, keys, value)), "copied")
        except BaseException as error:
            raise AssertionError(f"{keys} {value!r}"[:300]) from error


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    keys=st.sampled_from(KEYS),
    value=st.sampled_from(OTHERS) | st.integers() | st.floats() | st.text(max_size=5),
)
def test_any_value_works_or_is_refused(copied, keys, value):
    try:
        folder = changed(copied, keys, value)
    except (ValueError, UnicodeError):  # what YAML cannot write
        return
    try:
        Predictor(folder, "onnxruntime").predict([IMAGE])
    except BundleError as error:
        assert "\n" not in str(error) and "copied" in str(error)


MANIFEST_TEXTS = {
    "aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "a list in itself": "kind: &a [*a]\n",
    "brackets": "kind: " + "[" * 100_000,
    "a key twice": "kind: heads\n",
    "a key twice below": "more: {a: 1, b: 2, a: 3}\n",
    "digits": f"more: {'9' * 5000}\n",
    "a wrong bool": "more: !!bool x\n",
    "a wrong date": "more: 2020-99-99\n",
    "NUL": 'more: "\\0"\n',
    "a lone surrogate": 'more: "\\ud800"\n',
    "an object": "more: !!python/object/apply:os.system [echo]\n",
    "a list as key": "? [a]\n: 1\n",
    "Latin-1": "more: \u00e9\n".encode("latin-1"),
    "5 GB": None,
}


@pytest.mark.parametrize("text", MANIFEST_TEXTS.values(), ids=MANIFEST_TEXTS)
def test_malicious_yaml_is_refused(copied, text):
    path = copied / MANIFEST_FILE
    if text is None:
        os.truncate(path, 5 << 30)
    else:
        path.write_bytes(path.read_bytes() + (text if isinstance(text, bytes) else text.encode()))
    assert_refused(lambda: read_bundle(copied), MANIFEST_FILE)


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST_FILE])
def test_only_regular_files_with_their_checksum_are_read(copied, tmp_path, name):
    aside = tmp_path / "aside"
    (copied / name).rename(aside)
    (copied / name).symlink_to(aside)
    assert len(Predictor(copied).predict([IMAGE])[0]) == 1
    for target in ("/dev/zero", "/etc/passwd", tmp_path, tmp_path / "nowhere", copied / name):
        (copied / name).unlink()
        (copied / name).symlink_to(target)
        assert_refused(lambda: Predictor(copied), name)
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert_refused(lambda: Predictor(copied), name)
    (copied / name).unlink()
    (copied / name).mkdir()
    assert_refused(lambda: Predictor(copied), name)


def test_impossible_folder_is_named(tmp_path):
    for name in ("a\0b", "x" * 5000, str(tmp_path / "nowhere")):
        with pytest.raises(BundleError):
            read_bundle(name)
