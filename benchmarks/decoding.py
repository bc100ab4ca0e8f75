"""Measure decoding and NMS within a network, compared with PaddleDetection's, in milliseconds per image.

    python benchmarks/decoding.py [--rounds 10] [--candidates 1000]

The inputs are generated outputs of a head for one image of 800×1344 with 80 classes: objects until a thousand
pairs of a point and a class are above the score threshold, and background elsewhere. Measured is what an
exported network computes after its last convolutions: ours as Paddle program and as ONNX, and PaddleDetection
2.6.0's `post_process` as a Paddle program of fixed size in the same runtime. Settings and threads are the
same, and all must return the same boxes.

Each side is a process, and they alternate. Each measurement is the median of some runs, and the figure is the
median of the measurements. Paddle Inference copies its inputs, here 8 MB, before the first run only: within a
network they would not be copied.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from alternating import alternate, separate_results, serve
from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
HEIGHT, WIDTH, CLASSES = 800, 1344, 80
STRIDES = (8, 16, 32, 64, 128)
SIZES = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]
LARGEST = (64, 128, 256, 512, 1e8)  # what the farthest side of a box is away in each level, at the most
KINDS = {"class_logits": CLASSES, "distances": 4, "quality_logits": 1}
RUNS = 20  # of a turn
PAUSE = 0.25  # Paddle's threads spin for that long
PEER = "PaddleDetection, Paddle Inference"
# name → runtime
SIDES = {
    "ppfcos, ONNX Runtime": "onnxruntime",
    "ppfcos, OpenVINO": "openvino",
    "ppfcos, Paddle Inference": "paddle",
    PEER: "paddle",
}


def head_outputs(candidates: int) -> dict[str, np.ndarray]:
    """Return outputs of a head by name, [1, channels, H_l, W_l], with objects for `candidates`."""
    random = np.random.default_rng(0)
    levels = []
    for stride, (height, width) in zip(STRIDES, SIZES):
        levels.append(
            {
                "class_logits": random.normal(-7, 0.7, (CLASSES, height, width)),
                "distances": random.uniform(0, 4, (4, height, width)) * stride,
                "quality_logits": random.normal(-2, 1, (1, height, width)),
            }
        )
    while sum(map(count_above, levels)) < candidates:
        put_object(levels, random)
    return {
        f"{kind}_{stride}": level[kind][None].astype(np.float32)
        for level, stride in zip(levels, STRIDES)
        for kind in KINDS
    }


def put_object(levels: list[dict[str, np.ndarray]], random: np.random.Generator) -> None:
    """Add an object to its level: highest scores at its center, and a likely second class."""
    sides = np.exp(random.uniform(np.log(24), np.log(600), 2))
    center = random.uniform(sides / 2, np.array([WIDTH, HEIGHT]) - sides / 2)
    box = np.concatenate([center - sides / 2, center + sides / 2])
    label, second = random.choice(CLASSES, 2, replace=False)
    for level, stride, least, most in zip(levels, STRIDES, (0, *LARGEST), LARGEST):
        height, width = level["quality_logits"].shape[1:]
        xs, ys = (np.arange(width) + 0.5) * stride, (np.arange(height) + 0.5) * stride
        x, y = np.meshgrid(xs, ys)
        distances = np.stack([x - box[0], y - box[1], box[2] - x, box[3] - y])
        farthest = distances.max(axis=0)
        ours = (distances.min(axis=0) > 0) & (farthest > least) & (farthest <= most)
        left, top, right, bottom = distances[:, ours]
        ratios = np.minimum(left, right) / np.maximum(left, right) * np.minimum(top, bottom)
        centerness = np.sqrt(ratios / np.maximum(top, bottom)).clip(0.02, 0.98)
        size = int(ours.sum())
        level["class_logits"][label, ours] = 3 * centerness - 1 + random.normal(0, 0.5, size)
        level["class_logits"][second, ours] = 2 * centerness - 4 + random.normal(0, 0.5, size)
        level["quality_logits"][0, ours] = np.log(centerness / (1 - centerness))
        level["distances"][:, ours] = distances[:, ours] * random.uniform(0.93, 1, (4, size))


def count_above(level: dict[str, np.ndarray]) -> int:
    """Count the pairs of a point and a class with a score above the threshold."""
    from ppfcos.modeling.postprocess import PPFCOSDecode

    class_scores, quality = (1 / (1 + np.exp(-level[kind])) for kind in ("class_logits", "quality_logits"))
    return int((class_scores * quality > PPFCOSDecode().score_threshold).sum())


def our_network():
    """Return an exported network without the layers before the outputs of its head."""
    import paddle
    from paddle.static import InputSpec

    from ppfcos.export.program import CandidatesNetwork, network_input
    from ppfcos.modeling.fcos import center_grid
    from ppfcos.modeling.head import HeadOutputs
    from ppfcos.modeling.postprocess import PPFCOSDecode

    class Decoding(CandidatesNetwork):
        """Outputs of the head in; candidates or boxes out."""

        ends_with_boxes = False

        def specs(self) -> list:
            outputs = [
                [
                    InputSpec([1, channels, *size], "float32", f"{kind}_{stride}")
                    for stride, size in zip(STRIDES, SIZES)
                ]
                for kind, channels in KINDS.items()
            ]
            pairs = [InputSpec([1, 2], "float32", name) for name in ("im_shape", "scale_factor")]
            return [*outputs, *pairs]

        def forward(self, class_logits, distances, quality_logits, im_shape, scale_factor):
            grids = [center_grid(*size, stride) for size, stride in zip(SIZES, STRIDES)]
            outputs = HeadOutputs(class_logits, distances, quality_logits)
            decode = self.model.decode if self.ends_with_boxes else self.model.decode.candidates
            return tuple(decode(outputs, grids, im_shape, scale_factor))

    model = paddle.nn.Layer()
    model.head = SimpleNamespace(strides=STRIDES, num_classes=CLASSES)
    model.decode = PPFCOSDecode()
    return Decoding(model, network_input())


def copying_once() -> type:
    """Return the runtime of Paddle Inference that copies its inputs at the first run only."""
    from ppfcos.deploy.runtimes.paddle_inference import PaddleInferenceRuntime

    class CopyingOnce(PaddleInferenceRuntime):
        has_inputs = False

        def _copy(self, inputs) -> None:
            if not self.has_inputs:
                super()._copy(inputs)
            self.has_inputs = True

    return CopyingOnce


def load(name: str, folder: Path, threads: int):
    """Return the runtime of one side with its network."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import onnx

        import ppfcos.paddledetection  # noqa: F401
    from ppfcos.deploy.runtimes.onnx_runtime import OnnxRuntime
    from ppfcos.deploy.runtimes.openvino import OpenVinoRuntime

    runtime, prefix = SIDES[name], folder / "model"
    if runtime == "paddle":
        if name == PEER:
            from stock import save_decoding, stock_config

            size = {"target_size": (HEIGHT, WIDTH), "batch_size": 1, "from_scratch": False}
            save_decoding(stock_config(depth=18, num_classes=CLASSES, **size), SIZES, prefix)
        else:
            from ppfcos.export.program import save_program

            network = our_network()
            network.ends_with_boxes = True
            save_program(network, prefix)
        files = prefix.with_suffix(".json"), prefix.with_suffix(".pdiparams")
        return copying_once()(*files, ("bbox", "bbox_num"), threads, "cpu")
    from ppfcos.export.onnx_export import model_with_nms

    onnx.save(model_with_nms(our_network(), 17), prefix.with_suffix(".onnx"))
    kind = OnnxRuntime if runtime == "onnxruntime" else OpenVinoRuntime
    return kind(prefix.with_suffix(".onnx"), threads, "cpu")


