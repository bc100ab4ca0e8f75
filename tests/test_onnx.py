"""Pyramid and head go through paddle2onnx with free sizes; ONNX Runtime computes what Paddle does."""

from __future__ import annotations

import numpy as np
import onnxruntime
import paddle
import paddle2onnx
from paddle.static import InputSpec

from ppfcos.modeling.head import PPFCOSHead
from ppfcos.modeling.necks.fpn import PPFCOSFPN


class PyramidAndHead(paddle.nn.Layer):
    """C3, C4, C5 in, all of the head's answers out."""

    def __init__(self):
        super().__init__()
        self.neck = PPFCOSFPN(in_channels=[8, 16, 32], strides=[8, 16, 32], out_channels=32)
        self.head = PPFCOSHead(in_channels=32, strides=self.neck.strides, num_classes=3, num_convs=1)

    def forward(self, c3, c4, c5):
        outputs = self.head(self.neck([c3, c4, c5]))
        return outputs.class_logits + outputs.distances + outputs.quality_logits


def test_onnx_runtime_computes_what_paddle_does(tmp_path):
    paddle.seed(0)
    network = PyramidAndHead()
    network.eval()
    specs = [InputSpec([-1, c, -1, -1], "float32", f"c{i + 3}") for i, c in enumerate((8, 16, 32))]
    paddle.jit.save(paddle.jit.to_static(network, specs, full_graph=True), str(tmp_path / "model"))
    paddle2onnx.export(
        str(tmp_path / "model.json"),
        str(tmp_path / "model.pdiparams"),
        str(tmp_path / "model.onnx"),
        opset_version=13,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, height, width in ((1, 16, 24), (2, 12, 8)):
        features = {
            f"c{i + 3}": rng.normal(size=[batch, c, height >> i, width >> i]).astype("float32")
            for i, c in enumerate((8, 16, 32))
        }
        expected = [out.numpy() for out in network(*map(paddle.to_tensor, features.values()))]
        found = session.run(None, features)
        assert [out.shape for out in found] == [out.shape for out in expected]
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
