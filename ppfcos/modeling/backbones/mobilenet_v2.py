"""MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2).

The layers and their names are those of `paddle.vision`, so its ImageNet weights load by name.
"""

from __future__ import annotations

from paddle import Tensor, nn
from paddle.vision.models import MobileNetV2
from ppdet.core.workspace import register
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.layers import BATCH_NORMS, Add, check_choice

LAST_OF_STAGE = (3, 6, 13, 17)  # the last layer of each stride, as in the FCOS authors' mobilenet.py
STRIDES = (4, 8, 16, 32)


class Residual(nn.Layer):
    """An inverted residual block of `paddle.vision` with a skip connection."""

    def __init__(self, conv: nn.Layer):
        super().__init__()
        self.conv = conv
        self.add = Add()

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, channels, H, W] → [B, channels, H, W]."""
        return self.add(inputs, self.conv(inputs))


@register
class PPFCOSMobileNetV2(nn.Layer):
    """MobileNetV2 without its last 1x1 convolution and classifier.

    Args:
        scale: width multiplier.
        norm_type: `bn`, or `sync_bn` for statistics over all ranks (set by the trainer).
        freeze_norm: whether batch norms keep their statistics and weights.
        freeze_at: the last frozen stage, 0 to 3 for C2 to C5; -1: none.
        return_idx: the stages whose feature maps are returned, 0 to 3 for C2 to C5.

    Raises:
        ValueError: `norm_type` is neither.
    """

    __shared__ = ("norm_type",)

    def __init__(
        self,
        scale: float = 1.0,
        norm_type: str = "bn",
        freeze_norm: bool = False,
        freeze_at: int = -1,
        return_idx: list = (1, 2, 3),
    ):
        super().__init__()
        check_choice("PPFCOSMobileNetV2", "norm_type", norm_type, BATCH_NORMS)
        self.return_idx = list(return_idx)
        depth = LAST_OF_STAGE[max(self.return_idx)] + 1
        self.features = MobileNetV2(scale, num_classes=0, with_pool=False).features[:depth]
        for i, layer in enumerate(self.features):
            if getattr(layer, "use_res_connect", False):
                self.features[i] = Residual(layer.conv)
        if freeze_norm:
            _freeze_norms(self.features)
        if freeze_at >= 0:
            for weight in self.features[: LAST_OF_STAGE[freeze_at] + 1].parameters():
                weight.stop_gradient = True

    @property
    def out_shape(self) -> list:
        """Channels and stride of each feature map, finest first."""
        # A block ends with a batch norm.
        channels = [self.features[LAST_OF_STAGE[i]].conv[-1].weight.shape[0] for i in self.return_idx]
        return [ShapeSpec(channels=c, stride=STRIDES[i]) for c, i in zip(channels, self.return_idx)]

    def forward(self, inputs: dict) -> list:
        """`image` [B, 3, H, W], normalized → [B, channels, H_l, W_l] of each stage in `return_idx`."""
        feature, stages = inputs["image"], []
        for i, layer in enumerate(self.features):
            feature = layer(feature)
            if i in LAST_OF_STAGE:
                stages.append(feature)
        return [stages[i] for i in sorted(self.return_idx)]


def _freeze_norms(features: nn.Layer) -> None:
    for layer in features.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._use_global_stats = True  # what the argument of this name sets
            layer.weight.stop_gradient = layer.bias.stop_gradient = True
