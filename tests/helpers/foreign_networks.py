"""FCOS of other projects in PyTorch: their structure, names of weights and decoding, with random weights.

Each detector has `raw(images)` (class logits, distances in pixels and quality logits of each level) and
`detect(images, sizes)` (label, score and corners in the original images). docs/model_zoo.md lists the source
files. Pyramid and head are narrower than the published ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from helpers.foreign_deformable import OFFSETS, OffsetsInside, OffsetsOnly, TwoConvs
from helpers.foreign_mobilenet import MobilenetV2

STRIDES = (8, 16, 32, 64, 128)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
CHANNELS, CONVS, CLASSES = 64, 2, 7


class FrozenNorm(nn.Module):
    """maskrcnn-benchmark's, which has no epsilon."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = (self.weight * self.running_var.rsqrt()).view(1, -1, 1, 1)
        return x * scale + (self.bias - self.running_mean * scale.flatten()).view(1, -1, 1, 1)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, outputs, stride, groups, stride_in_1x1, norm, conv=nn.Conv2d):
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, first, bias=False), norm(width)
        self.conv2 = conv(width, width, 3, second, 1, groups=groups, bias=False)
        self.bn2 = norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), norm(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Resnet(nn.Module):
    """Names of torchvision, MMDetection and, with the first layer in `stem`, the FCOS authors.

    `deformable`: the stages, from 0, whose 3x3 convolutions are of the class `deformable_conv`.
    """

    def __init__(
        self,
        depth=50,
        groups=1,
        width=64,
        stride_in_1x1=False,
        norm=nn.BatchNorm2d,
        stem=False,
        deformable=(),
        deformable_conv=None,
    ):
        super().__init__()
        first = nn.Module() if stem else self
        first.conv1, first.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64)
        if stem:
            self.stem = first
        inputs = 64
        for stage, count in enumerate(BLOCKS[depth]):
            inner, outputs = groups * width * 2**stage, 256 * 2**stage
            conv = deformable_conv if stage in deformable else nn.Conv2d
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Bottleneck(inputs, inner, outputs, stride, groups, stride_in_1x1, norm, conv))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        first = self.stem if hasattr(self, "stem") else self
        x = F.max_pool2d(F.relu(first.bn1(first.conv1(x))), 3, 2, 1)
        outputs = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            outputs.append(x)
        return outputs[1:]


def pyramid(laterals, outputs, p6, p7, features):
    """P3 to P7, the last two from P5."""
    inner = [lateral(feature) for lateral, feature in zip(laterals, features)]
    for i in (1, 0):
        inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
    levels = [output(x) for output, x in zip(outputs, inner)]
    levels.append(p6(levels[-1]))
    levels.append(p7(F.relu(levels[-1])))
    return levels


def tower(last=nn.Conv2d):
    """`last` is the class of the last convolution."""
    layers = []
    for conv in (*[nn.Conv2d] * (CONVS - 1), last):
        layers += [conv(CHANNELS, CHANNELS, 3, 1, 1), nn.GroupNorm(32, CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers)


def conv3(outputs, stride=1):
    return nn.Conv2d(CHANNELS, outputs, 3, stride, 1)


class Scale(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return x * self.scale


def randomize_weights(model, seed=0):
    """Random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                uniform(tensor, 0.5, 1.5)
            elif name.endswith(OFFSETS):  # half a pixel: more of it multiplies the rounding of layers before
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
                tensor.mul_(0.6 / tensor[0].numel() ** 0.5)
            elif name.endswith(("running_mean", "bias")):
                uniform(tensor, -0.2, 0.2)
            elif name.endswith("scale"):
                uniform(tensor, 0.8, 1.2)
            elif tensor.ndim == 4:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
                tensor.mul_((1.6 / tensor[0].numel()) ** 0.5)
            elif name.endswith("weight"):
                uniform(tensor, 0.3, 1.0)


def randomize(model):
    """Set random weights and statistics with which scores and boxes vary."""
    randomize_weights(model)
    with torch.no_grad():
        for layer, mean in ((model.predictors()[0], -3.5), (model.predictors()[1], model.distance_bias)):
            layer.weight.mul_(0.7)
            layer.bias.add_(mean)
    return model.eval()


def normalized(images, sizes, mean, std, bgr):
    """Normalize RGB pixels [B, 3, H, W] from 0 to 255; the padding is zero."""
    images = images.flip(1) if bgr else images
    images = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    for image, (height, width) in zip(images, sizes):
        image[:, int(height) :] = 0
        image[:, :, int(width) :] = 0
    return images


def centers(height, width, stride):
    """Of the cells: i·stride + ⌊stride / 2⌋."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([xs.flatten(), ys.flatten()], -1) * float(stride) + stride // 2


def around(points, distances):
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], -1)


