"""Time and peak memory of one training step, compared with PaddleDetection, torchvision or another checkout.

    python benchmarks/train_step.py                                  # ours and PaddleDetection's
    python benchmarks/train_step.py --model r18 --torch TORCH_VENV/bin/python
    python benchmarks/train_step.py --checkout ../ppfcos-before --environment tuned

Each side is a process, and the sides run alternately, one step at a time. A step is forward, losses, backward
and optimizer, on random images and boxes that are the same for all sides. Ours and torchvision's assign
targets within the step; PaddleDetection's reader does it, so its step gets them ready made. `typed`: each
side in the environment that its documented command gives. `tuned`: all with the variables that
`ppfcos.environment.configure_process` sets. Peak memory is that of the whole process. torchvision's side
needs a Python with torch and torchvision, and runs with as many threads as the tuned sides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from alternating import alternate, separate_results, serve

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "r50": {"depth": 50, "height": 800, "width": 1344, "batch": 1},
    "r18": {"depth": 18, "height": 384, "width": 384, "batch": 4},
}
CLASSES = 80
STRIDES = [8, 16, 32, 64, 128]
LEARNING_RATE = 0.0001


def random_batch(batch: int, height: int, width: int, count: int = 8):
    """Return [B, 3, H, W] images, [B, count, 4] boxes of all sizes and [B, count] labels in numpy."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(16), np.log(min(height, width) * 0.9), [batch, count, 2]))
    corner = rng.uniform(0, 1, [batch, count, 2]) * ([width, height] - size)
    boxes = np.concatenate([corner, corner + size], -1).astype("float32")
    labels = rng.integers(0, CLASSES, [batch, count]).astype("int32")
    return np.random.default_rng(1).integers(0, 256, [batch, 3, height, width]), boxes, labels


def ppfcos_step(root: Path, depth: int, height: int, width: int, batch: int):
    """Return a function that runs one training step of the ppfcos in `root` and returns the loss."""
    sys.path.insert(0, str(root))
    from ppfcos import environment

    # Before version 0.2 the function had another name.
    getattr(environment, "configure_process", getattr(environment, "prepare", None))()
    with environment.quiet_imports():
        import paddle

        import ppfcos.paddledetection  # noqa: F401
    from ppdet.core.workspace import create

    from ppfcos.config import load_config

    load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", [f"ResNet.depth={depth}", "device=cpu"])
    model = create("PPFCOS")
    optimizer = create("OptimizerBuilder")(LEARNING_RATE, model)
    images, boxes, labels = random_batch(batch, height, width)
    data = {
        "image": paddle.to_tensor(images, "uint8"),
        "im_shape": paddle.to_tensor([[height, width]] * batch, "float32"),
        "scale_factor": paddle.ones([batch, 2]),
        "gt_bbox": paddle.to_tensor(boxes),
        "gt_class": paddle.to_tensor(labels),
    }
    # As in our trainer: gradients are freed, not kept as zeros until the next backward pass.
    return _paddle_step(model, data, optimizer, lambda: optimizer.clear_grad(set_to_zero=False))


