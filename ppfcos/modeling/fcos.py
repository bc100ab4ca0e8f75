"""FCOS: backbone, neck and head, and what is done with their answers."""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor
from ppdet.core.workspace import create, register
from ppdet.modeling.architectures.meta_arch import BaseArch

from ppfcos.modeling.assigner import Targets
from ppfcos.modeling.backbones.frozen_norm import fold_frozen_norms
from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.losses import global_normalizers
from ppfcos.modeling.postprocess import Candidates
from ppfcos.paddle_versions import round_half_to_even


class Grid(NamedTuple):
    """The locations of one level, numbered row by row.

    Attributes:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        step_y: pixels of the network's input from one row to the next, likewise.
        step_x: from one column to the next, likewise.
        offset: from the image's corner to the first location, in half steps: 1 for the middle of a cell.
    """

    height: int | Tensor
    width: int | Tensor
    step_y: int | Tensor
    step_x: int | Tensor
    offset: int

    def locations(self) -> Tensor:
        """[H_l·W_l, 2] x, y in pixels of the network's input."""
        xs = (paddle.arange(self.width, dtype="float32") + 0.5 * self.offset) * self.step_x
        ys = (paddle.arange(self.height, dtype="float32") + 0.5 * self.offset) * self.step_y
        return paddle.stack([part.flatten() for part in paddle.meshgrid(ys, xs)][::-1], axis=-1)


def center_grid(height: int | Tensor, width: int | Tensor, stride: int) -> Grid:
    """The centres of the cells of one feature map: (i + 0.5)·stride.

    Args:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        stride: of the level, in pixels.
    """
    return Grid(height, width, stride, stride, offset=1)


