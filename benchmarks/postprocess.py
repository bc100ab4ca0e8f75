"""Measure decoding of a head's outputs in numpy, compared with a plain vectorized decoder.

    python benchmarks/postprocess.py [--rounds 5] [--candidates 200]

The outputs are those of a model on an edge board: 80 classes on strides 8 to 128, channels last; floats, and
8-bit integers with one scale per channel. Scores are sqrt(sigmoid(centerness) · sigmoid(class)), and about
200 points are above the threshold. Both decoders alternate on the same outputs, on one thread, and must
return the same boxes. The plain one computes all scores and takes the best class of each point, as a first
version of a decoder would. The figure is the minimum time, so that other load on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from machine import day_and_machine

from ppfcos.deploy.bundle import HEAD_OUTPUTS, DecodeOptions, Heads, Level
from ppfcos.deploy.heads_decoder import HeadsDecoder

SIDES = (512, 768, 896)
STRIDES = (8, 16, 32, 64, 128)
NUM_CLASSES = 80
REPEATS = 100
SETTINGS = DecodeOptions(score_threshold=0.3, sqrt_score=True)
# What a step of the integers is worth, about; each channel has a little more or less.
STEPS = {"class_logits": 0.08, "distances": 4.0, "quality_logits": 0.05}
CHANNELS = {"class_logits": NUM_CLASSES, "distances": 4, "quality_logits": 1}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each decoder (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=200, help="per image (default: %(default)s)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{day_and_machine()}, numpy {np.__version__}; ms an image\n")
    print("| side | outputs | candidates | boxes | plain | ours | ratio |")
    print("|---|---|---|---|---|---|---|")
    for side in SIDES:
        for kind, (outputs, scales) in network_outputs(side, options.candidates).items():
            report(side, kind, outputs, scales, options)


def network_outputs(side: int, candidates: int) -> dict:
    """Return outputs [1, H_l, W_l, channels] as floats and as integers, and the scales of the integers."""
    random = np.random.default_rng(side)
    scales = {k: (STEPS[k] * random.uniform(0.8, 1.2, CHANNELS[k])).astype(np.float32) for k in HEAD_OUTPUTS}
    integers, floats = {}, {}
    sizes = [side // stride for stride in STRIDES]
    places = sum(size * size for size in sizes)
    for stride, size in zip(STRIDES, sizes):
        count = round(candidates * size * size / places)
        values = {
            "class_logits": random.normal(-7, 0.7, (1, size, size, NUM_CLASSES)),
            "distances": random.uniform(1, 4, (1, size, size, 4)) * stride,
            "quality_logits": random.normal(-1, 1, (1, size, size, 1)),
        }
        where = random.choice(size * size, count, replace=False)
        values["class_logits"].reshape(-1, NUM_CLASSES)[where, random.integers(0, 6, count)] = 1.5
        values["quality_logits"].reshape(-1)[where] = random.normal(1, 0.5, count)
        for kind, array in values.items():
            whole = np.clip(np.round(array / scales[kind]), -128, 127).astype(np.int8)
            integers[f"{kind}_{stride}"] = whole
            floats[f"{kind}_{stride}"] = whole.astype(np.float32) * scales[kind]
    return {"float32": (floats, {}), "int8": (integers, {k: tuple(map(float, s)) for k, s in scales.items()})}


def report(side: int, kind: str, outputs: dict, scales: dict, options: argparse.Namespace) -> None:
    levels = [Level(s, {name: f"{name}_{s}" for name in HEAD_OUTPUTS}, scales) for s in STRIDES]
    ours = HeadsDecoder(Heads("nhwc", "centers", "pixels", tuple(levels)), SETTINGS)
    shape, factor = np.float32([[side, side]]), np.ones((1, 2), np.float32)
    plain = PlainDecoder(scales, side)
    runs = {"plain": lambda: plain(outputs), "ours": lambda: ours(outputs, (side, side), shape, factor)[0]}
    check_same(runs["plain"](), runs["ours"]())
    best = dict.fromkeys(runs, np.inf)
    for _ in range(options.rounds):
        for name, run in runs.items():
            best[name] = min(best[name], milliseconds(run))
    candidates, boxes = len(plain.candidates(outputs)[0]), len(runs["ours"]())
    times = f"{best['plain']:.2f} | {best['ours']:.2f} | {best['plain'] / best['ours']:.1f}"
    print(f"| {side} | {kind} | {candidates} | {boxes} | {times} |")


def milliseconds(run) -> float:
    least = np.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - started)
    return least * 1000


def check_same(ones: np.ndarray, others: np.ndarray) -> None:
    ones, others = (rows[np.lexsort((rows[:, 2], rows[:, 1]))] for rows in (ones, others))
    if ones.shape != others.shape or not np.allclose(ones, others, atol=1e-2):
        sys.exit(f"the two disagree: {len(ones)} boxes and {len(others)}")


class PlainDecoder:
    """Decoder that computes every score; the points are made once."""

    def __init__(self, scales: dict, side: int):
        self.scales = {kind: np.float32(values) for kind, values in scales.items()}
        self.side = side
        self.grids = {}
        for stride in STRIDES:
            centers = (np.arange(side // stride, dtype=np.float32) + 0.5) * stride
            self.grids[stride] = np.stack(np.meshgrid(centers, centers), -1).reshape(-1, 2)

    def candidates(self, outputs: dict) -> tuple:
        found = []
        for stride in STRIDES:
            logits, distances, quality = (self.values(outputs, kind, stride) for kind in HEAD_OUTPUTS)
            labels = logits.argmax(1)
            best = logits[np.arange(len(logits)), labels]
            scores = np.sqrt(1 / (1 + np.exp(-best)) / (1 + np.exp(-quality[:, 0])))
            keep = scores > SETTINGS.score_threshold
            points, sides = self.grids[stride][keep], distances[keep]
            boxes = np.concatenate([points - sides[:, :2], points + sides[:, 2:]], 1)
            found.append((scores[keep], labels[keep], boxes))
        scores, labels, boxes = (np.concatenate(parts) for parts in zip(*found))
        return scores, labels, boxes.clip(0, self.side)

    def values(self, outputs: dict, kind: str, stride: int) -> np.ndarray:
        values = outputs[f"{kind}_{stride}"][0].reshape(-1, CHANNELS[kind])
        return values * self.scales[kind] if self.scales else values

    def __call__(self, outputs: dict) -> np.ndarray:
        scores, labels, boxes = self.candidates(outputs)
        kept = []
        for label in np.unique(labels):
            of_class = np.flatnonzero(labels == label)
            corners_and_sizes = boxes[of_class].astype(np.float64)
            corners_and_sizes[:, 2:] -= corners_and_sizes[:, :2]
            chosen = cv2.dnn.NMSBoxes(
                corners_and_sizes.tolist(),
                scores[of_class].tolist(),
                SETTINGS.score_threshold,
                SETTINGS.nms_threshold,
            )
            kept.append(of_class[np.asarray(chosen, np.int64).reshape(-1)])
        kept = np.concatenate(kept)
        kept = kept[np.argsort(-scores[kept], kind="stable")][: SETTINGS.keep_top_k]
        return np.concatenate([labels[kept, None], scores[kept, None], boxes[kept]], 1)


if __name__ == "__main__":
    main()
