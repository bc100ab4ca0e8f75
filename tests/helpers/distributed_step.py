"""A forward and backward pass of a small model in each process; run by test_distributed_loss.py.

python -m paddle.distributed.launch --nproc_per_node N tests/distributed_step.py OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ppfcos import environment

environment.configure_process()

import numpy as np
import paddle
import paddle.distributed as dist

import ppfcos.modeling  # noqa: F401  # before ppdet

from ppdet.core.workspace import create, global_config  # isort: skip

BOXES_PER_IMAGE = [
    5,
    1,
    0,
    0,
]  # the second half of the batch, so the second of two processes, has no positive


def batch_of(images: slice) -> dict:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [4, 3, 64, 96])
    boxes, labels = np.zeros([4, 5, 4]), np.zeros([4, 5, 1])
    for image, count in enumerate(BOXES_PER_IMAGE):
        corner = rng.uniform(0, 40, [count, 2])
        boxes[image, :count] = np.concatenate([corner, corner + rng.uniform(12, 50, [count, 2])], 1)
        labels[image, :count] = rng.integers(0, 3, [count, 1])
    return {
        "image": paddle.to_tensor(pixels[images], "uint8"),
        "im_shape": paddle.to_tensor([[64.0, 96.0]] * len(pixels[images])),
        "scale_factor": paddle.ones([len(pixels[images]), 2]),
        "gt_bbox": paddle.to_tensor(boxes[images], "float32"),
        "gt_class": paddle.to_tensor(labels[images], "int32"),
    }


def main(folder: Path, quality: str) -> None:
    if dist.ParallelEnv().world_size > 1:
        dist.init_parallel_env()
    processes, rank = dist.get_world_size(), dist.get_rank()
    global_config["ResNet"].update(depth=18, return_idx=[1, 2, 3], num_stages=4)
    global_config["PPFCOSFPN"].update(out_channels=64)
    global_config["PPFCOSHead"].update(num_classes=3, num_convs=2)
    global_config["PPFCOSLoss"].update(quality=quality)
    paddle.seed(7)
    model = create("PPFCOS")
    # In 32 bits, sums in another order carry some rectifier's input over to its other side, whose gradient is
    # another one. (The loss itself computes in 32 bits, whatever the network does.)
    model.to(dtype="float64")
    parallel = paddle.DataParallel(model) if processes > 1 else model
    share = 4 // processes
    losses = parallel(batch_of(slice(rank * share, (rank + 1) * share)))
    losses["loss"].backward()
    arrays = {f"loss.{name}": value.numpy() for name, value in losses.items()}
    arrays.update({name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})
    np.savez(folder / f"{processes}_{rank}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
