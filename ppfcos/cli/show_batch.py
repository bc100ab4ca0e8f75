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
    prefetcher = Prefetcher(loader, cfg["max_bad_images"])
    prefetcher.start_epoch(options.epoch - 1)
    output = Path(options.output or run_folder(cfg) / "batch.png")
    for number in range(1, min(options.batches, len(prefetcher)) + 1):
        if number > 1:
            prefetcher.advance(paddle.zeros([1]))
        images = [image for part in prefetcher.current for image in batch_images(model, part, data)]
        path = output.with_name(f"{output.stem}_{number}{output.suffix}") if options.batches > 1 else output
        save_image(path, draw_batch(images, pyramid_levels(model)))
        _log_counts(path, images)


def pyramid_levels(model: Any) -> list:
    """The levels of a PPFCOS: L × ppfcos.visualize.batch.Level."""
    from ppfcos.visualize.batch import Level

    strides = model.head.strides
    ends = [0.0, *(getattr(model.targets, "size_ranges", None) or []), float("inf")]
    if len(ends) != len(strides) + 1:  # an assigner without size ranges
        ends = [0.0] + [float("inf")] * len(strides)
    return [Level(*level) for level in zip(strides, ends[:-1], ends[1:])]


def batch_images(model: Any, batch: Mapping[str, Any], data: Any) -> list:
    """The images of a batch with the points that the model's assigner assigns to their boxes.

    Args:
        model: a PPFCOS; its weights are not used.
        batch: of the prefetcher; a micro-batch if `accumulate_steps` is above 1.
        data: the data set.

    Returns:
        B × ppfcos.visualize.batch.BatchImage.
    """
    import numpy as np

    from ppfcos.visualize.batch import BatchImage
    from ppfcos.visualize.drawing import printable_name

    arrays = {key: value.numpy() for key, value in batch.items() if hasattr(value, "numpy")}
    grids = [grid.points().numpy() for grid in model.grids(*batch["image"].shape[2:])]
    all_points = np.concatenate(grids)
    all_levels = np.repeat(np.arange(len(grids)), [len(grid) for grid in grids])
    targets = model.assign(batch)
    image_of_point, index = np.divmod(targets.positives.numpy(), len(all_points))
    all_distances = targets.distances.numpy()
    files = {int(record["im_id"][0]): Path(record["im_file"]).name for record in data.records}
    images = []
    for i, pixels in enumerate(arrays["image"]):
        boxes, labels = _without_padding(arrays["gt_bbox"][i], arrays["gt_class"][i])
        mine = image_of_point == i
        points, levels, distances = all_points[index[mine]], all_levels[index[mine]], all_distances[mine]
        height, width = np.rint(arrays["im_shape"][i]).astype(int).tolist()
        crowds = arrays["gt_crowd"][i] if "gt_crowd" in arrays else np.zeros((0, 4), np.float32)
        images.append(
            BatchImage(
                pixels.transpose(1, 2, 0)[..., ::-1],
                (height, width),
                f"{files[int(arrays['im_id'][i, 0])]}: {width}x{height}, {len(labels)} boxes, "
                f"{len(points)} points",
                boxes,
                [printable_name(int(label), data.class_names) for label in labels],
                _main_levels(boxes, points, distances, levels),
                points,
                levels,
                crowds[crowds.any(axis=1)],
            )
        )
    return images


def _without_padding(boxes: Any, labels: Any) -> tuple:
    """The boxes [M, 4] and labels [M] of an image."""
    is_box = boxes.any(axis=1)
    return boxes[is_box], labels.reshape(-1)[is_box]


def _main_levels(boxes: Any, points: Any, distances: Any, levels: Any) -> Any:
    """[M] the level that has most of the positive points of each box, or NO_LEVEL."""
    import numpy as np

    from ppfcos.visualize.batch import NO_LEVEL

    main = np.full(len(boxes), NO_LEVEL)
    if len(boxes):
        assigned = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1)
        box_of_point = np.abs(assigned[:, None] - boxes[None]).sum(axis=2).argmin(axis=1)
        for i in np.unique(box_of_point):
            main[i] = np.bincount(levels[box_of_point == i]).argmax()
    return main


def _log_counts(path: Path, images: Sequence[Any]) -> None:
    boxes = sum(len(image.boxes) for image in images)
    lost = sum(int((image.box_levels < 0).sum()) for image in images)
    points = sum(len(image.points) for image in images)
    height, width = images[0].pixels.shape[:2]
    logger.info(
        "%s: %d images of %dx%d pixels, %d boxes, %d of them without a positive point, %d positive points",
        path, len(images), width, height, boxes, lost, points,
    )  # fmt: skip


main = functools.partial(command.run, show, build_parser)
