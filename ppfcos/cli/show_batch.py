"""`tools/show_batch.py`: draw training batches with their targets."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppfcos import environment
from ppfcos.cli import command

logger = logging.getLogger(__name__)

EXAMPLE = """
python tools/show_batch.py -c configs/fcos_r50_fpn_1x_coco.yml
python tools/show_batch.py -c configs/fcos_demo_shapes.yml --batches 3 --output shapes.jpg
python tools/show_batch.py -c configs/fcos_r18_bccd.yml -o PPFCOSTargets.center_sampling_radius=0
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(
        "Draw batches as a training reads them: transformed and padded images, their boxes, the level that "
        "each box is assigned to, and the positive points. No weights are needed.",
        EXAMPLE,
    )
    add, whole = parser.add_argument, command.positive
    add(
        "--batches", type=whole, default=1, metavar="N", help="number of batches, one image each (default: 1)"
    )
    add("--epoch", type=whole, default=1, metavar="N", help="the epoch (default: 1, the first)")
    add(
        "--output",
        metavar="FILE",
        help="the image, .png or .jpg; of several, FILE_1.png and so on (default: save_dir/NAME/batch.png)",
    )
    return parser


def show(options: argparse.Namespace) -> None:
    """Draw batches as the command line says."""
    environment.configure_process()
    with environment.quiet_imports():
        import paddle

        from ppfcos.config import load_config
        from ppfcos.data.classes import set_num_classes
        from ppfcos.data.datasets import build_dataset
        from ppfcos.data.loader import TrainLoader
        from ppfcos.engine.model import build_model
        from ppfcos.engine.prefetcher import Prefetcher
        from ppfcos.engine.run_folder import run_folder
        from ppfcos.visualize.batch import draw_batch
        from ppfcos.visualize.drawing import save_image

    cfg = load_config(options.config, options.opt)
    paddle.set_device("cpu")  # a training may be using the GPU
    data = build_dataset(cfg, "TrainDataset")
    set_num_classes(cfg, data.class_names, data.source)
    model = build_model(cfg)
    loader = TrainLoader({**cfg, "worker_num": 0}, data)  # gives the same batches
    feed = Prefetcher(loader, cfg["max_bad_images"])
    feed.start_epoch(options.epoch - 1)
    output = Path(options.output or run_folder(cfg) / "batch.png")
    for number in range(1, min(options.batches, len(feed)) + 1):
        if number > 1:
            feed.advance(paddle.zeros([1]))
        images = [image for part in feed.current for image in fed_images(model, part, data)]
        path = output.with_name(f"{output.stem}_{number}{output.suffix}") if options.batches > 1 else output
        save_image(path, draw_batch(images, pyramid_levels(model)))
        _log_counts(path, images)


def pyramid_levels(model: Any) -> list:
    """The levels of a PPFCOS: L × ppfcos.visualize.batch.Level."""
    from ppfcos.visualize.batch import Level

    ranges = getattr(model.targets, "size_ranges", [])  # an assigner of the user's own may have none
    ends = [0.0, *ranges, float("inf")]
    if len(ends) != len(model.head.strides) + 1:
        ends = [0.0] + [float("inf")] * len(model.head.strides)
    return [Level(*level) for level in zip(model.head.strides, ends[:-1], ends[1:])]


def fed_images(model: Any, batch: Mapping[str, Any], data: Any) -> list:
    """The images of a batch with their targets.

    Args:
        model: a PPFCOS; only its strides and its assigner are used.
        batch: of the prefetcher; a micro-batch if `accumulate_steps` is above 1.
        data: the data set.

    Returns:
        B × ppfcos.visualize.batch.BatchImage.
    """
    import numpy as np

    from ppfcos.visualize.batch import BatchImage
    from ppfcos.visualize.drawing import printable_name

    assigned = _assigned(model, batch)
    files = {int(record["im_id"][0]): Path(record["im_file"]).name for record in data.records}
    images = []
    for i, locations in enumerate(assigned):
        boxes = batch["gt_bbox"][i].numpy()
        kept = boxes.any(axis=1)  # the others are padding
        labels = batch["gt_class"][i].numpy().reshape(-1)[kept]
        height, width = np.rint(batch["im_shape"][i].numpy()).astype(int).tolist()
        title = f"{files[int(batch['im_id'][i])]}: {width}x{height}, {len(labels)} boxes, "
        images.append(
            BatchImage(
                batch["image"][i].numpy().transpose(1, 2, 0)[..., ::-1],
                (height, width),
                title + f"{len(locations['levels'])} points",
                boxes[kept],
                [printable_name(int(label), data.class_names) for label in labels],
                _main_levels(boxes[kept], locations),
                locations["points"],
                locations["levels"],
                _crowds(batch, i),
            )
        )
    return images


def _crowds(batch: Mapping[str, Any], i: int) -> Any:
    """[K, 4] boxes around the crowds of an image, if crowds are ignored."""
    import numpy as np

    boxes = batch["gt_crowd"][i].numpy() if "gt_crowd" in batch else np.zeros((0, 4), np.float32)
    return boxes[boxes.any(axis=1)]


def _assigned(model: Any, batch: Mapping[str, Any]) -> list:
    """The positives of each image: points [N, 2], levels [N], and their boxes [N, 4]."""
    import numpy as np
    import paddle

    from ppfcos.modeling.fcos import center_grid

    targets, (height, width) = model.assign(batch), batch["image"].shape[2:]
    grids = [center_grid(-(-height // s), -(-width // s), s).points() for s in model.head.strides]
    all_points = paddle.concat(grids).numpy()
    all_levels = np.repeat(np.arange(len(grids)), [len(grid) for grid in grids])
    image, location = np.divmod(targets.positives.numpy(), len(all_points))
    points, distances = all_points[location], targets.distances.numpy()
    reached = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1)
    return [
        {"points": points[mine], "levels": all_levels[location[mine]], "boxes": reached[mine]}
        for mine in (image == i for i in range(len(batch["image"])))
    ]


def _main_levels(boxes: Any, locations: Mapping[str, Any]) -> Any:
    """[M] the level that has most of the positives of each box."""
    import numpy as np

    from ppfcos.visualize.batch import NO_LEVEL

    levels = np.full(len(boxes), NO_LEVEL)
    if len(boxes):
        gaps = np.abs(locations["boxes"][:, None] - boxes[None]).sum(axis=2)  # [N, M]
        box_of_location = gaps.argmin(axis=1)
        for i in np.unique(box_of_location):
            levels[i] = np.bincount(locations["levels"][box_of_location == i]).argmax()
    return levels


def _log_counts(path: Path, images: Sequence[Any]) -> None:
    boxes = sum(len(image.boxes) for image in images)
    lost = sum(int((image.box_levels < 0).sum()) for image in images)
    locations = sum(len(image.locations) for image in images)
    height, width = images[0].pixels.shape[:2]
    logger.info(
        "%s: %d images of %dx%d pixels, %d boxes, %d of them without a positive point, %d positive points",
        path, len(images), width, height, boxes, lost, locations,
    )  # fmt: skip


main = functools.partial(command.run, show, build_parser)
