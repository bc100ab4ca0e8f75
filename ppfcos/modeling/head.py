"""The head of FCOS: class logits, distances to the sides of a box, and quality logits at each point.

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

from ppfcos.modeling.layers import BATCH_NORMS, SeparableConv, batch_norm, check_choice


class HeadOutputs(NamedTuple):
    """Outputs of the head, one tensor a level, finest first.

    Attributes:
        class_logits: L × [B, C, H_l, W_l].
        distances: L × [B, 4, H_l, W_l] l, t, r, b in pixels of the network input, not negative.
        quality_logits: L × [B, 1, H_l, W_l] of the centerness or the IoU; empty if the head has no such
            branch.
    """

    class_logits: list
    distances: list
    quality_logits: list


def _norm(norm_type: str, channels: int, levels: int = 0) -> nn.Layer:
    """Return one norm for all levels, or a list with one norm for each level."""
    if levels:
        return nn.LayerList([_norm(norm_type, channels) for _ in range(levels)])
    if norm_type == "gn":
        if channels % 16:
            raise ValueError(
                f"PPFCOSHead.norm_type is gn, which needs a multiple of 16 channels, and the neck's "
                f"out_channels is {channels}"
            )
        return nn.GroupNorm(num_groups=32 if channels % 32 == 0 else 16, num_channels=channels)
    return nn.Identity() if norm_type == "none" else batch_norm(norm_type, channels)


def _conv(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2D:
    return nn.Conv2D(
        in_channels,
        out_channels,
        3,
        padding=1,
        weight_attr=ParamAttr(initializer=Normal(std=0.01)),
        bias_attr=ParamAttr(initializer=Constant(bias)),
    )


def _deformable_conv(channels: int) -> DeformableConvV2:
    """Deformable convolution. Its output starts as half of a convolution's: offsets are 0, masks 0.5.

    Source: DCNv2, arXiv 1811.11168, section 3.
    """
    return DeformableConvV2(
        channels,
        channels,
        3,
        weight_attr=ParamAttr(initializer=Normal(std=0.01)),
        bias_attr=True,
        # The optimizer treats its bias like all others.
        dcn_bias_regularizer=None,
        dcn_bias_lr_scale=1.0,
    )


class Tower(nn.Layer):
    """A stack of 3x3 convolutions, each followed by a norm and ReLU.

    Args:
        channels: of each convolution.
        num_convs: number of convolutions.
        norm_type: `gn`, `bn`, `sync_bn` or `none`.
        deformable_convs: how many of the last convolutions are deformable.
        separable: whether the others are separable.
        norm_levels: number of levels that have norms of their own; 0: all levels share them.
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
        self.norms = nn.LayerList([_norm(norm_type, channels, norm_levels) for _ in range(num_convs)])
        self.relu = nn.ReLU()

    def forward(self, feature: Tensor, level: int) -> Tensor:
        """[B, channels, H_l, W_l] of a level, counted from 0 → [B, channels, H_l, W_l]."""
        for conv, norm in zip(self.convs, self.norms):
            norm = norm[level] if isinstance(norm, nn.LayerList) else norm
            feature = self.relu(norm(conv(feature)))
        return feature


@register
class PPFCOSHead(nn.Layer):
    """Two towers of convolutions that all levels share, and three predictors.

    AdelaiDet's real-time models with "shared towers" have all their convolutions in a third tower before the
    other two.

    Args:
        in_channels: of each level; from the neck.
        strides: of the levels in pixels; from the neck.
        num_classes: C.
        num_convs: convolutions of each tower.
        norm_type: `gn`, `bn`, `sync_bn` or `none`, after each convolution.
        deformable_convs: how many of the last convolutions of a tower are deformable (DCNv2): 1 in the
            authors' code, AdelaiDet and MMDetection, all 4 with PaddleDetection's `use_dcn`.
        prior_prob: initial score of each class (focal loss paper, section 4.1).
        centerness_on: the tower that predicts the quality, `box` or `class`; `none`: there is no quality
            branch, and the score is that of the class.
        distance: `relu`: distances are ReLU(scale·x)·stride; `exp`: they are exp(scale·x).
        norm_per_level: each level has its own norms. Batch norms need it, since the statistics differ.
        num_share_convs: convolutions of the shared tower.
        separable: use depthwise 3x3 and pointwise 1x1 convolutions, with an eighth of the operations.

    Raises:
        ValueError: an option has an unknown value.
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
        check_choice("PPFCOSHead", "centerness_on", centerness_on, ("box", "class", "none"))
        check_choice("PPFCOSHead", "distance", distance, ("relu", "exp"))
        check_choice("PPFCOSHead", "norm_type", norm_type, ("gn", *BATCH_NORMS, "none"))
        if not 0 <= deformable_convs <= num_convs:
            raise ValueError(
                f"PPFCOSHead.deformable_convs is {deformable_convs!r}: it is 0 to num_convs, {num_convs}"
            )
        self.strides = strides
        self.num_classes = num_classes
        self.centerness_on = centerness_on
        self.distance = distance
        options = {"separable": separable, "norm_levels": len(strides) if norm_per_level else 0}
        self.shared_tower = Tower(in_channels, num_share_convs, norm_type, **options)
        self.class_tower = Tower(in_channels, num_convs, norm_type, deformable_convs, **options)
        self.box_tower = Tower(in_channels, num_convs, norm_type, deformable_convs, **options)
        self.class_conv = _conv(in_channels, num_classes, bias=-math.log((1 - prior_prob) / prior_prob))
        self.box_conv = _conv(in_channels, 4)
        if centerness_on != "none":
            self.quality_conv = _conv(in_channels, 1)
        self.scales = nn.ParameterList(
            [self.create_parameter([1], default_initializer=Constant(1.0)) for _ in strides]
        )

    @classmethod
    def from_config(cls, cfg, input_shape: list) -> dict:
        """Return the arguments that depend on the `out_shape` of the neck."""
        return {
            "in_channels": input_shape[0].channels,
            "strides": [int(shape.stride) for shape in input_shape],
        }

    def forward(self, features: list) -> HeadOutputs:
        """L × [B, in_channels, H_l, W_l] → the predictions of all levels."""
        outputs = HeadOutputs([], [], [])
        for level, (feature, stride, scale) in enumerate(zip(features, self.strides, self.scales)):
            feature = self.shared_tower(feature, level)
            class_feature = self.class_tower(feature, level)
            outputs.class_logits.append(self.class_conv(class_feature))
            if self.centerness_on == "class":
                outputs.quality_logits.append(self.quality_conv(class_feature))
            box_feature = self.box_tower(feature, level)
            raw_distances = self.box_conv(box_feature)
            if self.centerness_on == "box":
                outputs.quality_logits.append(self.quality_conv(box_feature))
            with paddle.amp.auto_cast(enable=False):  # exp() overflows float16, and bfloat16 is too coarse
                scaled = raw_distances.astype("float32") * scale
                distances = F.relu(scaled) * stride if self.distance == "relu" else paddle.exp(scaled)
            outputs.distances.append(distances)
        return outputs
