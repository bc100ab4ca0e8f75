"""A Paddle network as an ONNX model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import paddle
from paddle import nn

from ppfcos import environment
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.errors import BundleError, ConfigError, one_line
from ppfcos.export.bundle_files import head_outputs
from ppfcos.export.program import VERSIONS_THAT_CAN, CandidatesNetwork, HeadsSpec, HeadsNetwork, save_program

with environment.quiet_imports():
    import onnx
    import onnxslim
    import paddle2onnx
    from onnx import GraphProto, ModelProto, compose

    from ppfcos.export.onnx_nms import nms_graph

OPSETS = range(13, 21)  # below, axes are attributes; above, ONNX Runtime 1.17 does not read it


def end_to_end_model(model: nn.Layer, form: NetworkInput, opset: int) -> ModelProto:
    """Image batch in, boxes out.

    Args:
        model: a PPFCOS in evaluation mode.
        form: of the image.
        opset: version of ONNX's operators.

    Returns:
        A model with the outputs bbox [N, 6] and bbox_num [B].

    Raises:
        BundleError: it cannot be converted.
        ConfigError: the opset is none of `OPSETS`.
    """
    return model_with_nms(CandidatesNetwork(model, form), opset)


def model_with_nms(network: CandidatesNetwork, opset: int) -> ModelProto:
    """A network that ends with candidates, and their suppression behind it; otherwise as `end_to_end_model`.

    Args:
        network: with a PPFCOS as its `model`.
        opset: version of ONNX's operators.
    """
    model = network.model
    converted = _converted(network, opset)
    _rename(converted.graph, _weight_names(model))
    boxes, *shown, scores, classes = (output.name for output in converted.graph.output)
    count = len(model.head.strides) * model.decode.pre_nms_top_k
    suppression = nms_graph(model.decode, count, model.head.num_classes, converted.ir_version, opset)
    sources = {"boxes": boxes, "shown": (shown or [boxes])[0], "scores": scores, "classes": classes}
    joined = compose.merge_models(
        converted, suppression, io_map=[(source, target) for target, source in sources.items()]
    )
    return _simplified(joined)


def heads_model(model: nn.Layer, form: NetworkInput, heads: HeadsSpec, opset: int) -> ModelProto:
    """Image batch in, the head's answers out.

    Args:
        model: a PPFCOS in evaluation mode.
        form: of the image.
        heads: of the answers.
        opset: version of ONNX's operators.

    Returns:
        A model with the outputs of `HeadsNetwork`, named by kind and stride, such as distances_8.

    Raises:
        BundleError: it cannot be converted.
        ConfigError: the opset is none of `OPSETS`.
    """
    network = _converted(HeadsNetwork(model, form, heads), opset)
    levels = head_outputs(model.head.strides)
    wanted = [level[kind] for kind in names.HEAD_OUTPUTS for level in levels]
    outputs = {output.name: name for output, name in zip(network.graph.output, wanted)}
    _rename(network.graph, {**outputs, **_weight_names(model)})
    return _simplified(network)


def _converted(network: nn.Layer, opset: int) -> ModelProto:
    if opset not in OPSETS:
        raise ConfigError(f"--opset {opset} is not possible; take {OPSETS[0]} to {OPSETS[-1]}")
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / names.MODEL_PREFIX
        save_program(network, prefix)
        content = _paddle2onnx(prefix, opset)
    model = onnx.load_from_string(content)
    _name_sizes(model.graph)
    return model


def _paddle2onnx(prefix: Path, opset: int) -> bytes:
    """What paddle2onnx makes of a program; its own simplification is slower than onnxslim's and left out."""
    program, weights = (str(prefix.with_suffix(suffix)) for suffix in (".json", ".pdiparams"))
    with environment.quiet_imports():
        try:
            return paddle2onnx.export(
                program, weights, opset_version=opset, auto_upgrade_opset=False, optimize_tool="None"
            )
        except Exception as error:  # what it raises after having printed the reason has no common type
            reason = one_line(error)
    raise BundleError(
        f"paddle2onnx {paddle2onnx.__version__} could not convert the program of Paddle {paddle.__version__} "
        f"to opset {opset} ({reason}); take another --opset, or --formats paddle; {VERSIONS_THAT_CAN}"
    )


def _simplified(model: ModelProto) -> ModelProto:
    del model.graph.value_info[:]  # sizes that the parts had before they were joined
    try:
        model = onnxslim.slim(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the two raise errors of many types
        raise BundleError(
            f"the ONNX model is not a valid one ({one_line(error)}), so no bundle was written; "
            f"{VERSIONS_THAT_CAN}"
        ) from error
    return model


def _name_sizes(graph: GraphProto) -> None:
    """Give the free sizes of the inputs a name that says what they are."""
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        known = ("batch", "height", "width")
        if value.name == names.IMAGE and len(sizes) == 4:
            known = ("batch", "", "height", "width") if sizes[1].dim_value == 3 else (*known, "")
        for size, name in zip(sizes, known):
            if size.dim_param:
                size.dim_param = name


def _weight_names(model: nn.Layer) -> dict[str, str]:
    """What each weight is called in the model, such as neck.lateral.0.weight, by the name Paddle gave it."""
    return {tensor.name: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _rename(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    for value in (*graph.output, *graph.initializer):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(value, value) for value in values]
