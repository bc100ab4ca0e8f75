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
from ppdet.modeling.layers import DeformableConvV2

from ppfcos.modeling.layers import (
    BATCH_NORMS,
    Conv2D,
    SeparableConv,
    batch_norm,
    norm_relu_conv,
    trains_on_cpu,
)


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
        if channels % 16:
            raise ValueError(
                f"PPFCOSHead.norm_type is gn, which needs a multiple of 16 channels, and the neck's "
                f"out_channels is {channels}"
            )
        return nn.GroupNorm(num_groups=32 if channels % 32 == 0 else 16, num_channels=channels)
    if norm_type in BATCH_NORMS:
        return batch_norm(norm_type, channels)
    if norm_type == "none":
        return nn.Identity()
    raise ValueError(f"PPFCOSHead.norm_type is {norm_type!r}: it is gn, bn, sync_bn or none")


def _norms(norm_type: str, channels: int, levels: int) -> nn.Layer:
    """One norm for all levels, or a list of as many as there are levels."""
    if levels == 0:
        return _norm(norm_type, channels)
    return nn.LayerList([_norm(norm_type, channels) for _ in range(levels)])


def _conv(in_channels: int, out_channels: int, bias: float = 0.0) -> Conv2D:
    return Conv2D(
        in_channels,
        out_channels,
        3,
        padding=1,
        weight_attr=ParamAttr(initializer=Normal(std=0.01)),
        bias_attr=ParamAttr(initializer=Constant(bias)),
    )


def _deformable_conv(channels: int) -> DeformableConvV2:
    """It starts as half of `_conv`: offsets are 0, masks sigmoid(0) (DCNv2, arXiv 1811.11168, section 3)."""
    return DeformableConvV2(
        channels,
        channels,
        3,
        weight_attr=ParamAttr(initializer=Normal(std=0.01)),
        bias_attr=True,
        # The optimizer treats its bias as every other one.
        dcn_bias_regularizer=None,
        dcn_bias_lr_scale=1.0,
    )


class Tower(nn.Layer):
    """Convolutions, each with a norm and ReLU behind it, and the predictions made from them.

    Args:
        channels: of every convolution.
        num_convs: how many.
        norm_type: `gn`, `bn`, `sync_bn` or `none`.
        deformable_convs: how many of them, counted from the last, are deformable.
        separable: the others are separable.
        norm_levels: of the pyramid that have a norm of their own behind each convolution; 0: all share one.
    """

    def __init__(
        self,
        channels: int,
        num_convs: int,
        norm_type: str,
        deformable_convs: int = 0,
        separable: bool = False,
        norm_levels: int = 0,
    ):
        super().__init__()
        conv = SeparableConv if separable else _conv
        plain = [conv(channels, channels) for _ in range(num_convs - deformable_convs)]
        deformable = [_deformable_conv(channels) for _ in range(deformable_convs)]
        self.convs = nn.LayerList(plain + deformable)
        self.norms = nn.LayerList([_norms(norm_type, channels, norm_levels) for _ in range(num_convs)])
        self.relu = nn.ReLU()

    def features(self, feature: Tensor, level: int) -> Tensor:
        """Run the tower.

        Args:
            feature: [B, channels, H_l, W_l].
            level: of the pyramid, from 0.

        Returns:
            [B, channels, H_l, W_l].
        """
        for index, conv in enumerate(self.convs):
            feature = self.relu(self._norm_behind(index, level)(conv(feature)))
        return feature

    def _norm_behind(self, index: int, level: int) -> nn.Layer:
        norm = self.norms[index]
        return norm[level] if isinstance(norm, nn.LayerList) else norm

    def forward(self, feature: Tensor, level: int, predictors: list) -> list:
        """Run the tower and the convolutions that predict from its end.

        Args:
            feature: [B, channels, H_l, W_l].
            level: of the pyramid, from 0.
            predictors: 3x3 convolutions.

        Returns:
            What each predictor says, [B, its channels, H_l, W_l].
        """
        if self._keeps_one_map(feature):
            return self._forward_keeping_one_map(feature, predictors)
        feature = self.features(feature, level)
        return [predictor(feature) for predictor in predictors]

    def _keeps_one_map(self, feature: Tensor) -> bool:
        group_norms = len(self.norms) > 0 and all(isinstance(norm, nn.GroupNorm) for norm in self.norms)
        plain = all(isinstance(conv, Conv2D) for conv in self.convs)
        return group_norms and plain and trains_on_cpu(self, feature)

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

    A third tower in front of them, which both share, makes a faster head: AdelaiDet's real-time models with
    "shared towers" have all their convolutions there.

    Args:
        in_channels: of every level; from the neck.
        strides: of the levels in pixels; from the neck.
        num_classes: C.
        num_convs: convolutions in each tower.
        norm_type: `gn`, `bn`, `sync_bn` or `none`, behind each of them.
        deformable_convs: how many of them, counted from the last, are deformable (DCNv2): 1 in the authors'
            code, AdelaiDet and MMDetection, all 4 in PaddleDetection's `use_dcn`.
        prior_prob: score that every class starts with (focal loss paper, section 4.1).
        centerness_on: `box` or `class`: the tower that predicts the quality; `none`: neither does, and the
            class alone is the score.
        distance: `relu`: distances are ReLU(scale·x)·stride; `exp`: they are exp(scale·x).
        norm_per_level: each level has norms of its own, as batch norms want it: the statistics differ.
        num_share_convs: convolutions in the tower that both share.
        separable: the towers' convolutions are depthwise 3x3 and pointwise 1x1, an eighth of the work.

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
        deformable_convs: int = 0,
        prior_prob: float = 0.01,
        centerness_on: str = "box",
        distance: str = "relu",
        norm_per_level: bool = False,
        num_share_convs: int = 0,
        separable: bool = False,
    ):
        super().__init__()
        if centerness_on not in ("box", "class", "none"):
            raise ValueError(f"PPFCOSHead.centerness_on is {centerness_on!r}: it is box, class or none")
        if distance not in ("relu", "exp"):
            raise ValueError(f"PPFCOSHead.distance is {distance!r}: it is relu or exp")
        if not 0 <= deformable_convs <= num_convs:
            raise ValueError(
                f"PPFCOSHead.deformable_convs is {deformable_convs!r}: it is 0 to num_convs, {num_convs}"
            )
        self.strides = strides
        self.num_classes = num_classes
        self.centerness_on = centerness_on
        self.distance = distance
        alike = {"separable": separable, "norm_levels": len(strides) if norm_per_level else 0}
        self.shared_tower = Tower(in_channels, num_share_convs, norm_type, **alike)
        self.class_tower = Tower(in_channels, num_convs, norm_type, deformable_convs, **alike)
        self.box_tower = Tower(in_channels, num_convs, norm_type, deformable_convs, **alike)
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
        for level, (feature, stride, scale) in enumerate(zip(features, self.strides, self.scales)):
            feature = self.shared_tower.features(feature, level)
            class_logits, *class_quality = self.class_tower(feature, level, self._predictors("class"))
            raw_distances, *box_quality = self.box_tower(feature, level, self._predictors("box"))
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
