"""Convert a model to ONNX."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path

import paddle
from paddle import nn

from ppfcos import environment
from ppfcos.decode_options import DecodeOptions
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.errors import BundleError, ConfigError, one_line
from ppfcos.export.bundle_files import head_outputs
from ppfcos.export.program import CandidatesNetwork, HeadsNetwork, HeadsSpec, save_program
from ppfcos.paddle_versions import HAS_NEW_IR

with environment.quiet_imports():
    import onnx
    import onnxslim
    from onnx import GraphProto, ModelProto, compose

    from ppfcos.export.onnx_nms import nms_graph
try:
    import paddle2onnx
except ImportError as error:  # such as an undefined symbol: it is linked with one version of Paddle
    raise environment.MissingLibraryError(
        f"paddle2onnx cannot be imported with Paddle {paddle.__version__} ({error}): "
        f"pip install paddle2onnx=={'2.1.0' if HAS_NEW_IR else '1.3.1'}"
    ) from error

# Below 13, axes are attributes; ONNX Runtime 1.17 does not read opsets above 20. paddle2onnx 1.3.1 (for
# Paddle 2.6) aborts the process at 20.
OPSETS = range(13, 21 if HAS_NEW_IR else 20)


def end_to_end_model(model: nn.Layer, input_spec: NetworkInput, opset: int) -> ModelProto:
    """Convert a PPFCOS to an ONNX model with the outputs bbox [N, 6] and bbox_num [B].

    Raises:
        BundleError: it cannot be converted.
        ConfigError: the opset is not in `OPSETS`.
    """
    return model_with_nms(CandidatesNetwork(model, input_spec), opset)


def model_with_nms(network: CandidatesNetwork, opset: int) -> ModelProto:
    """Convert a network that outputs candidates, and append NMS; otherwise as `end_to_end_model`."""
    model = network.model
    converted = to_onnx(network, opset)
    _rename(converted.graph, _weight_names(model))
    boxes, *shown, scores, classes = (output.name for output in converted.graph.output)
    count = len(model.head.strides) * model.decode.pre_nms_top_k
    options = DecodeOptions.of(model.decode)
    nms = nms_graph(options, count, model.head.num_classes, converted.ir_version, opset)
    inputs = {"boxes": boxes, "shown": (shown or [boxes])[0], "scores": scores, "classes": classes}
    merged = compose.merge_models(
        converted, nms, io_map=[(source, target) for target, source in inputs.items()]
    )
    return _simplify(merged)


def heads_model(model: nn.Layer, input_spec: NetworkInput, heads: HeadsSpec, opset: int) -> ModelProto:
    """Convert a PPFCOS to an ONNX model with the outputs of the head, named such as distances_8.

    Raises:
        BundleError: it cannot be converted.
        ConfigError: the opset is not in `OPSETS`.
    """
    converted = to_onnx(HeadsNetwork(model, input_spec, heads), opset)
    levels = head_outputs(model.head.strides)
    output_names = [level[kind] for kind in names.HEAD_OUTPUTS for level in levels]
    outputs = {output.name: name for output, name in zip(converted.graph.output, output_names)}
    _rename(converted.graph, {**outputs, **_weight_names(model)})
    return _simplify(converted)


def to_onnx(network: nn.Layer, opset: int) -> ModelProto:
    """Convert a network that `save_program` takes.

    Raises:
        ConfigError: the opset is not in `OPSETS`.
    """
    if opset not in OPSETS:
        raise ConfigError(f"--opset {opset} is not supported; use {OPSETS[0]} to {OPSETS[-1]}")
    with tempfile.TemporaryDirectory() as folder:
        content = _paddle2onnx(save_program(network, Path(folder) / names.MODEL_PREFIX), opset)
    model = onnx.load_from_string(content)
    _name_dimensions(model.graph)
    return model


def _paddle2onnx(program: Path, opset: int) -> bytes:
    """Run paddle2onnx without its own simplification, which is slower than onnxslim's."""
    weights = program.with_suffix(".pdiparams")  # Paddle 2.6 writes none for a network without parameters
    # Version 1, for Paddle 2.6, has another name for this option.
    is_old = "enable_optimize" in inspect.signature(paddle2onnx.export).parameters
    unoptimized = {"enable_optimize": False} if is_old else {"optimize_tool": "None"}
    with environment.hide_native_stdout():
        try:
            return paddle2onnx.export(
                str(program),
                str(weights) if weights.exists() else "",
                opset_version=opset,
                auto_upgrade_opset=False,
                **unoptimized,
            )
        except Exception as error:  # its errors have no common base; it has printed the reason
            reason = one_line(error)
    raise BundleError(
        f"paddle2onnx {paddle2onnx.__version__} could not convert the program of Paddle {paddle.__version__} "
        f"to opset {opset} ({reason}); use another --opset, or --formats paddle"
    )


def _simplify(model: ModelProto) -> ModelProto:
    del model.graph.value_info[:]  # shapes from before the graphs were merged
    try:
        model = onnxslim.slim(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # their errors have no common base
        raise BundleError(
            f"the ONNX model is invalid ({one_line(error)}), so no bundle was written; use another --opset"
        ) from error
    return model


def _name_dimensions(graph: GraphProto) -> None:
    """Name the dynamic dimensions of the inputs."""
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        known = ("batch", "height", "width")
        if value.name == names.IMAGE and len(sizes) == 4:
            known = ("batch", "", "height", "width") if sizes[1].dim_value == 3 else (*known, "")
        for size, name in zip(sizes, known):
            if size.dim_param:
                size.dim_param = name


def _weight_names(model: nn.Layer) -> dict[str, str]:
    """Names of the weights in the model, such as neck.lateral.0.weight, by their names in the program."""
    return {tensor.name: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _rename(graph: GraphProto, new_names: Mapping[str, str]) -> None:
    for value in (*graph.output, *graph.initializer):
        value.name = new_names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [new_names.get(value, value) for value in values]
