"""The head of FCOS: for every location, classes, distances to a box's sides, and their quality.

Source: FCOS paper (arXiv 1904.01355), section 3.1 and figure 2; the improvements (centerness on the box
tower, distances by ReLU times the stride) TPAMI 2021, section 3.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, Normal
from ppdet.core.workspace import register

from ppfcos.modeling.convolution import Conv2D, norm_relu_conv, trains_on_cpu


class HeadOutputs(NamedTuple):
    """What the head says, one tensor a level, finest first.

    Attributes:
        class_logits: L × [B, C, H_l, W_l].
        distances: L × [B, 4, H_l, W_l] l, t, r, b in pixels of the network's input, never negative.
        quality_logits: L × [B, 1, H_l, W_l], of the centerness or of the IoU; empty where the head has no
            such branch.
    """

    class_logits: list
    distances: list
    quality_logits: list


def _norm(norm_type: str, channels: int) -> nn.Layer:
    if norm_type == "gn":
        return nn.GroupNorm(num_groups=32 if channels % 32 == 0 else 16, num_channels=channels)
    if norm_type == "bn":
        return nn.BatchNorm2D(channels)
    if norm_type == "sync_bn":
        # SyncBatchNorm exists on accelerators only; in one process on a CPU it is the same as BatchNorm.
        return nn.BatchNorm2D(channels) if paddle.get_device() == "cpu" else nn.SyncBatchNorm(channels)
    if norm_type == "none":
        return nn.Identity()
    raise ValueError(f"PPFCOSHead.norm_type is {norm_type!r}: it is gn, bn, sync_bn or none")


def _conv(in_channels: int, out_channels: int, bias: float = 0.0) -> Conv2D:
    return Conv2D(
        in_channels,
        out_channels,
        3,
        padding=1,
        weight_attr=ParamAttr(initializer=Normal(std=0.01)),
        bias_attr=ParamAttr(initializer=Constant(bias)),
    )


class Tower(nn.Layer):
    """Convolutions, each with a norm and ReLU behind it, and the predictions made from them.

    Args:
        channels: of every convolution.
        num_convs: how many.
        norm_type: `gn`, `bn`, `sync_bn` or `none`.
    """

    def __init__(self, channels: int, num_convs: int, norm_type: str):
        super().__init__()
        self.convs = nn.LayerList([_conv(channels, channels) for _ in range(num_convs)])
        self.norms = nn.LayerList([_norm(norm_type, channels) for _ in range(num_convs)])

    def forward(self, feature: Tensor, predictors: list) -> list:
        """Run the tower and the convolutions that predict from its end.

        Args:
            feature: [B, channels, H_l, W_l].
            predictors: 3x3 convolutions.

        Returns:
            What each predictor says, [B, its channels, H_l, W_l].
        """
        if self._keeps_one_map(feature):
            return self._forward_keeping_one_map(feature, predictors)
        for conv, norm in zip(self.convs, self.norms):
            feature = F.relu(norm(conv(feature)))
        return [predictor(feature) for predictor in predictors]

    def _keeps_one_map(self, feature: Tensor) -> bool:
        group_norms = len(self.norms) > 0 and all(isinstance(norm, nn.GroupNorm) for norm in self.norms)
        return group_norms and trains_on_cpu(self, feature)

    def _forward_keeping_one_map(self, feature: Tensor, predictors: list) -> list:
        """The same, with every norm and ReLU joined to the convolution behind it (see convolution.py)."""
        feature = self.convs[0](feature)
        for norm, conv in zip(self.norms, list(self.convs)[1:]):
            feature = norm_relu_conv(feature, norm, conv.weight, conv.bias)
        # All predictors as one convolution: the norm before them is then done again once, not once for each.
        weight = paddle.concat([predictor.weight for predictor in predictors])
        bias = paddle.concat([predictor.bias for predictor in predictors])
        joined = norm_relu_conv(feature, self.norms[-1], weight, bias)
        return joined.split([predictor.bias.shape[0] for predictor in predictors], axis=1)


@register
class PPFCOSHead(nn.Layer):
    """Two towers of convolutions, shared by all levels, and three predictions.

    Args:
        in_channels: of every level; from the neck.
        strides: of the levels in pixels; from the neck.
        num_classes: C.
        num_convs: convolutions in each tower.
        norm_type: `gn`, `bn`, `sync_bn` or `none`, behind each of them.
        prior_prob: score that every class starts with (focal loss paper, section 4.1).
        centerness_on: `box` or `class`: the tower that predicts the quality; `none`: neither does, and the
            class alone is the score.
        distance: `relu`: distances are ReLU(scale·x)·stride; `exp`: they are exp(scale·x).

    Raises:
        ValueError: an option is none of those named.
    """

    __shared__ = ("num_classes",)

    def __init__(
        self,
        in_channels: int,
        strides: list,
        num_classes: int = 80,
        num_convs: int = 4,
        norm_type: str = "gn",
        prior_prob: float = 0.01,
        centerness_on: str = "box",
        distance: str = "relu",
    ):
        super().__init__()
        if centerness_on not in ("box", "class", "none"):
            raise ValueError(f"PPFCOSHead.centerness_on is {centerness_on!r}: it is box, class or none")
        if distance not in ("relu", "exp"):
            raise ValueError(f"PPFCOSHead.distance is {distance!r}: it is relu or exp")
        self.strides = strides
        self.num_classes = num_classes
        self.centerness_on = centerness_on
        self.distance = distance
        self.class_tower = Tower(in_channels, num_convs, norm_type)
        self.box_tower = Tower(in_channels, num_convs, norm_type)
        self.class_conv = _conv(in_channels, num_classes, bias=-math.log((1 - prior_prob) / prior_prob))
        self.box_conv = _conv(in_channels, 4)
        if centerness_on != "none":
            self.quality_conv = _conv(in_channels, 1)
        self.scales = nn.ParameterList(
            [self.create_parameter([1], default_initializer=Constant(1.0)) for _ in strides]
        )

    @classmethod
    def from_config(cls, cfg, input_shape: list) -> dict:
        """What the workspace takes from the neck's `out_shape`."""
        return {
            "in_channels": input_shape[0].channels,
            "strides": [int(shape.stride) for shape in input_shape],
        }

    def forward(self, features: list) -> HeadOutputs:
        """Predict on every level.

        Args:
            features: L × [B, in_channels, H_l, W_l].

        Returns:
            The predictions.
        """
        outputs = HeadOutputs([], [], [])
        for feature, stride, scale in zip(features, self.strides, self.scales):
            class_logits, *class_quality = self.class_tower(feature, self._predictors("class"))
            raw_distances, *box_quality = self.box_tower(feature, self._predictors("box"))
            outputs.class_logits.append(class_logits)
            with paddle.amp.auto_cast(enable=False):  # float16 ends at e to the 11.1, and bfloat16 is coarse
                distances = self._distances(raw_distances.astype("float32") * scale, stride)
            outputs.distances.append(distances)
            outputs.quality_logits.extend(class_quality + box_quality)
        return outputs

    def _predictors(self, tower: str) -> list:
        own = self.class_conv if tower == "class" else self.box_conv
        return [own, self.quality_conv] if self.centerness_on == tower else [own]

    def _distances(self, scaled: Tensor, stride: int) -> Tensor:
        if self.distance == "relu":
            return F.relu(scaled) * stride
        return paddle.exp(scaled)
