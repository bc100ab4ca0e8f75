"""The losses of FCOS (paper, equation 2; TPAMI 2021, sections 3.3 and 3.4).

    L = (1/N⁺) Σ focal(class logits)
      + (1/Σ centerness) Σ⁺ centerness·(1 − GIoU)
      + (1/N⁺) Σ⁺ BCE(quality logits, centerness)

N⁺ and Σ centerness are sums over all ranks, so the gradients, averaged over ranks, are those of the whole
global batch and do not depend on the number of devices.
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
from ppfcos.modeling.layers import check_choice

EPSILON = 1e-7  # square pixels; avoids a division by an area of zero


class Normalizers(NamedTuple):
    """Scalar tensors that the sums over the points of this rank are divided by.

    Attributes:
        positives: N⁺ of all ranks (at least 1), divided by the number of ranks.
        centerness: Σ centerness of all ranks (at least a small ε), divided by the number of ranks.
    """

    positives: Tensor
    centerness: Tensor


def global_normalizers(parts: Sequence[Targets]) -> Normalizers:
    """Sum N⁺ and Σ centerness over the global batch with one all-reduce.

    The mean over the ranks of their summed losses is then exactly the loss of the global batch, also if few
    ranks have positives.

    Args:
        parts: targets of all images of this rank, one element for each forward pass.
    """
    parts = [targets for targets in parts if targets.positives.shape[0]]
    count = paddle.full([], float(sum(targets.positives.shape[0] for targets in parts)))
    centerness = paddle.add_n([paddle.zeros([]), *(targets.centerness.sum() for targets in parts)])
    sums = paddle.stack([count, centerness])
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size > 1:
        dist.all_reduce(sums)
    return Normalizers(sums[0].clip(min=1.0) / world_size, sums[1].clip(min=EPSILON) / world_size)


def focal_loss_sum(
    logits: Tensor,
    labels: Tensor,
    positives: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Sum the sigmoid focal loss over all points and classes (Lin et al., ICCV 2017, equation 5).

    The sum first takes all entries as background, then corrects those of the positives' classes. It needs no
    one-hot matrix.

    Args:
        logits: [B·P, C].
        labels: [B·P], C for the background.
        positives: [N⁺] indices of the points that are not background.
        alpha: weight of entries with target 1; 1 − alpha of those with target 0.
        gamma: focusing parameter.
        valid: [N] indices of the points to sum over, which include all positives; None for all points.
    """
    summed = logits if valid is None else logits.gather(valid)
    background = (1 - alpha) * (_power(F.sigmoid(summed), gamma) * F.softplus(summed)).sum()
    if not positives.shape[0]:
        return background
    own = logits.flatten().gather(positives * logits.shape[1] + labels.gather(positives))
    as_positive = alpha * _power(F.sigmoid(-own), gamma) * F.softplus(-own)
    as_background = (1 - alpha) * _power(F.sigmoid(own), gamma) * F.softplus(own)
    return background + (as_positive - as_background).sum()


def _power(base: Tensor, exponent: float) -> Tensor:
    # One product is many times faster than pow(), and 2 is the common exponent.
    return base * base if exponent == 2 else paddle.pow(base, exponent)