def anchor_grid(
    height: int | Tensor, width: int | Tensor, image_height: int | Tensor, image_width: int | Tensor
) -> Grid:
    """The centres of the anchors that torchvision's FCOS lays on one feature map.

    They begin in the image's corner, and are apart by the whole pixels that fit: less than the stride where
    the image is no multiple of it.

    Args:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        image_height: of the network's input, likewise.
        image_width: likewise.
    """
    return Grid(height, width, image_height // height, image_width // width, offset=0)


STRIDE = 32  # of the backbone's coarsest level: the neck doubles it level by level


@register
class PPFCOS(BaseArch):
    """Fully convolutional one-stage object detector (Tian et al., arXiv 1904.01355 and 2006.09214).

    Args:
        backbone: registered name of the backbone.
        neck: of the feature pyramid.
        head: of the head.
        targets: of the assignment of boxes to locations.
        loss: of the losses.
        decode: of the decoding of boxes.
        image_mean: of the red, green and blue channel, for pixels from 0 to 1.
        image_std: likewise.
        locations: `centers` of the feature maps' cells, or `anchors`, where torchvision's FCOS has them.

    Raises:
        ValueError: `locations` is neither.
    """

    __category__ = "architecture"
    __inject__ = ("targets", "loss", "decode")

    def __init__(
        self,
        backbone="ResNet",
        neck="PPFCOSFPN",
        head="PPFCOSHead",
        targets="PPFCOSTargets",
        loss="PPFCOSLoss",
        decode="PPFCOSDecode",
        image_mean: list = (0.485, 0.456, 0.406),
        image_std: list = (0.229, 0.224, 0.225),
        locations: str = "centers",
    ):
        super().__init__()
        if locations not in ("centers", "anchors"):
            raise ValueError(f"PPFCOS.locations is {locations!r}: it is centers or anchors")
        self.locations = locations
        self.backbone = fold_frozen_norms(backbone)
        self.neck = neck
        self.head = head
        self.targets = targets
        self.loss = loss
        self.decode = decode
        # (pixel / 255 − mean) / std as one product and one sum. Not in the checkpoint: the configuration says
        # them.
        mean, std = paddle.to_tensor(image_mean), paddle.to_tensor(image_std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).reshape([1, 3, 1, 1]), persistable=False)
        self.register_buffer("pixel_shift", (-mean / std).reshape([1, 3, 1, 1]), persistable=False)

    @classmethod
    def from_config(cls, cfg, *args, **kwargs) -> dict:
        """Build the parts that take their shapes from one another."""
        backbone = create(cfg["backbone"])
        neck = create(cfg["neck"], input_shape=backbone.out_shape)
        return {
            "backbone": backbone,
            "neck": neck,
            "head": create(cfg["head"], input_shape=neck.out_shape),
        }

    def forward(self, batch: dict) -> dict:
        """Losses in training, boxes otherwise.

        Args:
            batch: `image` [B, 3, H, W] RGB from 0 to 255, integers or floats, H and W multiples of 32;
                `im_shape` [B, 2] height and width of each image without its padding; `scale_factor` [B, 2]
                vertical and horizontal factor by which it was resized; in training `gt_bbox` [B, M, 4] x0,
                y0, x1, y1 in pixels of `image`, padded with zeros, and `gt_class` [B, M] or [B, M, 1];
                where crowds are ignored `gt_crowd` [B, K, 4], the boxes around them, padded likewise.
                Where the images are a part of a larger batch, also `targets`, as `assign` gives them, and
                `normalizers`, those of the whole batch.

        Returns:
            In training the scalars `loss_cls`, `loss_box`, `loss_quality` and `loss`; otherwise `bbox` [N, 6]
            and `bbox_num` [B] as PPFCOSDecode gives them.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        if paddle.in_dynamic_mode():  # an exported program does not know its sizes
            _check_size(batch["image"].shape)
        outputs = HeadOutputs(*self.network(batch["image"], batch["im_shape"]))
        with paddle.amp.auto_cast(enable=False):  # 16 bits hold no position in a large image
            return self._losses(outputs, batch) if self.training else self._boxes(outputs, batch)

    def _losses(self, outputs: HeadOutputs, batch: dict) -> dict:
        targets = batch["targets"] if "targets" in batch else self.assign(batch)
        normalizers = batch["normalizers"] if "normalizers" in batch else global_normalizers([targets])
        return self.loss(outputs, targets, normalizers)

    def _boxes(self, outputs: HeadOutputs, batch: dict) -> dict:
        grids = self._grids_of(outputs, batch["image"])
        boxes, counts = self.decode(outputs, grids, batch["im_shape"], batch["scale_factor"])
        return {"bbox": boxes, "bbox_num": counts}

    def candidates(self, batch: dict) -> Candidates:
        """What enters the suppression: for whoever has another one.

        Args:
            batch: `image`, `im_shape` and `scale_factor` as in `forward`.

        Returns:
            As `PPFCOSDecode.candidates` gives them.
        """
        outputs = HeadOutputs(*self.network(batch["image"], batch["im_shape"]))
        with paddle.amp.auto_cast(enable=False):
            grids = self._grids_of(outputs, batch["image"])
            return self.decode.candidates(outputs, grids, batch["im_shape"], batch["scale_factor"])

    def _grids_of(self, outputs: HeadOutputs, image: Tensor) -> list:
        sizes = [_height_and_width(level) for level in outputs.class_logits]
        return self._grids(sizes, _height_and_width(image))

    def assign(self, batch: dict) -> Targets:
        """What the head should say, which depends on the boxes and the size of the images alone.

        Args:
            batch: `image`, `gt_bbox`, `gt_class` and `gt_crowd` as in `forward`.

        Returns:
            Targets of all locations.
        """
        strides = self.head.strides
        height, width = batch["image"].shape[2:]
        grids = self._grids(self._level_sizes(height, width), (height, width))
        locations = [grid.locations() for grid in grids]
        labels = batch["gt_class"].reshape(batch["gt_bbox"].shape[:2])
        return self.targets(
            locations, strides, batch["gt_bbox"], labels, self.head.num_classes, batch.get("gt_crowd")
        )

    def network(self, image: Tensor, im_shape: Tensor) -> HeadOutputs:
        """Everything that has weights: pixels to the head's answers.

        Args:
            image: [B, 3, H, W] RGB from 0 to 255.
            im_shape: [B, 2] height and width of each image without its padding.

        Returns:
            The head's answers on all levels.
        """
        with paddle.amp.auto_cast(enable=False):
            pixels = self._normalize(image, im_shape)
        return self.head(self.neck(self.backbone({"image": pixels})))

    def _normalize(self, image: Tensor, im_shape: Tensor) -> Tensor:
        """Normalised pixels, zero in the padding: as if that had been added afterwards, as is the custom."""
        image = image.astype("float32")  # first, for Paddle 2.6 compiles no question for the shape of uint8
        height, width = paddle.shape(image)[2], paddle.shape(image)[3]
        im_shape = round_half_to_even(im_shape)  # as OpenCV rounded when it resized
        rows = paddle.arange(height, dtype="float32").unsqueeze(0) < im_shape[:, :1]
        columns = paddle.arange(width, dtype="float32").unsqueeze(0) < im_shape[:, 1:]
        inside = (rows.unsqueeze([1, 3]) & columns.unsqueeze([1, 2])).astype("float32")
        # A mask per channel, for oneDNN takes 40 ns a pixel to stretch one over three channels.
        inside = paddle.concat([inside, inside, inside], axis=1)
        return (image * self.pixel_scale + self.pixel_shift) * inside

    def _level_sizes(self, height: int, width: int) -> list:
        """L × (H_l, W_l) of an image, before the network has seen it."""
        if hasattr(self.neck, "level_sizes"):
            return self.neck.level_sizes(height, width)
        # Every stride-2 step of backbone and neck rounds up.
        return [(-(-height // stride), -(-width // stride)) for stride in self.head.strides]

    def _grids(self, sizes: list, image_size: tuple) -> list:
        """L grids of the levels, whose heights and widths are `sizes`."""
        if self.locations == "anchors":
            return [anchor_grid(*size, *image_size) for size in sizes]
        return [center_grid(*size, stride) for size, stride in zip(sizes, self.head.strides)]


def _height_and_width(feature: Tensor) -> tuple:
    """Integers, or scalar tensors where an exported program does not know them before it runs."""
    return feature.shape[2], feature.shape[3]


def _check_size(shape: list) -> None:
    height, width = shape[2:]
    if height % STRIDE or width % STRIDE:
        raise ValueError(
            f"an image of {height}x{width} pixels: height and width must be multiples of {STRIDE} "
            f"(PadBatch: {{pad_to_stride: {STRIDE}}} in the reader)"
        )
