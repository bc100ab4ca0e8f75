"""The FCOS detector: normalization, backbone, neck, head, then losses in training or boxes in inference."""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor
from ppdet.core.workspace import create, register
from ppdet.modeling.architectures.meta_arch import BaseArch

from ppfcos import environment
from ppfcos.modeling.assigner import Targets
from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.layers import check_choice, fold_frozen_norms
from ppfcos.modeling.losses import global_normalizers
from ppfcos.modeling.postprocess import Candidates
from ppfcos.paddle_versions import round_half_to_even

STRIDE = 32  # of the coarsest level of the backbone; the neck doubles it level by level


class PointGrid(NamedTuple):
    """The points of one level, in row-major order.

    All sizes are integers, or scalar tensors in an exported program.

    Attributes:
        height: H_l of the feature map.
        width: W_l of the feature map.
        step_y: distance of two rows, in pixels of the network input.
        step_x: distance of two columns.
        offset: distance of the first point from the corner of the image, in half steps: 1 for cell centers.
    """

    height: int | Tensor
    width: int | Tensor
    step_y: int | Tensor
    step_x: int | Tensor
    offset: int

    def points(self) -> Tensor:
        """Return the coordinates x, y in pixels of the network input, [H_l·W_l, 2]."""
        xs = (paddle.arange(self.width, dtype="float32") + 0.5 * self.offset) * self.step_x
        ys = (paddle.arange(self.height, dtype="float32") + 0.5 * self.offset) * self.step_y
        return paddle.stack([part.flatten() for part in paddle.meshgrid(ys, xs)][::-1], axis=-1)


def center_grid(height: int | Tensor, width: int | Tensor, stride: int) -> PointGrid:
    """Place a point at the center of each cell of a feature map: (i + 0.5)·stride."""
    return PointGrid(height, width, stride, stride, offset=1)