def giou_terms(predicted: Tensor, target: Tensor, smoothing: Tensor) -> tuple:
    """Compute the IoU of boxes around the same point and the term that GIoU subtracts from it.

    Args:
        predicted: [N, 4] distances l, t, r, b in pixels, not negative.
        target: [N, 4].
        smoothing: [N] square pixels that are added to intersection and union.

    Returns:
        IoU [N], and the fraction of the enclosing box outside of the union [N] (Rezatofighi et al., CVPR
        2019). GIoU is their difference.
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
        iou_smoothing: added to intersection and union of the IoU, in squared strides of the level. Lowers the
            weight of small boxes. 1 in the authors' code (iou_loss.py in fcos_core/layers, with
            NORM_REG_TARGETS), AdelaiDet and PaddleDetection; 0 in the papers.
        quality: target of the quality branch. `centerness`, which also weights the box loss; or `iou`, the
            IoU of the predicted box, with an unweighted box loss. Without a quality branch, it only selects
            the weights of the box loss.
        class_weight: of the classification loss in the sum.
        box_weight: of the box loss.
        quality_weight: of the quality loss.

    Raises:
        ValueError: an option has an unknown value, or the smoothing is negative.
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
        check_choice("PPFCOSLoss", "box_loss", box_loss, ("giou", "linear_iou", "iou"))
        check_choice("PPFCOSLoss", "quality", quality, ("centerness", "iou"))
        if not iou_smoothing >= 0:
            raise ValueError(f"PPFCOSLoss.iou_smoothing is {iou_smoothing!r}: it is 0 or more")
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.iou_smoothing = iou_smoothing
        self.quality = quality
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.quality_weight = quality_weight

    def forward(self, outputs: HeadOutputs, targets: Targets, normalizers: Normalizers) -> dict:
        """Return the scalars `loss_cls`, `loss_box`, `loss_quality` and their sum `loss` for this rank.

        Raises:
            ValueError: targets and outputs have different numbers of points.
        """
        class_logits = _flatten_levels(outputs.class_logits)
        if class_logits.shape[0] != targets.labels.shape[0]:
            raise ValueError(
                f"targets of {targets.labels.shape[0]} points for outputs at {class_logits.shape[0]}"
            )
        class_sum = focal_loss_sum(
            class_logits,
            targets.labels,
            targets.positives,
            self.focal_alpha,
            self.focal_gamma,
            targets.valid,
        )
        if targets.positives.shape[0]:
            box_sum, quality_sum = self._sum_positives(outputs, targets)
        else:  # Paddle 2.6 cannot compute with empty tensors on a GPU
            box_sum, quality_sum = _zero(outputs.distances), _zero(outputs.quality_logits)
        weights_boxes = self.quality == "centerness"
        box_normalizer = normalizers.centerness if weights_boxes else normalizers.positives
        losses = {
            "loss_cls": self.class_weight * class_sum / normalizers.positives,
            "loss_box": self.box_weight * box_sum / box_normalizer,
            "loss_quality": self.quality_weight * quality_sum / normalizers.positives,
        }
        losses["loss"] = losses["loss_cls"] + losses["loss_box"] + losses["loss_quality"]
        return losses

    def _sum_positives(self, outputs: HeadOutputs, targets: Targets) -> tuple:
        """Sum the box loss, and the binary cross-entropy of the quality (0 without a quality branch)."""
        predicted = _flatten_levels(outputs.distances).gather(targets.positives)
        box_losses, iou = self._box_losses(predicted, targets)
        if self.quality == "centerness":
            quality, box_losses = targets.centerness, box_losses * targets.centerness
        else:
            quality = iou.detach()
        if not outputs.quality_logits:
            return box_losses.sum(), paddle.zeros([])
        logits = _flatten_levels(outputs.quality_logits).flatten().gather(targets.positives)
        return box_losses.sum(), (F.softplus(logits) - logits * quality).sum()

    def _box_losses(self, predicted: Tensor, targets: Targets) -> tuple:
        """Return loss [N⁺] and IoU [N⁺] of the predicted distances [N⁺, 4] of the positives."""
        smoothing = self.iou_smoothing * targets.strides * targets.strides
        iou, outside = giou_terms(predicted, targets.distances, smoothing)
        if self.box_loss == "giou":
            return 1 - iou + outside, iou
        if self.box_loss == "linear_iou":
            return 1 - iou, iou
        return -paddle.log(iou.clip(min=EPSILON)), iou


def _zero(levels: list) -> Tensor:
    """Return a zero that depends on all levels: all weights have gradients, which other ranks wait for."""
    return paddle.add_n(
        [paddle.zeros([]), *(level.flatten()[:1].sum().astype("float32") * 0 for level in levels)]
    )


def _flatten_levels(levels: list) -> Tensor:
    """L × [B, K, H_l, W_l] → [B·P, K] float32, in the order of the targets."""
    channels = levels[0].shape[1]
    rows = [level.flatten(2).transpose([0, 2, 1]) for level in levels]
    return paddle.concat(rows, axis=1).reshape([-1, channels]).astype("float32")
