"""Deformable convolutions of 3x3 in PyTorch, from equation 1 of the paper (DCNv2, arXiv 1811.11168).

    y(p) = Σ_k w_k · x(p + p_k + Δp_k) · Δm_k

The first 18 channels of offsets and masks are Δy, Δx of the nine taps, row by row, and the last 9 the masks
before the sigmoid, as in the kernels of Detectron2, MMCV and the FCOS authors
(`data_offset_h_ptr` of tap k at 2k, `data_offset_w_ptr` at 2k + 1).
"""

from __future__ import annotations

import torch
from torch import nn

TAPS = 9
OFFSETS = ("conv_offset.weight", "conv2_offset.weight", ".offset.weight")  # names of their convolutions


def bilinear(x, ys, xs):
    """x [B, C, H, W] at ys, xs [B, h, w] → [B, C, h, w]; zero outside."""
    batch, channels, height, width = x.shape
    total = torch.zeros(batch, channels, *ys.shape[1:])
    for corner_y in (ys.floor(), ys.floor() + 1):
        for corner_x in (xs.floor(), xs.floor() + 1):
            weight = (1 - (ys - corner_y).abs()) * (1 - (xs - corner_x).abs())
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            index = corner_y.clamp(0, height - 1).long() * width + corner_x.clamp(0, width - 1).long()
            index = index.flatten(1).unsqueeze(1).expand(-1, channels, -1)
            values = x.flatten(2).gather(2, index).view_as(total)
            total += values * (weight * inside).unsqueeze(1)
    return total


def deformable_conv(x, offsets_and_mask, weight, bias, stride, groups):
    """Padding 1; `offsets_and_mask` [B, 27, h, w] before the sigmoid."""
    offsets, masks = offsets_and_mask[:, : 2 * TAPS], offsets_and_mask[:, 2 * TAPS :].sigmoid()
    height, width = offsets.shape[2:]
    rows = torch.arange(height).view(-1, 1) * stride - 1.0
    columns = torch.arange(width).view(1, -1) * stride - 1.0
    out = 0
    for tap in range(TAPS):
        ys = rows + tap // 3 + offsets[:, 2 * tap]
        xs = columns + tap % 3 + offsets[:, 2 * tap + 1]
        sampled = bilinear(x, ys, xs) * masks[:, tap : tap + 1]
        out = out + nn.functional.conv2d(sampled, weight[:, :, tap // 3, tap % 3, None, None], groups=groups)
    return out if bias is None else out + bias.view(1, -1, 1, 1)


class OffsetsOnly(nn.Conv2d):
    """A deformable convolution whose caller passes the offsets."""

    def forward(self, x, offsets_and_mask):
        return deformable_conv(x, offsets_and_mask, self.weight, self.bias, self.stride[0], self.groups)


class OffsetsInside(OffsetsOnly):
    """MMCV's ModulatedDeformConv2dPack."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0, groups=1, bias=True):
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        self.conv_offset = nn.Conv2d(inputs, 3 * TAPS, kernel, stride, padding)

    def forward(self, x):
        return super().forward(x, self.conv_offset(x))


class TwoConvs(nn.Module):
    """DFConv2d of the FCOS authors and of AdelaiDet."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0, groups=1, bias=True):
        super().__init__()
        self.offset = nn.Conv2d(inputs, 3 * TAPS, kernel, stride, padding)
        self.conv = OffsetsOnly(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)

    def forward(self, x):
        return self.conv(x, self.offset(x))
