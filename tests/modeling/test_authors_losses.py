"""Losses and gradients of all weights equal those of the authors' formulas in PyTorch.

Source: tianzhi0549/FCOS (a773f1281275cf1e1cdaa0ca8c4a06b33036bb71), loss.py and fcos.py in
fcos_core/modeling/rpn/fcos, iou_loss.py and sigmoid_focal_loss.py in fcos_core/layers. Its IoU adds 1 to
intersection and union: a squared stride with NORM_REG_TARGETS, a square pixel without.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppfcos.modeling.assigner import PPFCOSTargets
from ppfcos.modeling.fcos import center_grid
from ppfcos.modeling.head import PPFCOSHead
from ppfcos.modeling.losses import PPFCOSLoss, global_normalizers

torch = pytest.importorskip("torch", reason="what ours is compared with (requirements/torch.txt)")
F = torch.nn.functional

CLASSES, CHANNELS, STRIDES, RANGES = 5, 64, [8, 16, 32], [24, 40]
HEIGHT, WIDTH = 96, 128


class Small(paddle.nn.Layer):
    """A backbone of three levels, and the head."""

    def __init__(self, centerness_on: str, distance: str):
        super().__init__()
        self.stem = paddle.nn.Conv2D(3, CHANNELS, 9, stride=8, padding=4)
        self.down = paddle.nn.LayerList(
            [paddle.nn.Conv2D(CHANNELS, CHANNELS, 3, stride=2, padding=1) for _ in STRIDES[1:]]
        )
        self.head = PPFCOSHead(
            CHANNELS, STRIDES, CLASSES, 2, "gn", centerness_on=centerness_on, distance=distance
        )

    def forward(self, image):
        levels = [paddle.nn.functional.relu(self.stem(image))]
        for conv in self.down:
            levels.append(paddle.nn.functional.relu(conv(levels[-1])))
        return self.head(levels)


def theirs(weights, image, centerness_on, distance):
    """The same network in PyTorch: class logits, distances in pixels and centerness logits of each level."""

    def conv(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, weights[f"{name}.bias"], stride, kernel.shape[2] // 2)

    def tower(x, name):
        for i in range(2):
            norm = f"{name}.norms.{i}"
            x = conv(x, f"{name}.convs.{i}")
            x = F.relu(F.group_norm(x, 32, weights[f"{norm}.weight"], weights[f"{norm}.bias"]))
        return x

    levels = [F.relu(conv(image, "stem", 8))]
    for i in range(2):
        levels.append(F.relu(conv(levels[-1], f"down.{i}", 2)))
    answers = []
    for i, (level, stride) in enumerate(zip(levels, STRIDES)):
        by_class, by_box = tower(level, "head.class_tower"), tower(level, "head.box_tower")
        raw = conv(by_box, "head.box_conv") * weights[f"head.scales.{i}"]
        quality = conv(by_box if centerness_on == "box" else by_class, "head.quality_conv")
        boxes = F.relu(raw) * stride if distance == "relu" else torch.exp(raw)
        answers.append((conv(by_class, "head.class_conv"), boxes, quality))
    return answers


def targets_of(boxes, labels, radius):
    """compute_targets_for_locations for one image: label (C: background) and l, t, r, b of each point."""
    found, ends = [], [0, *RANGES, 1e8]
    for level, stride in enumerate(STRIDES):
        for y in np.arange(-(-HEIGHT // stride)) * stride + stride / 2:
            for x in np.arange(-(-WIDTH // stride)) * stride + stride / 2:
                sides = np.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], axis=1)
                center = (boxes[:, :2] + boxes[:, 2:]) / 2
                near = np.abs(center - [x, y]).max(axis=1) < radius * stride if radius else True
                largest = sides.max(axis=1)
                hits = (sides.min(axis=1) > 0) & near & (largest > ends[level]) & (largest <= ends[level + 1])
                area = np.where(hits, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.inf)
                best = int(area.argmin())
                found.append((labels[best], sides[best]) if hits.any() else (CLASSES, np.ones(4)))
    return np.array([label for label, _ in found]), np.stack([sides for _, sides in found])


def iou_loss(predicted, wanted, kind, ones):
    """IOULoss; `ones` is 1 or 0."""

    def area(sides):
        return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])

    low, high = torch.minimum(predicted, wanted), torch.maximum(predicted, wanted)
    intersection, hull = area(low), area(high)
    union = area(predicted) + area(wanted) - intersection
    iou = (intersection + ones) / (union + ones)
    if kind == "iou":
        return -torch.log(iou)
    return 1 - iou if kind == "linear_iou" else 1 - (iou - (hull - union) / hull)


def losses_of(answers, labels, sides, strides, kind, ones):
    """FCOSLossComputation on one process, with NORM_REG_TARGETS."""
    flat = [
        torch.cat(
            [level[k].permute(0, 2, 3, 1).reshape(len(level[k]), -1, level[k].shape[1]) for level in answers],
            1,
        )
        for k in range(3)
    ]
    logits, boxes, quality = (part.reshape(-1, part.shape[2]) for part in flat)
    labels, sides = torch.tensor(labels), torch.tensor(sides, dtype=torch.float64)
    chosen = torch.nonzero(labels < CLASSES).flatten()
    count = max(len(chosen), 1)
    one_hot = F.one_hot(labels, CLASSES + 1)[:, :CLASSES].double()
    p = torch.sigmoid(logits)
    focal = -0.25 * one_hot * (1 - p) ** 2 * torch.log(p) - 0.75 * (1 - one_hot) * p**2 * torch.log(1 - p)
    left, top, right, bottom = sides[chosen].unbind(1)
    centerness = torch.sqrt(
        torch.minimum(left, right)
        / torch.maximum(left, right)
        * torch.minimum(top, bottom)
        / torch.maximum(top, bottom)
    )
    cells = torch.tensor(strides, dtype=torch.float64)[chosen, None]
    box_losses = iou_loss(boxes[chosen] / cells, sides[chosen] / cells, kind, ones)
    return {
        "loss_cls": focal.sum() / count,
        "loss_box": (box_losses * centerness).sum() / centerness.sum(),
        "loss_quality": F.binary_cross_entropy_with_logits(quality[chosen, 0], centerness, reduction="sum")
        / count,
    }


@pytest.mark.parametrize(
    ("centerness_on", "distance", "kind", "radius", "ones"),
    [
        ("class", "exp", "iou", 0, 0.0),
        ("box", "relu", "giou", 1.5, 1.0),
        ("box", "exp", "linear_iou", 1.5, 1.0),
    ],
    ids=["original", "improved", "linear"],
)
def test_losses_and_gradients_of_all_weights(centerness_on, distance, kind, radius, ones):
    paddle.seed(3)
    rng = np.random.default_rng(5)
    model = Small(centerness_on, distance)
    for weight in model.parameters():  # with the initial weights, gradients are tiny
        weight.set_value(weight + 0.1 * paddle.randn(weight.shape))
    if distance == "relu":  # otherwise half of the distances are 0, without gradient
        model.head.box_conv.bias.set_value(paddle.full([4], 2.0))
    corner = rng.uniform(0, [70, 50], (2, 7, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 60, (2, 7, 2))], axis=2).clip(
        0, [WIDTH, HEIGHT] * 2
    )
    boxes = boxes.astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, 7))
    image = rng.normal(0, 1, (2, 3, HEIGHT, WIDTH)).astype(np.float32)

    ours_locations = [center_grid(HEIGHT // stride, WIDTH // stride, stride).points() for stride in STRIDES]
    assign = PPFCOSTargets(RANGES, radius)
    targets = assign(ours_locations, STRIDES, paddle.to_tensor(boxes), paddle.to_tensor(labels), CLASSES)
    loss = PPFCOSLoss(box_loss=kind, iou_smoothing=ones)
    ours = loss(model(paddle.to_tensor(image)), targets, global_normalizers([targets]))
    ours["loss"].backward()

    weights = {
        name: torch.tensor(weight.numpy(), dtype=torch.float64, requires_grad=True)
        for name, weight in model.named_parameters()
    }
    answers = theirs(weights, torch.tensor(image, dtype=torch.float64), centerness_on, distance)
    wanted = [targets_of(*each, radius) for each in zip(boxes.astype(np.float64), labels)]
    found_labels, sides = (np.concatenate(part) for part in zip(*wanted))
    strides = np.tile(np.repeat(STRIDES, [len(level) for level in ours_locations]), len(boxes))
    expected = losses_of(answers, found_labels, sides, strides, kind, ones)
    sum(expected.values()).backward()

    assert len(targets.positives) > 20
    for name, value in expected.items():
        assert float(ours[name]) == pytest.approx(value.item(), rel=1e-4), name
    for name, weight in model.named_parameters():
        slope = weights[name].grad.numpy()
        assert np.abs(slope).max() > 0, name
        np.testing.assert_allclose(
            weight.grad.numpy(), slope, rtol=1e-4, atol=1e-4 * np.abs(slope).max(), err_msg=name
        )
