"""The configurations for edge boards: training, export, and operators that integer hardware supports."""

from __future__ import annotations

import logging
import re

import numpy as np
import onnx
import onnxruntime
import onnxslim
import paddle
import pytest
from conftest import needs_export
from helpers.small_detector import fit_logits
from paddle.static import InputSpec

from ppfcos.config import load_config
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.engine.model import build_model
from ppfcos.export.bundle import export_bundle
from ppfcos.export.bundle_files import preprocess_steps
from ppfcos.export.onnx_export import to_onnx
from ppfcos.export.parity import noise_batches
from ppfcos.export.program import network_input

SIZES = {
    "fcos_efficientnet_b0_512_coco": 512,
    "fcos_efficientnet_b2_768_coco": 768,
    "fcos_efficientnet_b3_896_coco": 896,
}
B0 = "fcos_efficientnet_b0_512_coco"
SMALLER = ("PPFCOSBiFPN.num_layers=1", "PPFCOSHead.num_convs=1")  # less of the same
AS_PUBLISHED = (
    "PPFCOSEfficientNet.activation=swish",
    "PPFCOSEfficientNet.squeeze_excitation=true",
    "PPFCOSBiFPN.fusion=fast",
)
COARSEST_STRIDE = 128
# ONNX operators that configs/_base_/fcos_efficientnet_bifpn.yml promises.
QUANTIZABLE = {"Conv", "Relu", "Add", "MaxPool", "Resize", "Mul"}


def configured(root, name, *overrides):
    return load_config(root / "configs" / f"{name}.yml", ["num_classes=3", "device=cpu", *overrides])


def with_random_weights(model):
    """Set weights with which the outputs depend on the image, and some hundred boxes are found."""
    rng = np.random.default_rng(0)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            shape = layer.weight.shape
            layer._mean.set_value(rng.normal(0, 0.1, shape).astype("float32"))
            layer._variance.set_value(rng.uniform(0.5, 1.5, shape).astype("float32"))
            layer.weight.set_value(rng.uniform(0.8, 1.2, shape).astype("float32"))
            layer.bias.set_value(rng.normal(0, 0.1, shape).astype("float32"))
    for predictor in (model.head.class_conv, model.head.box_conv, model.head.quality_conv):
        predictor.weight.set_value(rng.normal(0, 0.1, predictor.weight.shape).astype("float32"))
    for scale in model.head.scales:  # a factor of 1 would vanish from the graph
        scale.set_value(np.array([0.9], "float32"))
    model.eval()
    return model


class Network(paddle.nn.Layer):
    """From the normalized image to the outputs of the head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def specs(self):
        return [InputSpec([1, 3, 2 * COARSEST_STRIDE, 2 * COARSEST_STRIDE], "float32", "image")]

    def forward(self, image):
        outputs = self.model.head(self.model.neck(self.model.backbone({"image": image})))
        return outputs.class_logits + outputs.distances + outputs.quality_logits


@needs_export
def test_the_network_has_only_quantizable_operators(root, tmp_path):
    network = Network(with_random_weights(build_model(configured(root, B0, *SMALLER))))
    [spec] = network.specs()
    slim = onnxslim.slim(to_onnx(network, opset=13))
    constants = {initializer.name for initializer in slim.graph.initializer}
    assert {node.op_type for node in slim.graph.node} == QUANTIZABLE
    for node in slim.graph.node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Resize":
            assert attributes["mode"] == b"nearest"
        elif node.op_type == "Mul":
            assert constants & set(node.input)
        elif node.op_type == "Add":
            assert not constants & set(node.input)  # all biases are in convolutions
    image = np.random.default_rng(1).normal(size=spec.shape).astype("float32")
    session = onnxruntime.InferenceSession(slim.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image})
    assert len(found) == 15
    for one, other in zip(found, network(paddle.to_tensor(image))):
        assert np.abs(one - other.numpy()).max() <= 1e-4 * np.abs(other.numpy()).max()


@pytest.mark.parametrize("name", SIZES)
def test_every_weight_has_a_gradient(name, root):
    model = build_model(configured(root, name))
    model.train()
    batch = {
        "image": paddle.to_tensor(np.random.default_rng(0).integers(0, 256, [2, 3, 128, 160]), "uint8"),
        "im_shape": paddle.to_tensor([[128, 160], [100, 160]], "float32"),
        "gt_bbox": paddle.to_tensor(
            [[[8, 8, 120, 100], [40, 30, 60, 70]], [[5, 9, 150, 90], [0] * 4]], "float32"
        ),
        "gt_class": paddle.to_tensor([[0, 2], [1, 0]], "int32"),
    }
    losses = model(batch)
    losses["loss"].backward()
    assert np.isfinite([float(value) for value in losses.values()]).all()
    for place, weight in model.named_parameters():
        if not weight.stop_gradient:
            assert weight.grad is not None and np.isfinite(weight.grad.numpy()).all(), place


@needs_export
@pytest.mark.parametrize("overrides", [(), pytest.param(AS_PUBLISHED, marks=pytest.mark.slow)])
def test_a_bundle_of_free_sizes_gives_the_models_boxes(overrides, root, tmp_path, caplog):
    """The parity check compares images of 256x320 and 192x384, where P6 and P7 round up."""
    cfg = configured(root, B0, *SMALLER, *overrides)
    paddle.seed(0)
    model = with_random_weights(build_model(cfg))
    noise = next(noise_batches(network_input()))
    with paddle.no_grad():
        seen = model.network(paddle.to_tensor(noise["image"]), paddle.to_tensor(noise["im_shape"]))
    # Otherwise thousands of scores are 1, and their order is undefined.
    fit_logits(model.head.class_conv, seen.class_logits, -3, 2)
    fit_logits(model.head.quality_conv, seen.quality_logits, 0, 1)
    with caplog.at_level(logging.INFO, logger="ppfcos.export.bundle"):
        export_bundle(model, cfg, ["a", "b", "c"], tmp_path / "bundle")
    compared = re.search(r"gave the model's boxes \((\d+) compared\)", caplog.text)
    assert int(compared[1]) > 20


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("height, width", [(300, 400), (1200, 333)])
def test_every_image_is_padded_to_a_square(name, height, width, root):
    size = SIZES[name]
    assert size % COARSEST_STRIDE == 0  # no level rounds up: nothing is cut in the pyramid
    prepare = Preprocess(preprocess_steps(configured(root, name)["TestReader"]))
    batch = prepare([np.full([height, width, 3], 255, np.uint8)])
    assert batch["image"].shape == (1, 3, size, size)
    longer = max(height, width)
    np.testing.assert_allclose(
        batch["im_shape"][0], [height * size / longer, width * size / longer], atol=0.5
    )
    assert batch["image"][0, :, 0, 0].all() and not batch["image"][0, :, -1, -1].any()