def nms(boxes, scores, labels, threshold, extra=0.0):
    """Return the indices that NMS keeps, best first; `extra` is added to all widths and heights."""
    left, kept = scores.argsort(descending=True), []
    area = (boxes[:, 2:] - boxes[:, :2] + extra).prod(1)
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        intersection = (high - low + extra).clamp(min=0).prod(1)
        same = labels[left] == labels[best]
        left = left[~(same & (intersection / (area[best] + area[left] - intersection) > threshold))]
    return kept


def flat(level, image):
    """[B, K, H, W] of one image as [H·W, K]."""
    return level[image].permute(1, 2, 0).flatten(0, 1)


class Detector(nn.Module):
    """Common parts of the projects."""

    mean, std, bgr = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False
    distance_bias = 1.5

    def raw(self, images, sizes):
        return self.levels(normalized(images, sizes, self.mean, self.std, self.bgr))

    def detect(self, images, sizes, scales):
        """[N, 6] of every image; `sizes` are those without padding, `scales` what they were resized by."""
        levels = self.raw(images, sizes)
        return [
            self.postprocess(
                [[flat(part, i) for part in level] for level in levels],
                [level[0].shape[-2:] for level in levels],
                images.shape[-2:],
                size,
                torch.tensor([scale[1], scale[0], scale[1], scale[0]]),
            )
            for i, (size, scale) in enumerate(zip(sizes, scales))
        ]


class Torchvision(Detector):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.body = Resnet()
        fpn = self.backbone.fpn = nn.Module()
        fpn.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(c, CHANNELS, 1)) for c in (512, 1024, 2048))
        fpn.layer_blocks = nn.ModuleList(nn.Sequential(conv3(CHANNELS)) for _ in range(3))
        fpn.extra_blocks = nn.Module()
        fpn.extra_blocks.p6, fpn.extra_blocks.p7 = conv3(CHANNELS, 2), conv3(CHANNELS, 2)
        self.head = nn.Module()
        classes, boxes = nn.Module(), nn.Module()
        classes.conv, classes.cls_logits = tower(), conv3(1 + CLASSES)  # output 0 is the background
        boxes.conv, boxes.bbox_reg, boxes.bbox_ctrness = tower(), conv3(4), conv3(1)
        self.head.classification_head, self.head.regression_head = classes, boxes

    def predictors(self):
        return self.head.classification_head.cls_logits, self.head.regression_head.bbox_reg

    def levels(self, x):
        fpn, classes, boxes = (
            self.backbone.fpn,
            self.head.classification_head,
            self.head.regression_head,
        )
        extra = fpn.extra_blocks
        features = pyramid(fpn.inner_blocks, fpn.layer_blocks, extra.p6, extra.p7, self.backbone.body(x))
        outputs = []
        for feature, stride in zip(features, STRIDES):
            of_boxes = boxes.conv(feature)
            distances = F.relu(boxes.bbox_reg(of_boxes)) * stride
            outputs.append(
                (classes.cls_logits(classes.conv(feature))[:, 1:], distances, boxes.bbox_ctrness(of_boxes))
            )
        return outputs

    def postprocess(self, levels, shapes, image_shape, size, scale):
        found = []
        for (logits, distances, quality), (height, width) in zip(levels, shapes):
            # Anchors start at 0, with steps of whole pixels.
            xs = torch.arange(width) * (image_shape[1] // width)
            ys = torch.arange(height) * (image_shape[0] // height)
            points = torch.stack([xs.repeat(height), ys.repeat_interleave(width)], -1).float()
            scores = (logits.sigmoid() * quality.sigmoid()).sqrt().flatten()
            chosen = torch.where(scores > 0.2)[0]
            chosen = chosen[scores[chosen].topk(min(1000, len(chosen))).indices]
            where = chosen // logits.shape[1]
            found.append((around(points[where], distances[where]), scores[chosen], chosen % logits.shape[1]))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found))
        boxes = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], -1)
        # torchvision keeps boxes without area after clipping among its 100.
        valid = (boxes[:, 2:] - boxes[:, :2] > 0).all(1)
        boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
        kept = nms(boxes, scores, labels, 0.6)[:100]
        return torch.cat([labels[kept, None], scores[kept, None], boxes[kept] / scale], -1)


