"""The losses of FCOS (paper, equation 2; TPAMI 2021, sections 3.3 and 3.4).

    L = (1/N⁺) Σ focal(class logits)
      + (1/Σ centerness) Σ⁺ centerness·(1 − GIoU)
      + (1/N⁺) Σ⁺ BCE(quality logits, centerness)

N⁺ and Σ centerness are sums over all processes, so that the gradients, averaged over processes, are those of
the whole global batch, however many devices share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import Tensor, nn
from ppdet.core.workspace import register

from ppfcos.boxes import distance_areas
from ppfcos.modeling.assigner import Targets
from ppfcos.modeling.head import HeadOutputs

EPSILON = 1e-7  # square pixels, against a division by the area of nothing


class Normalizers(NamedTuple):
    """What the sums over this process's locations are divided by, each a scalar tensor.

    Attributes:
        positives: N⁺ of all processes (at least 1), divided by the number of processes.
        centerness: Σ centerness of all processes (at least a small ε), divided by the number of processes.
    """

    positives: Tensor
    centerness: Tensor


def global_normalizers(parts: Sequence[Targets]) -> Normalizers:
    """Sum N⁺ and Σ centerness over the whole global batch, in one message between the processes.

    Args:
        parts: targets of all of this process's images, however many forward passes they take.

    Returns:
        The sums over the parts of all processes, never below 1 and ε, divided by the number of processes. So
        the mean over the processes of the sums of their parts' losses is the loss of the joined batch to the
        last digit, also where hardly any process has a positive.
    """
    sums = paddle.stack(
        [
            paddle.full([], float(sum(targets.positives.shape[0] for targets in parts))),
            paddle.add_n([_sum(each.centerness, each.labels).astype("float32") for each in parts]),
        ]
    )
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes > 1:
        dist.all_reduce(sums)
    return Normalizers(sums[0].clip(min=1.0) / processes, sums[1].clip(min=EPSILON) / processes)


def focal_loss_sum(
    logits: Tensor,
    labels: Tensor,
    positives: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    counted: Tensor | None = None,
) -> Tensor:
    """Sum of the sigmoid focal loss over all locations and classes (Lin et al., ICCV 2017, equation 5).

    Every entry is first taken as background; the few that are a positive's own class are then corrected. So
    no one-hot matrix is made.

    Args:
        logits: [B·P, C].
        labels: [B·P], C for the background.
        positives: [N⁺] the locations that are not background.
        alpha: weight of an entry that should be 1; 1 − alpha of one that should be 0.
        gamma: focusing power.
        counted: [N] the locations that are summed over, all positives among them; None: all.

    Returns:
        Scalar.
    """
    summed = logits if counted is None else logits.gather(counted)
    background = (1 - alpha) * (_power(F.sigmoid(summed), gamma) * F.softplus(summed)).sum()
    own = logits.flatten().gather(positives * logits.shape[1] + labels.gather(positives))
    as_positive = alpha * _power(F.sigmoid(-own), gamma) * F.softplus(-own)
    as_background = (1 - alpha) * _power(F.sigmoid(own), gamma) * F.softplus(own)
    return background + _sum(as_positive - as_background, logits)


def _sum(values: Tensor, chosen_from: Tensor) -> Tensor:
    """Add up what was computed for the positives.

    Args:
        values: [N⁺]; Paddle 2.6 refuses to add up nothing.
        chosen_from: of whatever shape. Without positives the sum is a 0 that depends on it: every weight has
            a gradient then, which other processes, whose images have objects, wait for.
    """
    return values.sum() if values.shape[0] else (chosen_from.flatten()[:1] * 0).sum()


def _power(base: Tensor, exponent: float) -> Tensor:
    # pow() with a real exponent is many times dearer than one product, and 2 is what everybody uses.
    return base * base if exponent == 2 else paddle.pow(base, exponent)


def iou_of(predicted: Tensor, target: Tensor, smoothing: Tensor) -> tuple:
    """IoU of boxes that share a location, and what GIoU subtracts from it.

    Args:
        predicted: [N, 4] distances l, t, r, b in pixels, none below zero.
        target: [N, 4] likewise.
        smoothing: [N] square pixels that are added to intersection and union.

    Returns:
        IoU [N] and the share of the enclosing box that neither covers [N] (Rezatofighi et al., CVPR 2019).
    """
    intersection = distance_areas(paddle.minimum(predicted, target))
    union = distance_areas(predicted) + distance_areas(target) - intersection
    enclosing = distance_areas(paddle.maximum(predicted, target))
    iou = (intersection + smoothing) / (union + smoothing).clip(min=EPSILON)
    return iou, (enclosing - union) / enclosing.clip(min=EPSILON)


@register
class PPFCOSLoss(nn.Layer):
    """Classification, box and quality loss.

    Args:
        focal_alpha: of the focal loss.
        focal_gamma: of the focal loss.
        box_loss: `giou` 1 − GIoU, `linear_iou` 1 − IoU, or `iou` −log IoU.
        iou_smoothing: what is added to intersection and union of the IoU, in squared strides of the level:
            small boxes weigh less. 1 in the authors' code (iou_loss.py in fcos_core/layers, with
            NORM_REG_TARGETS), AdelaiDet and PaddleDetection; 0 is the papers' IoU.
        quality: `centerness`: the second branch learns the centerness, which also weighs the box loss; `iou`:
            it learns the IoU of the predicted box, and the box loss is not weighed. Of a head without that
            branch, it says only whether the box loss is weighed.
        class_weight: of the classification loss in the sum.
        box_weight: of the box loss.
        quality_weight: of the quality loss.

    Raises:
        ValueError: an option is none of those named, or the smoothing is below zero.
    """

    def __init__(
        self,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss: str = "giou",
        iou_smoothing: float = 0.0,
        quality: str = "centerness",
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        quality_weight: float = 1.0,
    ):
        super().__init__()
        if box_loss not in ("giou", "linear_iou", "iou"):
            raise ValueError(f"PPFCOSLoss.box_loss is {box_loss!r}: it is giou, linear_iou or iou")
        if not iou_smoothing >= 0:
            raise ValueError(f"PPFCOSLoss.iou_smoothing is {iou_smoothing!r}: it is 0 or more")
        if quality not in ("centerness", "iou"):
            raise ValueError(f"PPFCOSLoss.quality is {quality!r}: it is centerness or iou")
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.iou_smoothing = iou_smoothing
        self.quality = quality
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.quality_weight = quality_weight

    def forward(self, outputs: HeadOutputs, targets: Targets, normalizers: Normalizers) -> dict:
        """The losses of this process's images.

        Args:
            outputs: of the head.
            targets: of the same images.
            normalizers: of the global batch.

        Returns:
            Scalars `loss_cls`, `loss_box`, `loss_quality` and their sum `loss`.

        Raises:
            ValueError: the targets are of other locations than the outputs.
        """
        class_logits = _flatten_levels(outputs.class_logits)
        if class_logits.shape[0] != targets.labels.shape[0]:
            raise ValueError(
                f"targets of {targets.labels.shape[0]} locations for outputs at {class_logits.shape[0]}"
            )
        class_sum = focal_loss_sum(
            class_logits,
            targets.labels,
            targets.positives,
            self.focal_alpha,
            self.focal_gamma,
            targets.counted,
        )
        distances = _flatten_levels(outputs.distances)
        box_loss, iou = self._box_losses(distances.gather(targets.positives), targets)
        if self.quality == "centerness":
            quality, box_sum = targets.centerness, _sum(box_loss * targets.centerness, distances)
            box_divisor = normalizers.centerness
        else:
            quality, box_sum = iou.detach(), _sum(box_loss, distances)
            box_divisor = normalizers.positives
        quality_sum = self._quality_loss(outputs.quality_logits, targets.positives, quality)
        losses = {
            "loss_cls": self.class_weight * class_sum / normalizers.positives,
            "loss_box": self.box_weight * box_sum / box_divisor,
            "loss_quality": self.quality_weight * quality_sum / normalizers.positives,
        }
        losses["loss"] = losses["loss_cls"] + losses["loss_box"] + losses["loss_quality"]
        return losses

    @staticmethod
    def _quality_loss(levels: list, positives: Tensor, quality: Tensor) -> Tensor:
        """Sum over the positives; 0 of a head that predicts no quality."""
        if not levels:
            return paddle.zeros([])
        all_logits = _flatten_levels(levels).flatten()
        logits = all_logits.gather(positives)
        return _sum(F.softplus(logits) - logits * quality, all_logits)

    def _box_losses(self, predicted: Tensor, targets: Targets) -> tuple:
        """Loss [N⁺] and IoU [N⁺] of each positive, of its predicted distances [N⁺, 4]."""
        smoothing = self.iou_smoothing * targets.strides * targets.strides
        iou, uncovered = iou_of(predicted, targets.distances, smoothing)
        if self.box_loss == "giou":
            return 1 - iou + uncovered, iou
        if self.box_loss == "linear_iou":
            return 1 - iou, iou
        return -paddle.log(iou.clip(min=EPSILON)), iou


def _flatten_levels(levels: list) -> Tensor:
    """L × [B, K, H_l, W_l] → [B·P, K] float32, in the order of the targets."""
    channels = levels[0].shape[1]
    rows = [level.flatten(2).transpose([0, 2, 1]) for level in levels]
    return paddle.concat(rows, axis=1).reshape([-1, channels]).astype("float32")
