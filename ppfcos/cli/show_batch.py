"""`tools/show_batch.py`: a picture of what a configuration feeds the network."""

from __future__ import annotations

import argparse
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
    """The command line.

    Returns:
        Its parser.
    """
    parser = command.option_parser(
        "Draw batches as the training reads them: transformed and padded images, their boxes, the levels\n"
        "that answer for them and the positive locations. No weights are needed.",
        EXAMPLE,
    )
    parser.add_argument(
        "--batches", type=_from_one, default=1, metavar="N", help="how many, a picture each (default: 1)"
    )
    parser.add_argument(
        "--epoch", type=_from_one, default=1, metavar="N", help="of which epoch (default: 1, the first)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the picture, .png or .jpg; of several, FILE_1.png and so on (default: save_dir/NAME/batch.png)",
    )
    return parser


def show(options: argparse.Namespace) -> None:
    """Draw batches as the command line says.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
    """
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
    paddle.set_device("cpu")  # whoever looks may be training on the GPU
    data = build_dataset(cfg, "TrainDataset")
    set_num_classes(cfg, data.class_names, data.source)
    model = build_model(cfg)
    loader = TrainLoader({**cfg, "worker_num": 0}, data)  # the batches are the same, and start sooner
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
    """The levels of a model.

    Args:
        model: a PPFCOS.

    Returns:
        L × ppfcos.visualize.batch.Level.
    """
    from ppfcos.visualize.batch import Level

    ends = [0.0, *model.targets.size_ranges, float("inf")]
    return [Level(*level) for level in zip(model.head.strides, ends[:-1], ends[1:])]


def fed_images(model: Any, batch: Mapping[str, Any], data: Any) -> list:
    """What the network and its targets make of a batch.

    Args:
        model: a PPFCOS; only its strides and its targets are used.
        batch: from Prefetcher; a part of it where `accumulate_steps` divides it.
        data: where it came from.

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
                title + f"{len(locations['levels'])} locations",
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
    """[K, 4] the boxes around the crowds of an image, where crowds are ignored."""
    import numpy as np

    boxes = batch["gt_crowd"][i].numpy() if "gt_crowd" in batch else np.zeros((0, 4), np.float32)
    return boxes[boxes.any(axis=1)]


def _assigned(model: Any, batch: Mapping[str, Any]) -> list:
    """The positive locations of each image: points [N, 2], levels [N], and their boxes, [N, 4]."""
    import numpy as np
    import paddle

    from ppfcos.modeling.fcos import center_grid

    targets, (height, width) = model.assign(batch), batch["image"].shape[2:]
    grids = [center_grid(-(-height // s), -(-width // s), s).locations() for s in model.head.strides]
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
    """[M] the level on which most locations answer for each box."""
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
        "%s: %d images of %dx%d pixels, %d boxes, %d of them without a location, %d positive locations",
        path, len(images), width, height, boxes, lost, locations,
    )  # fmt: skip


def _from_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(show, build_parser(), argv)