class Mmdet(Detector):
    """`improved`: center-normbbox-centeronreg-giou. `deformable` stages: so is the last of each tower."""

    def __init__(self, improved, caffe=True, **resnet):
        super().__init__()
        self.improved, self.nms_threshold = improved, 0.6 if improved else 0.5
        if caffe:
            self.bgr, self.std = True, (1.0, 1.0, 1.0)
            self.mean = (103.530, 116.280, 123.675) if improved else CAFFE_MEAN
            resnet["stride_in_1x1"] = True
        self.distance_bias = 1.5 if improved else 3.0
        self.backbone = Resnet(**resnet, deformable_conv=OffsetsInside)
        self.neck, head = nn.Module(), nn.Module()
        self.neck.lateral_convs = nn.ModuleList(
            self._module(nn.Conv2d(c, CHANNELS, 1)) for c in (512, 1024, 2048)
        )
        self.neck.fpn_convs = nn.ModuleList(
            self._module(conv3(CHANNELS, stride)) for stride in (1, 1, 1, 2, 2)
        )
        for branch in ("cls_convs", "reg_convs"):
            last = OffsetsInside if "deformable" in resnet else nn.Conv2d
            convs = [
                conv(CHANNELS, CHANNELS, 3, 1, 1, bias=improved)  # `conv_bias`
                for conv in (*[nn.Conv2d] * (CONVS - 1), last)
            ]
            layers = [self._module(conv, nn.GroupNorm(32, CHANNELS)) for conv in convs]
            setattr(head, branch, nn.ModuleList(layers))
        head.conv_cls, head.conv_reg, head.conv_centerness = conv3(CLASSES), conv3(4), conv3(1)
        head.scales = nn.ModuleList(Scale(()) for _ in STRIDES)
        self.bbox_head = head

    @staticmethod
    def _module(conv, norm=None):
        """mmcv's ConvModule."""
        module = nn.Module()
        module.conv = conv
        if norm is not None:
            module.gn = norm
        return module

    def predictors(self):
        return self.bbox_head.conv_cls, self.bbox_head.conv_reg

    def features(self, x):
        convs = [each.conv for each in self.neck.fpn_convs]
        laterals = [each.conv for each in self.neck.lateral_convs]
        return pyramid(laterals, convs[:3], convs[3], convs[4], self.backbone(x))

    def levels(self, x):
        head, outputs = self.bbox_head, []
        for feature, scale, stride in zip(self.features(x), head.scales, STRIDES):
            of_class = of_box = feature
            for layer in head.cls_convs:
                of_class = F.relu(layer.gn(layer.conv(of_class)))
            for layer in head.reg_convs:
                of_box = F.relu(layer.gn(layer.conv(of_box)))
            raw = scale(head.conv_reg(of_box))
            distances = F.relu(raw) * stride if self.improved else raw.exp()
            quality = head.conv_centerness(of_box if self.improved else of_class)
            outputs.append((head.conv_cls(of_class), distances, quality))
        return outputs

    def postprocess(self, levels, shapes, image_shape, size, scale):
        found = []
        for (logits, distances, quality), shape, stride in zip(levels, shapes, STRIDES):
            scores = logits.sigmoid()
            where, labels = torch.where(scores > 0.05)
            best = scores[where, labels].topk(min(1000, len(where))).indices
            where, labels = where[best], labels[best]
            boxes = around(centers(*shape, stride)[where], distances[where])
            found.append((boxes, scores[where, labels] * quality.sigmoid()[where, 0], labels))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found))
        boxes = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], -1) / scale
        valid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
        kept = nms(boxes, scores, labels, self.nms_threshold)[:100]
        return torch.cat([labels[kept, None], scores[kept, None], boxes[kept]], -1)


