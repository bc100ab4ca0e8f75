"""Python files for `imports`: a loss, an assigner, a backbone, a transform and a logger."""

from __future__ import annotations

CIOU_LOSS = '''
import math

import paddle
from ppdet.core.workspace import register

from ppfcos.modeling.losses import PPFCOSLoss


@register
class CIoULoss(PPFCOSLoss):
    """Complete IoU (Zheng et al., AAAI 2020): distance of the centers and aspect ratio besides the IoU."""

    def _box_losses(self, predicted, targets):
        left, top, right, bottom = predicted.unbind(-1)
        l, t, r, b = targets.distances.unbind(-1)
        width = paddle.minimum(left, l) + paddle.minimum(right, r)
        height = paddle.minimum(top, t) + paddle.minimum(bottom, b)
        intersection = width * height
        union = (left + right) * (top + bottom) + (l + r) * (t + b) - intersection
        iou = intersection / union.clip(min=1e-7)
        diagonal = (paddle.maximum(left, l) + paddle.maximum(right, r)) ** 2
        diagonal += (paddle.maximum(top, t) + paddle.maximum(bottom, b)) ** 2
        distance = ((right - left) - (r - l)) ** 2 / 4 + ((bottom - top) - (b - t)) ** 2 / 4
        angle = paddle.atan((l + r) / (t + b)) - paddle.atan((left + right) / (top + bottom).clip(min=1e-7))
        aspect = 4 / math.pi**2 * angle**2
        weight = (aspect / (1 - iou + aspect).clip(min=1e-7)).detach()
        return 1 - iou + distance / diagonal.clip(min=1e-7) + weight * aspect, iou
'''

ATSS_ASSIGNER = '''
import paddle
from ppdet.core.workspace import register

from ppfcos.modeling.assigner import PPFCOSTargets


@register
class AdaptiveAssigner(PPFCOSTargets):
    """Adaptive training sample selection (Zhang et al., CVPR 2020), with square anchors of 8 strides."""

    def __init__(self, top_k: int = 9):
        super().__init__()
        self.top_k = top_k

    def _match(self, points, conditions, boxes):
        side = 8 * self.point_strides
        anchors = paddle.concat([points - side[:, None] / 2, points + side[:, None] / 2], 1)
        corner = paddle.minimum(anchors[:, None, 2:], boxes[:, None, :, 2:])
        overlap = (corner - paddle.maximum(anchors[:, None, :2], boxes[:, None, :, :2])).clip(min=0).prod(-1)
        areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[:, None]
        iou = overlap / (areas + (side**2)[:, None] - overlap)  # [B, P, M]
        centers = (boxes[..., 2:] + boxes[..., :2])[:, None] / 2
        distance = ((points[:, None] - centers) ** 2).sum(-1)
        near = paddle.zeros_like(iou)
        for stride in self.point_strides.unique().tolist():
            level = (self.point_strides == stride).astype("float32")[:, None]
            far = distance + (1 - level) * 1e12
            k = min(self.top_k, int(level.sum()))
            near += (far <= far.topk(k, axis=1, largest=False)[0][:, -1:]).astype("float32") * level
        count = near.sum(1, keepdim=True)
        mean = (iou * near).sum(1, keepdim=True) / count
        deviation = (((iou - mean) * near) ** 2).sum(1, keepdim=True) / (count - 1).clip(min=1)
        first, last = boxes[:, None, :, :2], boxes[:, None, :, 2:]
        sides = paddle.concat([points[:, None] - first, last - points[:, None]], -1)
        positive = (near > 0) & (iou >= mean + deviation.sqrt()) & (sides.min(-1) > 0)
        iou = paddle.where(positive, iou, paddle.full_like(iou, -1))
        none = paddle.full_like(iou[..., 0], boxes.shape[1]).astype("int64")
        return paddle.where(iou.max(-1) >= 0, iou.argmax(-1), none)

    def __call__(self, locations, strides, *inputs):
        levels = zip(locations, strides)
        self.point_strides = paddle.concat([paddle.full([len(level)], float(s)) for level, s in levels])
        return super().__call__(locations, strides, *inputs)
'''

SMALL_BACKBONE = '''
from paddle import nn
from ppdet.core.workspace import register
from ppdet.modeling.shape_spec import ShapeSpec


@register
class SmallBackbone(nn.Layer):
    """Five convolutions of stride 2; gives C3, C4 and C5."""

    def __init__(self, width: int = 16):
        super().__init__()
        channels = [3, width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.LayerList(
            nn.Sequential(
                nn.Conv2D(inside, outside, 3, stride=2, padding=1, bias_attr=False),
                nn.BatchNorm2D(outside),
                nn.ReLU(),
            )
            for inside, outside in zip(channels, channels[1:])
        )
        self.out_shape = [ShapeSpec(channels=channels[i + 1], stride=2 ** (i + 1)) for i in (2, 3, 4)]

    def forward(self, inputs):
        features = [inputs["image"]]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[3:]
'''

INVERT_TRANSFORM = '''
from ppdet.data.transform.operators import BaseOperator, register_op


@register_op
class Invert(BaseOperator):
    """Turns an image into its negative."""

    def apply(self, sample, context=None):
        sample["image"] = 255 - sample["image"]
        return sample
'''

CSV_LOGGER = '''
import csv

from ppdet.core.workspace import register

from ppfcos.engine.loggers import MetricLogger


@register
class CSVLogger(MetricLogger):
    """Writes position, name and value of each metric to a file in the folder of the run."""

    def __init__(self, filename: str = "metrics.csv"):
        self.filename = filename

    def begin(self, folder, steps, epochs):
        self.file = open(folder / self.filename, "a", newline="")
        self.rows = csv.writer(self.file)

    def add_scalars(self, values, position):
        self.rows.writerows((position, name, value) for name, value in values.items())
        self.file.flush()

    def close(self):
        self.file.close()
'''
