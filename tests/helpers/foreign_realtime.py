"""AdelaiDet's real-time FCOS and MMDetection's with HRNet in PyTorch, as in foreign_networks.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from helpers import foreign_networks as foreign

LEVELS = 3  # P3 to P5


def conv_norm(inputs, outputs, kernel=3, stride=1, relu=True):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Block(nn.Module):
    """Two convolutions; the caller passes the shortcut where they have a stride."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x, shortcut=None):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if shortcut is None else shortcut))


class Root(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, *parts):
        return F.relu(self.bn(self.conv(torch.cat(parts, 1))))


class Tree(nn.Module):
    """Depth 1: two blocks and a root. Deeper: two trees; the root of the second takes all outputs."""

    def __init__(self, depth, inputs, outputs, stride=1, keeps_input=False, joined=0):
        super().__init__()
        self.stride, self.keeps_input, self.depth = stride, keeps_input, depth
        joined += inputs if keeps_input else 0
        if depth == 1:
            self.tree1, self.tree2 = Block(inputs, outputs, stride), Block(outputs, outputs)
            self.root = Root(2 * outputs + joined, outputs)
        else:
            self.tree1 = Tree(depth - 1, inputs, outputs, stride)
            self.tree2 = Tree(depth - 1, outputs, outputs, joined=joined + outputs)
        if inputs != outputs:  # also where nothing uses it
            self.project = conv_norm(inputs, outputs, 1, relu=False)

    def forward(self, x, joined=()):
        pooled = F.max_pool2d(x, self.stride) if self.stride > 1 else x
        joined = (*joined, pooled) if self.keeps_input else joined
        if self.depth > 1:
            first = self.tree1(x)
            return self.tree2(first, (*joined, first))
        first = self.tree1(x, self.project(pooled) if hasattr(self, "project") else pooled)
        return self.root(self.tree2(first), first, *joined)