def stock_step(depth: int, height: int, width: int, batch: int):
    """Return a function that runs one training step of PaddleDetection's FCOS and returns the loss."""
    import numpy as np
    import paddle
    from ppdet.core.workspace import create, merge_config
    from ppdet.data.transform.batch_operators import Gt2FCOSTarget
    from stock import MEAN, STD, stock_config

    shape = {"depth": depth, "target_size": (height, width), "num_classes": CLASSES, "batch_size": batch}
    merge_config(stock_config(**shape, from_scratch=False))
    model = create("FCOS")
    optimizer = create("OptimizerBuilder")(LEARNING_RATE, model)
    images, boxes, labels = random_batch(batch, height, width)
    normalized = (images / 255 - np.reshape(MEAN, [3, 1, 1])) / np.reshape(STD, [3, 1, 1])
    samples = [
        {"image": image.astype("float32"), "gt_bbox": box, "gt_class": label[:, None]}
        for image, box, label in zip(normalized, boxes, labels)
    ]
    samples = Gt2FCOSTarget([64, 128, 256, 512], 1.5, STRIDES)(samples)
    data = {key: paddle.to_tensor(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    data["im_shape"] = paddle.to_tensor([[height, width]] * batch, "float32")
    return _paddle_step(model, data, optimizer, optimizer.clear_grad)


def _paddle_step(model, data, optimizer, clear_gradients):
    model.train()

    def step() -> float:
        loss = model(data)["loss"]
        loss.backward()
        optimizer.step()
        clear_gradients()
        return float(loss)

    return step


def torchvision_step(depth: int, height: int, width: int, batch: int):
    """Return a function that runs one training step of torchvision's FCOS and returns the loss.

    As in ours, the stem and the batch norms of the backbone are frozen, and P6 is computed from P5.
    """
    import torch
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.fcos import FCOS
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = FCOS(backbone, CLASSES, min_size=min(height, width), max_size=max(height, width)).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=0.0001)
    images, boxes, labels = random_batch(batch, height, width)
    images = [torch.from_numpy(image).float() / 255 for image in images]
    targets = [
        {"boxes": torch.from_numpy(box), "labels": torch.from_numpy(label).long()}
        for box, label in zip(boxes, labels)
    ]

    def step() -> float:
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def work(side: str, model: str) -> None:
    """Run one step of a side per request, and write its seconds, processor seconds, peak memory and loss."""
    with separate_results() as results:
        shape = MODELS[model]
        if side == "stock":
            step = stock_step(**shape)
        elif side == "torchvision":
            step = torchvision_step(**shape)
        else:
            step = ppfcos_step(Path(side), **shape)

        def timed_step() -> dict:
            start, processor = time.perf_counter(), time.process_time()
            loss = step()
            return {
                "seconds": time.perf_counter() - start,
                "processor": time.process_time() - processor,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "loss": loss,
            }

        serve(timed_step, results)


def plain_variables() -> dict:
    """Return this process's environment without the variables that control the math libraries."""
    prefixes = ("OMP_", "MKL_", "KMP_", "FLAGS_")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


def tuned_variables() -> dict:
    """Return the environment that `configure_process` makes on this machine."""
    code = (
        "import json, os; from ppfcos import environment; environment.configure_process();"
        "print(json.dumps(dict(os.environ)))"
    )
    program = [sys.executable, "-c", code]
    done = subprocess.run(
        program, cwd=ROOT, env=plain_variables(), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def measure(sides: dict[str, list[str]], model: str, variables: dict, steps: int) -> dict[str, dict]:
    """Return the median of each figure of each side over alternating steps, without the first one."""
    commands = {name: [*command, "--model", model] for name, command in sides.items()}
    results = alternate(commands, steps + 1, variables)
    return {
        name: {
            "seconds": statistics.median(result["seconds"] for result in found[1:]),
            "processor": statistics.median(result["processor"] for result in found[1:]),
            "peak": found[-1]["peak"],
        }
        for name, found in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), help="one model only")
    parser.add_argument("--environment", choices=["typed", "tuned"], help="one environment only")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side (default 5)")
    parser.add_argument("--torch", metavar="PYTHON", help="add torchvision's FCOS, run by this Python")
    parser.add_argument("--checkout", type=Path, help="add the ppfcos of another checkout")
    parser.add_argument("--no-stock", action="store_true", help="leave PaddleDetection's FCOS out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.model)
        return
    worker = [__file__, "--worker"]
    sides = {"ppfcos": [*worker, str(ROOT)]}
    if not args.no_stock:
        sides["PaddleDetection"] = [*worker, "stock"]
    if args.torch:
        sides["torchvision"] = [args.torch, *worker, "torchvision"]
    if args.checkout:
        sides[str(args.checkout)] = [*worker, str(args.checkout.resolve())]

    sys.path.insert(0, str(ROOT))
    from ppfcos.environment import available_cores, day_and_machine

    print(f"{day_and_machine()}, median of {args.steps} steps")
    print("| model | environment | side | s | ratio | processor s | ratio | MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for environment in [args.environment] if args.environment else ["typed", "tuned"]:
        variables = plain_variables() if environment == "typed" else tuned_variables()
        if args.torch:
            variables.setdefault("OMP_NUM_THREADS", str(available_cores()))
        for model in [args.model] if args.model else ["r18", "r50"]:
            found = measure(sides, model, variables, args.steps)
            size = "R{depth} {height}×{width}, batch {batch}".format(**MODELS[model])
            for name, figures in found.items():
                ours = found["ppfcos"]
                columns = [
                    f"{figures[key]:{form}} | {figures[key] / ours[key]:.2f}"
                    for key, form in (("seconds", ".2f"), ("processor", ".2f"), ("peak", ".0f"))
                ]
                row = f"| {size} | {environment} | {name} | {' | '.join(columns)} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
