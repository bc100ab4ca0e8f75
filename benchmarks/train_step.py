"""One training step of ours and of PaddleDetection 2.6.0's stock FCOS: time and peak memory, side by side.

    python benchmarks/train_step.py                # both models, both environments
    python benchmarks/train_step.py --model r18

Both programs run as processes of their own and take turns, one step each, so that whatever else the machine
does falls on both. A step is forward, losses, backward and optimizer; ours makes its targets within it, the
stock FCOS gets them ready made (its reader makes them). `as typed`: each in the environment that its
documented command gives. `tuned`: both with the variables that ppfcos sets. Peak memory is that of the whole
process, Paddle included.
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

from machine import day_and_machine
from turns import answer_turns, answers_apart, take_turns

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MODELS = {
    "r50": {"depth": 50, "height": 800, "width": 1344, "batch": 1},
    "r18": {"depth": 18, "height": 384, "width": 384, "batch": 4},
}
CLASSES = 80
STRIDES = [8, 16, 32, 64, 128]


def random_boxes(batch: int, height: int, width: int, count: int = 8):
    """[B, count, 4] boxes of all sizes and [B, count] classes, the same for both programs."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(16), np.log(min(height, width) * 0.9), [batch, count, 2]))
    corner = rng.uniform(0, 1, [batch, count, 2]) * ([width, height] - size)
    boxes = np.concatenate([corner, corner + size], -1).astype("float32")
    return boxes, rng.integers(0, CLASSES, [batch, count]).astype("int32")


def our_step(depth: int, height: int, width: int, batch: int):
    """A function that does one training step of PPFCOS."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import numpy as np
        import paddle
        import ppdet  # noqa: F401
    from ppdet.core.workspace import create

    from ppfcos.config import load_config

    load_config(ROOT / "configs" / "fcos_r50_fpn_1x_coco.yml", [f"ResNet.depth={depth}", "device=cpu"])
    model = create("PPFCOS")
    optimizer = create("OptimizerBuilder")(0.0001, model)
    boxes, labels = random_boxes(batch, height, width)
    pixels = np.random.default_rng(1).integers(0, 256, [batch, 3, height, width])
    data = {
        "image": paddle.to_tensor(pixels, "uint8"),
        "im_shape": paddle.to_tensor([[height, width]] * batch, "float32"),
        "scale_factor": paddle.ones([batch, 2]),
        "gt_bbox": paddle.to_tensor(boxes),
        "gt_class": paddle.to_tensor(labels),
    }
    # As our trainer does: gradients are freed, not kept as zeros until the next backward pass.
    return _stepper(model, data, optimizer, lambda: optimizer.clear_grad(set_to_zero=False))


def stock_step(depth: int, height: int, width: int, batch: int):
    """A function that does one training step of PaddleDetection's FCOS."""
    import numpy as np
    import paddle
    from ppdet.core.workspace import create, merge_config
    from ppdet.data.transform.batch_operators import Gt2FCOSTarget

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from stock import MEAN, STD, stock_config

    merge_config(
        stock_config(
            depth=depth,
            target_size=(height, width),
            num_classes=CLASSES,
            batch_size=batch,
            from_scratch=False,
        )
    )
    model = create("FCOS")
    optimizer = create("OptimizerBuilder")(0.0001, model)
    boxes, labels = random_boxes(batch, height, width)
    pixels = np.random.default_rng(1).integers(0, 256, [batch, 3, height, width])
    normalized = (pixels / 255 - np.reshape(MEAN, [3, 1, 1])) / np.reshape(STD, [3, 1, 1])
    samples = [
        {"image": image.astype("float32"), "gt_bbox": box, "gt_class": label[:, None]}
        for image, box, label in zip(normalized, boxes, labels)
    ]
    samples = Gt2FCOSTarget([64, 128, 256, 512], 1.5, STRIDES)(samples)
    data = {key: paddle.to_tensor(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    data["im_shape"] = paddle.to_tensor([[height, width]] * batch, "float32")
    return _stepper(model, data, optimizer, optimizer.clear_grad)


def _stepper(model, data, optimizer, clear_gradients):
    model.train()

    def step() -> float:
        loss = model(data)["loss"]
        loss.backward()
        optimizer.step()
        clear_gradients()
        return float(loss)

    return step


def work(side: str, model: str) -> None:
    """When it is this side's turn, do a step and answer with its seconds and the process's peak memory."""
    with answers_apart() as answers:
        step = {"ours": our_step, "stock": stock_step}[side](**MODELS[model])

        def timed_step() -> dict:
            start = time.perf_counter()
            loss = step()
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            return {"seconds": seconds, "peak": peak, "loss": loss}

        answer_turns(timed_step, answers)


def tuned_variables() -> dict:
    """What ppfcos sets before Paddle is imported, on this machine."""
    code = "import json, os, ppfcos; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=plain_variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def plain_variables() -> dict:
    """This process's environment without anything that steers the math libraries."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMP_", "MKL_", "KMP_", "FLAGS_"))
    }


def measure(model: str, variables: dict, steps: int) -> dict:
    """Median seconds and peak MiB of each side over alternating steps, the first one left out."""
    commands = {side: [__file__, "--worker", side, "--model", model] for side in ("ours", "stock")}
    answers = take_turns(commands, steps + 1, variables)
    return {
        side: {
            "seconds": statistics.median(answer["seconds"] for answer in found[1:]),
            "peak": found[-1]["peak"],
        }
        for side, found in answers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), help="one model only")
    parser.add_argument("--environment", choices=["typed", "tuned"], help="one environment only")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each side (default 5)")
    parser.add_argument("--worker", choices=["ours", "stock"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.model)
        return
    print(f"{day_and_machine()}, median of {args.steps} steps")
    print("| model | environment | ours | stock | stock/ours | ours MiB | stock MiB | ours/stock |")
    print("|---|---|---|---|---|---|---|---|")
    for environment in [args.environment] if args.environment else ["typed", "tuned"]:
        variables = plain_variables() if environment == "typed" else tuned_variables()
        for model in [args.model] if args.model else ["r18", "r50"]:
            found = measure(model, variables, args.steps)
            ours, stock = found["ours"], found["stock"]
            sizes = "R{depth} {height}×{width}, batch {batch}".format(**MODELS[model])
            name = "as typed" if environment == "typed" else "tuned, both"
            print(
                f"| {sizes} | {name} | {ours['seconds']:.2f} s | {stock['seconds']:.2f} s "
                f"| {stock['seconds'] / ours['seconds']:.2f} | {ours['peak']:.0f} | {stock['peak']:.0f} "
                f"| {ours['peak'] / stock['peak']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