class Dla(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = conv_norm(3, 16, 7)
        self.level0, self.level1 = conv_norm(16, 16), conv_norm(16, 32, stride=2)
        self.level2 = Tree(1, 32, 64, 2)
        self.level3 = Tree(2, 64, 128, 2, keeps_input=True)
        self.level4 = Tree(2, 128, 256, 2, keeps_input=True)
        self.level5 = Tree(1, 256, 512, 2, keeps_input=True)

    def forward(self, x):
        outputs = [self.base_layer(x)]
        for level in range(6):
            outputs.append(getattr(self, f"level{level}")(outputs[-1]))
        return outputs[-LEVELS:]


def tower(convs, batch_norm):
    """Batch norms are lists of one for each level."""
    layers = []
    for _ in range(convs):
        norm = nn.GroupNorm(32, foreign.CHANNELS)
        if batch_norm:
            norm = nn.ModuleList(nn.BatchNorm2d(foreign.CHANNELS) for _ in range(LEVELS))
        layers += [foreign.conv3(foreign.CHANNELS), norm, nn.ReLU()]
    return nn.Sequential(*layers)


def run_tower(layers, x, level):
    for layer in layers:
        x = layer[level](x) if isinstance(layer, nn.ModuleList) else layer(x)
    return x


class RealTime(foreign.Adelaidet):
    """`shared`: all convolutions are in the shared tower, otherwise none."""

    def __init__(self, dla, shared, batch_norm):
        foreign.Stacked.__init__(self)
        net = self.backbone = nn.Module()
        net.bottom_up = Dla() if dla else foreign.Detectron2Resnet()
        for i, channels in enumerate((128, 256, 512) if dla else (512, 1024, 2048)):
            setattr(net, f"fpn_lateral{i + 3}", nn.Conv2d(channels, foreign.CHANNELS, 1))
            setattr(net, f"fpn_output{i + 3}", foreign.conv3(foreign.CHANNELS))
        head = self.make_head()
        own = 0 if shared else foreign.CONVS
        head.share_tower = tower(foreign.CONVS - own, batch_norm)
        head.cls_tower, head.bbox_tower = tower(own, batch_norm), tower(own, batch_norm)
        head.scales = head.scales[:LEVELS]
        self.proposal_generator = nn.Module()
        self.proposal_generator.fcos_head = head

    def settle_norms(self):
        """Set the statistics of the head's batch norms to those of noise, which differ between levels."""
        norms = [m for m in self.proposal_generator.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        with torch.no_grad():
            self.levels(60 * torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(1)))
        for norm in norms:
            norm.eval()

    def levels(self, x):
        head, net, outputs = self.proposal_generator.fcos_head, self.backbone, []
        features, inner = net.bottom_up(x), None
        for i in (5, 4, 3):
            below = getattr(net, f"fpn_lateral{i}")(features[i - 3])
            inner = below if inner is None else below + F.interpolate(inner, scale_factor=2)
            features[i - 3] = getattr(net, f"fpn_output{i}")(inner)
        for level, feature in enumerate(features):
            shared = run_tower(head.share_tower, feature, level)
            of_class, of_box = (run_tower(part, shared, level) for part in (head.cls_tower, head.bbox_tower))
            distances = F.relu(head.scales[level](head.bbox_pred(of_box))) * foreign.STRIDES[level]
            outputs.append((head.cls_logits(of_class), distances, head.ctrness(of_box)))
        return outputs


class HrModule(nn.Module):
    """Branches of halved sizes, and their sums at each size."""

    def __init__(self, widths):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Block(c, c) for _ in range(4))) for c in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    @staticmethod
    def _path(widths, source, target):
        if source == target:
            return None
        if source > target:
            layers = [*conv_norm(widths[source], widths[target], 1, relu=False)]
            return nn.Sequential(*layers, nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"))
        steps = [conv_norm(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, conv_norm(widths[source], widths[target], stride=2, relu=False))

    def forward(self, features):
        outs = [branch(x) for branch, x in zip(self.branches, features)]
        return [
            F.relu(sum(x if path is None else path(x) for path, x in zip(paths, outs)))
            for paths in self.fuse_layers
        ]


class Hrnet(nn.Module):
    def __init__(self, width=18):
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        inputs = (64, 256, 256, 256)
        blocks = (foreign.Bottleneck(c, 64, 256, 1, 1, False, nn.BatchNorm2d) for c in inputs)
        self.layer1 = nn.Sequential(*blocks)
        self.transition1 = nn.ModuleList(
            [conv_norm(256, width), nn.Sequential(conv_norm(256, widths[1], stride=2))]
        )
        for stage, modules in ((2, 1), (3, 4), (4, 3)):
            if stage > 2:
                new = nn.Sequential(conv_norm(widths[stage - 2], widths[stage - 1], stride=2))
                setattr(self, f"transition{stage - 1}", nn.ModuleList([*[None] * (stage - 1), new]))
            setattr(self, f"stage{stage}", nn.Sequential(*(HrModule(widths[:stage]) for _ in range(modules))))

    def forward(self, x):
        x = self.layer1(F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))))
        features = self.stage2([begin(x) for begin in self.transition1])
        features = self.stage3([*features, self.transition2[-1](features[-1])])
        return self.stage4([*features, self.transition3[-1](features[-1])])


class MmdetHrnet(foreign.Mmdet):
    mean, std, bgr = (103.530, 116.280, 123.675), (57.375, 57.120, 58.395), True

    def __init__(self):
        super().__init__(improved=False)
        del self.mean, self.std
        self.backbone, self.neck = Hrnet(), nn.Module()
        self.neck.reduction_conv = self._module(nn.Conv2d(18 * 15, foreign.CHANNELS, 1))
        self.neck.fpn_convs = nn.ModuleList(
            self._module(foreign.conv3(foreign.CHANNELS, 2)) for _ in range(5)
        )

    def features(self, x):
        first, *others = self.backbone(x)
        joined = [F.interpolate(x, scale_factor=2 ** (i + 1), mode="bilinear") for i, x in enumerate(others)]
        joined = self.neck.reduction_conv.conv(torch.cat([first, *joined], 1))
        sizes = [2**i for i in range(5)]
        pooled = [joined if size == 1 else F.avg_pool2d(joined, size, size) for size in sizes]
        return [each.conv(x) for each, x in zip(self.neck.fpn_convs, pooled)]