def prepared(name: str, folder: Path, options: argparse.Namespace) -> Callable[[], dict[str, np.ndarray]]:
    """Return a function that decodes the outputs once."""
    runtime = load(name, folder, options.threads)
    inputs = {
        **head_outputs(options.candidates),
        "im_shape": np.float32([[HEIGHT, WIDTH]]),
        "scale_factor": np.ones((1, 2), np.float32),
    }
    inputs = {each: np.ascontiguousarray(inputs[each]) for each in runtime.input_names}
    return lambda: runtime.run(inputs)


def work(name: str, options: argparse.Namespace) -> None:
    """Decode once per request, and write the milliseconds and the boxes."""
    with separate_results() as results, tempfile.TemporaryDirectory() as folder:
        run = prepared(name, Path(folder), options)

        def turn() -> tuple:
            time.sleep(PAUSE)
            run()
            times = []
            for _ in range(RUNS):
                start = time.perf_counter()
                rows = run()["bbox"]
                times.append(time.perf_counter() - start)
            return statistics.median(times) * 1000, rows.tolist()

        serve(turn, results)


def check_same(boxes: dict[str, list]) -> int:
    """Return the number of boxes; exit if the sides' boxes differ."""
    sets = {name: np.array(sorted(rows)) for name, rows in boxes.items()}
    expected = sets[PEER]
    for name, found in sets.items():
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=1e-2):
            raise SystemExit(f"{name}: {len(found)} boxes, which are not the {len(expected)} of {PEER}")
    return len(expected)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--rounds", type=int, default=10, help="measurements of each (default: %(default)s)")
    add("--candidates", type=int, default=1000, help="above the threshold (default: %(default)s)")
    add("--threads", type=int, default=2, help="of each (default: %(default)s)")
    add("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options)
        return
    arguments = ["--candidates", str(options.candidates), "--threads", str(options.threads)]
    commands = {name: [__file__, *arguments, "--worker", name] for name in SIDES}
    results = alternate(commands, 1 + options.rounds)  # the first one is not counted
    found = check_same({name: turns[0][1] for name, turns in results.items()})
    times = {name: statistics.median(turn[0] for turn in turns[1:]) for name, turns in results.items()}
    print(
        f"{day_and_machine()}, {options.threads} threads, {HEIGHT}×{WIDTH}, {options.candidates} candidates, "
        f"{found} boxes, median of {options.rounds} ×  {RUNS} runs"
    )
    print("| | ms | faster than PaddleDetection's |")
    print("|---|---|---|")
    for name, milliseconds in times.items():
        print(f"| {name} | {milliseconds:.1f} | {times[PEER] / milliseconds:.1f} |")


if __name__ == "__main__":
    main()
