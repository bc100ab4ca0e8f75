"""Compare the boxes of a bundle in ONNX Runtime on an NVIDIA GPU with those on the CPU, and measure the time.

    python benchmarks/on_gpu.py output_inference/fcos_r50_fpn_1x_coco photos [--rounds 20]

It needs onnxruntime-gpu and CUDA's libraries, but neither Paddle nor the training packages. The boxes of each
network on the GPU are compared with those of fp32 on the CPU, on all photographs: `apart` counts boxes
without a counterpart of the same class within half a pixel and a score difference of 0.01, and the next two
columns are the largest differences among the others. Times are from a decoded photograph to boxes, one
photograph at a time, all programs alternating: for photographs that change their size, and for the first one
repeatedly. If torchvision is installed, its FCOS with ResNet-50 is measured, too, in fp32 and fp16, at the
same size and with random weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PIXELS, SCORE = 0.5, 0.01
SHORTER, LONGER = 800, 1333


def apart(expected: Sequence, found: Sequence) -> tuple[int, int, float, float]:
    """Compare the detections of two programs on the same photographs.

    Args:
        expected: Detections per photograph.
        found: Detections per photograph.

    Returns:
        Number of boxes in both together; number without a counterpart; the largest difference of a side in
        pixels, and of a score, between counterparts.
    """
    total = lonely = 0
    pixels = scores = 0.0
    for ones, others in [*zip(expected, found), *zip(found, expected)]:
        total += len(ones)
        for box, score, label in zip(ones.boxes, ones.scores, ones.labels):
            sides = np.abs(others.boxes - box).max(axis=1, initial=0)
            values = np.abs(others.scores - score)
            near = (others.labels == label) & (sides <= PIXELS) & (values <= SCORE)
            if not near.any():
                lonely += 1
                continue
            nearest = np.flatnonzero(near)[sides[near].argmin()]
            pixels, scores = max(pixels, float(sides[nearest])), max(scores, float(values[nearest]))
    return total, lonely, pixels, scores


def graphics_card() -> str:
    """Return the name of the first GPU as reported by its driver."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"there is no GPU of NVIDIA here: {error}") from None


def torchvision_detector(half: bool) -> Callable[[np.ndarray], object]:
    """Return torchvision's FCOS on the GPU as a function from a photograph to boxes on the CPU."""
    import torch
    from torchvision.models.detection import fcos_resnet50_fpn

    torch.manual_seed(0)
    size = {"min_size": SHORTER, "max_size": LONGER}
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, **size).cuda().eval()

    def detect(image: np.ndarray) -> object:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            pixels = torch.from_numpy(image).cuda().permute(2, 0, 1).flip(0).float() / 255
            return {name: value.cpu() for name, value in model([pixels])[0].items()}

    return detect


def alternating_seconds(
    programs: dict[str, Callable[[np.ndarray], object]], images: Sequence[np.ndarray], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each image, program and round, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, program in programs.items():
            for image in images:
                start = time.perf_counter()
                program(image)
                if turn:  # in the first, memory is taken and algorithms are chosen
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("--rounds", type=int, default=20, help="over the photographs, for times (default 20)")
    parser.add_argument("--device", default="gpu", help="as of `ppfcos.deploy.Predictor` (default gpu)")
    args = parser.parse_args()
    from ppfcos.deploy import Predictor
    from ppfcos.deploy.images import read_image

    images = [read_image(path) for path in sorted(args.photos.iterdir())]
    on_cpu = Predictor(args.bundle, "onnxruntime", device="cpu")
    expected = on_cpu.predict(images)
    programs: dict[str, Callable[[np.ndarray], object]] = {}
    print(f"{day_and_machine()}, {graphics_card()}; {args.bundle.name}, {len(images)} photographs")
    print("| on the GPU | boxes | apart | pixels | score |")
    print("|---|---|---|---|---|")
    for precision in on_cpu.bundle.networks["onnx"]:
        predictor = Predictor(args.bundle, "onnxruntime", precision, device=args.device)
        total, lonely, pixels, scores = apart(expected, predictor.predict(images))
        print(f"| {precision} | {total} | {lonely} | {pixels:.4f} | {scores:.1e} |", flush=True)
        programs[f"ppfcos, {precision}"] = lambda image, predictor=predictor: predictor.predict([image])
    if importlib.util.find_spec("torchvision"):
        for name, half in (("fp32", False), ("fp16", True)):
            programs[f"torchvision, {name}"] = torchvision_detector(half)
    other_sizes = alternating_seconds(programs, images, args.rounds)
    one_size = alternating_seconds(programs, images[:1] * len(images), args.rounds)
    print("\n| | ms a photograph, sizes change | one size |")
    print("|---|---|---|")
    for name in programs:
        changing, same = (statistics.median(times[name]) * 1000 for times in (other_sizes, one_size))
        print(f"| {name} | {changing:.1f} | {same:.1f} |")


if __name__ == "__main__":
    main()