class Stacked(Detector):
    """A head whose towers are nn.Sequential, and the decoding of the authors and AdelaiDet."""

    quality_name = ""

    def make_head(self, last=nn.Conv2d):
        head = nn.Module()
        head.cls_tower, head.bbox_tower = tower(last), tower(last)
        head.cls_logits, head.bbox_pred = conv3(CLASSES), conv3(4)
        setattr(head, self.quality_name, conv3(1))
        head.scales = nn.ModuleList(Scale((1,)) for _ in STRIDES)
        return head

    def head_outputs(self, head, features, improved):
        outputs = []
        for feature, scale, stride in zip(features, head.scales, STRIDES):
            of_class, of_box = head.cls_tower(feature), head.bbox_tower(feature)
            raw = scale(head.bbox_pred(of_box))
            distances = F.relu(raw) * stride if improved else raw.exp()
            quality = getattr(head, self.quality_name)(of_box if improved else of_class)
            outputs.append((head.cls_logits(of_class), distances, quality))
        return outputs

    @staticmethod
    def candidates(levels, shapes):
        found = []
        for (logits, distances, quality), shape, stride in zip(levels, shapes, STRIDES):
            scores = logits.sigmoid()
            where, labels = torch.where(scores > 0.05)
            scores = scores[where, labels] * quality.sigmoid()[where, 0]
            best = scores.topk(min(1000, len(scores))).indices
            boxes = around(centers(*shape, stride)[where[best]], distances[where[best]])
            found.append((boxes, scores[best].sqrt(), labels[best]))
        return (torch.cat(parts) for parts in zip(*found))


class Authors(Stacked):
    quality_name = "centerness"
    mean, std, bgr = CAFFE_MEAN, (1.0, 1.0, 1.0), True

    def __init__(self, improved, mobile=False, **resnet):
        super().__init__()
        self.improved, self.distance_bias = improved, 1.5 if improved else 3.0
        if mobile:
            body, inputs = MobilenetV2(), (32, 96, 320)
        else:
            resnet["stride_in_1x1"] = resnet.get("groups", 1) == 1
            body = Resnet(norm=FrozenNorm, stem=True, deformable_conv=TwoConvs, **resnet)
            inputs = (512, 1024, 2048)
        fpn = nn.Module()
        for i, channels in zip((2, 3, 4), inputs):
            setattr(fpn, f"fpn_inner{i}", nn.Conv2d(channels, CHANNELS, 1))
            setattr(fpn, f"fpn_layer{i}", conv3(CHANNELS))
        fpn.top_blocks = nn.Module()
        fpn.top_blocks.p6, fpn.top_blocks.p7 = conv3(CHANNELS, 2), conv3(CHANNELS, 2)
        self.backbone = nn.Module()
        self.backbone.body, self.backbone.fpn = body, fpn
        self.rpn = nn.Module()
        self.rpn.head = self.make_head(TwoConvs if "deformable" in resnet else nn.Conv2d)

    def predictors(self):
        return self.rpn.head.cls_logits, self.rpn.head.bbox_pred

    def levels(self, x):
        fpn = self.backbone.fpn
        laterals = [getattr(fpn, f"fpn_inner{i}") for i in (2, 3, 4)]
        outputs = [getattr(fpn, f"fpn_layer{i}") for i in (2, 3, 4)]
        top = fpn.top_blocks
        features = pyramid(laterals, outputs, top.p6, top.p7, self.backbone.body(x))
        return self.head_outputs(self.rpn.head, features, self.improved)

    def postprocess(self, levels, shapes, image_shape, size, scale):
        """Corners as for COCO's evaluation: width and height include both corner pixels."""
        boxes, scores, labels = self.candidates(levels, shapes)
        boxes = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2] - 1) for i in range(4)], -1)
        kept = nms(boxes, scores, labels, 0.6, extra=1.0)[:100]
        boxes = boxes[kept] / scale
        x, y = boxes[:, 0], boxes[:, 1]
        width, height = boxes[:, 2] - x + 1, boxes[:, 3] - y + 1
        boxes = torch.stack([x, y, x + width, y + height], -1)
        return torch.cat([labels[kept, None], scores[kept, None], boxes], -1)


