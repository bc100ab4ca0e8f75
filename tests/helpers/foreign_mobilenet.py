"""MobileNetV2 of the FCOS authors in PyTorch, whose blocks number all layers consecutively."""

from __future__ import annotations

from torch import nn

# widening, channels, blocks, stride of the first: table 2 of the paper (arXiv 1801.04381)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
RETURNED = (6, 13, 17)  # the last layers of strides 8, 16 and 32


def normed(inputs, outputs, kernel, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, widening):
        super().__init__()
        hidden = inputs * widening
        layers = [*normed(inputs, hidden, 1), nn.ReLU6()] if widening > 1 else []
        layers += [*normed(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *normed(hidden, outputs, 1)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MobilenetV2(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [nn.Sequential(*normed(3, 32, 3, 2), nn.ReLU6())], 32
        for widening, outputs, count, stride in STAGES:
            for i in range(count):
                layers.append(Block(inputs, outputs, stride if i == 0 else 1, widening))
                inputs = outputs
        self.features = nn.ModuleList(layers)

    def forward(self, x):
        outputs = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in RETURNED:
                outputs.append(x)
        return outputs
