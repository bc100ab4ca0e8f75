"""Parts of the real-time models and of HRNet: shared towers, norms per level, DLA, HRFPN."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from ppdet.core.workspace import create

from ppfcos.config import load_config
from ppfcos.engine.model import build_model, has_sync_bn_backbone
from ppfcos.modeling.backbones.dla import PPFCOSDLA
from ppfcos.modeling.head import PPFCOSHead
from ppfcos.modeling.necks.hrfpn import PPFCOSHRFPN

CHANNELS = 32
SIZES = ((6, 8), (3, 4))


def head_of_two_levels(**options):
    paddle.seed(3)
    return PPFCOSHead(in_channels=CHANNELS, strides=[8, 16], num_classes=5, **options)


def features():
    random = np.random.default_rng(4)
    # Mean and deviation of the levels differ: a norm for both would average them.
    return [
        paddle.to_tensor(random.normal(level, 1 + level, [2, CHANNELS, *size]).astype("float32"))
        for level, size in enumerate(SIZES)
    ]


def test_each_level_has_its_own_statistics():
    head = head_of_two_levels(num_convs=1, norm_type="bn", norm_per_level=True)
    levels = features()
    head.train()
    head(levels)
    for tower in (head.class_tower, head.box_tower):
        assert len(tower.norms[0]) == 2
        for norm, feature in zip(tower.norms[0], levels):
            # After one step, Paddle's momentum has taken a tenth of the batch's mean.
            expected = 0.1 * tower.convs[0](feature).numpy().mean((0, 2, 3))
            np.testing.assert_allclose(norm._mean.numpy(), expected, rtol=1e-4, atol=1e-6)
    means = [norm._mean.numpy() for norm in head.box_tower.norms[0]]
    assert np.abs(means[0] - means[1]).max() > 1e-3


def test_both_towers_take_the_output_of_the_shared_tower():
    head = head_of_two_levels(num_convs=1, num_share_convs=2)
    head.eval()
    outputs = head(features())

    def run(tower, feature):
        for conv, norm in zip(tower.convs, tower.norms):
            feature = F.relu(norm(conv(feature)))
        return feature

    for level, feature in enumerate(features()):
        shared = run(head.shared_tower, feature)
        of_class, of_box = run(head.class_tower, shared), run(head.box_tower, shared)
        for found, expected in (
            (outputs.class_logits, head.class_conv(of_class)),
            (outputs.quality_logits, head.quality_conv(of_box)),
            (outputs.distances, F.relu(head.box_conv(of_box)) * head.strides[level]),
        ):
            np.testing.assert_allclose(found[level].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_every_weight_of_dla_has_a_gradient():
    """Distributed training would wait for a missing one."""
    net = PPFCOSDLA()
    levels = net({"image": paddle.randn([1, 3, 64, 96])})
    assert [level.shape for level in levels] == [
        [1, shape.channels, 64 // shape.stride, 96 // shape.stride] for shape in net.out_shape
    ]
    paddle.add_n([level.sum() for level in levels]).backward()
    learnt = {name: weight for name, weight in net.named_parameters() if not weight.stop_gradient}
    assert len(learnt) > 100
    assert [name for name, weight in learnt.items() if weight.grad is None] == []


def test_real_time_configurations_synchronize_the_backbone_and_decay_no_norm(root):
    cfg = load_config(root / "configs" / "fcos_dla34_fpn_rt_shared_towers_bn_head_4x_coco.yml")
    assert has_sync_bn_backbone(cfg)
    model = build_model(cfg)
    optimizer = create("OptimizerBuilder")(create("LearningRate")(step_per_epoch=10), model)
    without, others = optimizer._param_groups
    norms = [layer for layer in model.sublayers() if isinstance(layer, (nn.BatchNorm2D, nn.GroupNorm))]
    assert (without["regularization_coeff"], others["regularization_coeff"]) == (0.0, 0.0001)
    assert {id(weight) for weight in without["params"]} == {
        id(weight) for norm in norms for weight in (norm.weight, norm.bias)
    }
    assert len(others["params"]) + len(without["params"]) == sum(
        not weight.stop_gradient for weight in model.parameters()
    )


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (288, 224), (320, 416)])
def test_level_sizes_of_hrfpn(size):
    neck = PPFCOSHRFPN(in_channels=[4, 8], strides=[4, 8], out_channels=4)
    finest, next_one = ([side // stride for side in size] for stride in (4, 8))
    levels = neck([paddle.randn([1, 4, *finest]), paddle.randn([1, 8, *next_one])])
    assert [tuple(level.shape[2:]) for level in levels] == neck.level_sizes(*size)
    assert [shape.stride for shape in neck.out_shape] == [8, 16, 32, 64, 128]


def test_hrfpn_trains_with_a_coarsest_level_that_is_rounded_down(workspace):
    """288 pixels are 2.25 strides of 128: 3 rows in other pyramids, 2 here."""
    workspace["PPFCOS"].update(neck="PPFCOSHRFPN")
    workspace["ResNet"].update(depth=18, return_idx=[0, 1, 2, 3], num_stages=4, freeze_at=-1)
    workspace["PPFCOSHRFPN"].update(out_channels=CHANNELS)
    workspace["PPFCOSHead"].update(num_classes=3, num_convs=1)
    paddle.seed(1)
    model = create("PPFCOS")
    image = np.random.default_rng(2).integers(0, 256, [1, 3, 288, 96])
    batch = {
        "image": paddle.to_tensor(image, "uint8"),
        "im_shape": paddle.to_tensor([[288.0, 96.0]]),
        "scale_factor": paddle.ones([1, 2]),
        "gt_bbox": paddle.to_tensor([[[10.0, 10.0, 80.0, 270.0]]]),
        "gt_class": paddle.to_tensor([[1]]),
    }
    assert model.assign(batch).labels.shape == [36 * 12 + 18 * 6 + 9 * 3 + 5 * 2 + 2 * 1]
    loss = model(batch)["loss"]
    loss.backward()
    assert np.isfinite(float(loss))
    weights = model.neck.outputs[0].weight, model.neck.reduction.weight, model.head.box_conv.weight
    assert all(np.abs(weight.grad.numpy()).max() > 0 for weight in weights)