class NormedConv(nn.Conv2d):
    """Detectron2's convolution, which contains its norm."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(super().forward(x))


class NormedDeformable(OffsetsOnly):
    """Detectron2's deformable convolution, whose offsets are computed by another module."""

    def __init__(self, width, stride, groups):
        super().__init__(width, width, 3, stride, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x, offsets_and_mask):
        return self.norm(super().forward(x, offsets_and_mask))


class Detectron2Block(nn.Module):
    def __init__(self, inputs, width, outputs, stride, groups, deformable):
        super().__init__()
        first, second = (stride, 1) if groups == 1 else (1, stride)
        self.conv1 = NormedConv(inputs, width, 1, first)
        if deformable:
            self.conv2_offset = nn.Conv2d(width, 27, 3, second, 1)
            self.conv2 = NormedDeformable(width, second, groups)
        else:
            self.conv2 = NormedConv(width, width, 3, second, groups)
        self.conv3 = NormedConv(width, outputs, 1)
        self.shortcut = NormedConv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        out = F.relu(self.conv1(x))
        out = self.conv2(out, self.conv2_offset(out)) if hasattr(self, "conv2_offset") else self.conv2(out)
        out = self.conv3(F.relu(out))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class Detectron2Resnet(nn.Module):
    def __init__(self, depth=50, groups=1, width=64, deformable=()):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = NormedConv(3, 64, 7, 2)
        inputs = 64
        for stage, count in enumerate(BLOCKS[depth]):
            inner, outputs, blocks = groups * width * 2**stage, 256 * 2**stage, []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Detectron2Block(inputs, inner, outputs, stride, groups, stage in deformable))
                inputs = outputs
            setattr(self, f"res{stage + 2}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem.conv1(x)), 3, 2, 1)
        outputs = []
        for stage in range(2, 6):
            x = getattr(self, f"res{stage}")(x)
            outputs.append(x)
        return outputs[1:]


class Adelaidet(Stacked):
    quality_name = "ctrness"
    mean, std, bgr = (103.530, 116.280, 123.675), (1.0, 1.0, 1.0), True

    def __init__(self, **resnet):
        super().__init__()
        if resnet.get("groups") == 32:
            self.std = (57.375, 57.120, 58.395)
        self.backbone = nn.Module()
        self.backbone.bottom_up = Detectron2Resnet(**resnet)
        for i, channels in ((3, 512), (4, 1024), (5, 2048)):
            setattr(self.backbone, f"fpn_lateral{i}", nn.Conv2d(channels, CHANNELS, 1))
            setattr(self.backbone, f"fpn_output{i}", conv3(CHANNELS))
        self.backbone.top_block = nn.Module()
        self.backbone.top_block.p6 = conv3(CHANNELS, 2)
        self.backbone.top_block.p7 = conv3(CHANNELS, 2)
        self.proposal_generator = nn.Module()
        last = TwoConvs if "deformable" in resnet else nn.Conv2d
        self.proposal_generator.fcos_head = self.make_head(last)

    def predictors(self):
        head = self.proposal_generator.fcos_head
        return head.cls_logits, head.bbox_pred

    def levels(self, x):
        net = self.backbone
        laterals = [getattr(net, f"fpn_lateral{i}") for i in (3, 4, 5)]
        outputs = [getattr(net, f"fpn_output{i}") for i in (3, 4, 5)]
        features = pyramid(laterals, outputs, net.top_block.p6, net.top_block.p7, net.bottom_up(x))
        return self.head_outputs(self.proposal_generator.fcos_head, features, improved=True)

    def postprocess(self, levels, shapes, image_shape, size, scale):
        boxes, scores, labels = self.candidates(levels, shapes)
        kept = nms(boxes, scores, labels, 0.6)[:100]
        # Detectron2 clips boxes to the original image after scaling, and drops empty ones.
        boxes, scores, labels = boxes[kept] / scale, scores[kept], labels[kept]
        limits = torch.tensor([size[1], size[0]]) / scale[:2]
        boxes = torch.minimum(boxes.clamp(min=0), limits.repeat(2))
        valid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        return torch.cat([labels[valid, None], scores[valid, None], boxes[valid]], -1)