def anchor_grid(
    height: int | Tensor, width: int | Tensor, image_height: int | Tensor, image_width: int | Tensor
) -> PointGrid:
    """Place points at the centers of torchvision's FCOS anchors.

    They start at the corner of the image. Their step is a whole number of pixels, which is less than the
    stride if the image is not a multiple of it.
    """
    return PointGrid(height, width, image_height // height, image_width // width, offset=0)


@register
class PPFCOS(BaseArch):
    """Fully convolutional one-stage object detector (Tian et al., arXiv 1904.01355 and 2006.09214).

    Args:
        backbone: registered name.
        neck: registered name.
        head: registered name.
        targets: registered name of the assigner.
        loss: registered name.
        decode: registered name of the post-processing.
        image_mean: R, G, B means of pixels in 0 to 1.
        image_std: R, G, B standard deviations.
        locations: `centers` of the feature map cells, or `anchors` for the points of torchvision's FCOS.

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
        check_choice("PPFCOS", "locations", locations, ("centers", "anchors"))
        environment.warn_if_unconfigured()
        self.locations = locations
        self.backbone = fold_frozen_norms(backbone)
        self.neck = neck
        self.head = head
        self.targets = targets
        self.loss = loss
        self.decode = decode
        # (pixel / 255 − mean) / std = pixel·scale + shift. The configuration holds these values, not the
        # checkpoint.
        mean, std = paddle.to_tensor(image_mean), paddle.to_tensor(image_std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).reshape([1, 3, 1, 1]), persistable=False)
        self.register_buffer("pixel_shift", (-mean / std).reshape([1, 3, 1, 1]), persistable=False)

    @classmethod
    def from_config(cls, cfg, *args, **kwargs) -> dict:
        """Build the parts whose shapes depend on one another."""
        backbone = create(cfg["backbone"])
        neck = create(cfg["neck"], input_shape=backbone.out_shape)
        return {
            "backbone": backbone,
            "neck": neck,
            "head": create(cfg["head"], input_shape=neck.out_shape),
        }

    def forward(self, batch: dict) -> dict:
        """Return losses in training mode, boxes in evaluation mode.

        Args:
            batch: `image` [B, 3, H, W] RGB from 0 to 255, integers or floats, H and W multiples of 32;
                `im_shape` [B, 2] height and width of each image without padding; `scale_factor` [B, 2]
                vertical and horizontal resize factors. In training also `gt_bbox` [B, M, 4] x0, y0, x1, y1 in
                pixels of `image`, padded with zeros, `gt_class` [B, M] or [B, M, 1], and, if the assigner
                ignores crowds, `gt_crowd` [B, K, 4], padded with zeros. A part of a larger batch also has
                `targets`, from `assign`, and `normalizers` of the whole batch.

        Returns:
            In training the scalars `loss_cls`, `loss_box`, `loss_quality` and `loss`; otherwise `bbox` [N, 6]
            and `bbox_num` [B] as returned by PPFCOSDecode.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        if paddle.in_dynamic_mode():  # sizes are unknown in an exported program
            _check_size(batch["image"].shape)
        outputs = HeadOutputs(*self.network(batch["image"], batch["im_shape"]))
        with paddle.amp.auto_cast(enable=False):  # 16 bits are too few for coordinates of a large image
            return self._losses(outputs, batch) if self.training else self._boxes(outputs, batch)

    def _losses(self, outputs: HeadOutputs, batch: dict) -> dict:
        targets = batch["targets"] if "targets" in batch else self.assign(batch)
        normalizers = batch["normalizers"] if "normalizers" in batch else global_normalizers([targets])
        return self.loss(outputs, targets, normalizers)

    def _boxes(self, outputs: HeadOutputs, batch: dict) -> dict:
        grids = self._output_grids(outputs, batch["image"])
        boxes, counts = self.decode(outputs, grids, batch["im_shape"], batch["scale_factor"])
        return {"bbox": boxes, "bbox_num": counts}

    def candidates(self, batch: dict) -> Candidates:
        """Return the candidates before NMS of a batch as in `forward`."""
        outputs = HeadOutputs(*self.network(batch["image"], batch["im_shape"]))
        with paddle.amp.auto_cast(enable=False):
            grids = self._output_grids(outputs, batch["image"])
            return self.decode.candidates(outputs, grids, batch["im_shape"], batch["scale_factor"])

    def assign(self, batch: dict) -> Targets:
        """Assign the ground truth of a batch as in `forward` to the points. Runs without the network."""
        height, width = batch["image"].shape[2:]
        points = [grid.points() for grid in self.grids(height, width)]
        labels = batch["gt_class"].reshape(batch["gt_bbox"].shape[:2])
        return self.targets(
            points,
            self.head.strides,
            batch["gt_bbox"],
            labels,
            self.head.num_classes,
            batch.get("gt_crowd"),
        )

    def network(self, image: Tensor, im_shape: Tensor) -> HeadOutputs:
        """Run all layers that have weights.

        Args:
            image: [B, 3, H, W] RGB from 0 to 255.
            im_shape: [B, 2] height and width of each image without padding.
        """
        with paddle.amp.auto_cast(enable=False):
            pixels = self._normalize(image, im_shape)
        return self.head(self.neck(self.backbone({"image": pixels})))

    def grids(self, height: int, width: int) -> list[PointGrid]:
        """Return the points of all levels for a network input of this size."""
        if hasattr(self.neck, "level_sizes"):
            sizes = self.neck.level_sizes(height, width)
        else:  # each stride-2 layer of backbone and neck rounds up
            sizes = [(-(-height // stride), -(-width // stride)) for stride in self.head.strides]
        return self._grids(sizes, (height, width))

    def _output_grids(self, outputs: HeadOutputs, image: Tensor) -> list[PointGrid]:
        sizes = [(level.shape[2], level.shape[3]) for level in outputs.class_logits]
        return self._grids(sizes, (image.shape[2], image.shape[3]))

    def _grids(self, sizes: list, image_size: tuple) -> list[PointGrid]:
        if self.locations == "anchors":
            return [anchor_grid(*size, *image_size) for size in sizes]
        return [center_grid(*size, stride) for size, stride in zip(sizes, self.head.strides)]

    def _normalize(self, image: Tensor, im_shape: Tensor) -> Tensor:
        """Normalize the pixels and set the padding to zero."""
        image = image.astype("float32")  # before shape(): Paddle 2.6 cannot compile shape() of uint8
        height, width = paddle.shape(image)[2], paddle.shape(image)[3]
        im_shape = round_half_to_even(im_shape)  # as OpenCV rounds the resized size
        rows = paddle.arange(height, dtype="float32").unsqueeze(0) < im_shape[:, :1]
        columns = paddle.arange(width, dtype="float32").unsqueeze(0) < im_shape[:, 1:]
        valid = (rows.unsqueeze([1, 3]) & columns.unsqueeze([1, 2])).astype("float32")
        # One mask per channel: oneDNN takes 40 ns a pixel to broadcast a mask over three channels.
        valid = paddle.concat([valid, valid, valid], axis=1)
        return (image * self.pixel_scale + self.pixel_shift) * valid


def _check_size(shape: list) -> None:
    height, width = shape[2:]
    if height % STRIDE or width % STRIDE:
        raise ValueError(
            f"an image of {height}x{width} pixels: height and width must be multiples of {STRIDE} "
            f"(PadBatch: {{pad_to_stride: {STRIDE}}} in the reader)"
        )
