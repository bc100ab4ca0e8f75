"""Estimate how much of the difference of two APs the choice of the test images may explain.

    python tools/eval.py -c CONFIG -o weights=A.pdparams --output_eval a
    python tools/eval.py -c CONFIG -o weights=B.pdparams --output_eval b
    python benchmarks/ap_difference.py instances.json a/bbox.json b/bbox.json

Prints box AP and its standard deviation for both, and those of the difference. A paired bootstrap (Efron,
1979) draws as many images as there are, with replacement, and computes both APs on them by pycocotools. The
variation between training seeds is not included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def by_image(rows: Iterable[dict]) -> dict[int, list[dict]]:
    """Group annotations or detections by image."""
    found = defaultdict(list)
    for row in rows:
        found[row["image_id"]].append(row)
    return found


def average_precision(images: Sequence[int], truth: dict, objects: dict, detections: dict) -> float:
    """Return the box AP in percent on some images; an image that occurs twice counts twice."""
    annotations, found = [], []
    for number, image in enumerate(images, start=1):
        annotations += [
            {**row, "image_id": number, "id": len(annotations) + i}
            for i, row in enumerate(objects[image], start=1)
        ]
        found += [{**row, "image_id": number} for row in detections[image]]
    numbers = [{"id": number} for number in range(1, len(images) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": numbers, "annotations": annotations, "categories": truth["categories"]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("truth", type=Path, help="annotations in COCO's format")
    parser.add_argument("detections", type=Path, nargs=2, help="what tools/eval.py --output_eval wrote")
    parser.add_argument("--draws", type=int, default=100)
    args = parser.parse_args()
    truth = json.loads(args.truth.read_text(encoding="utf-8"))
    images, objects = [image["id"] for image in truth["images"]], by_image(truth["annotations"])
    both = [by_image(json.loads(path.read_text(encoding="utf-8"))) for path in args.detections]

    def aps(some: Sequence[int]) -> list[float]:
        return [average_precision(some, truth, objects, each) for each in both]

    random = np.random.default_rng(0)
    whole = aps(images)
    drawn = np.array([aps(random.choice(images, len(images)).tolist()) for _ in range(args.draws)])
    rows = {str(args.detections[0]): 0, str(args.detections[1]): 1}
    print(f"{len(images)} images, {args.draws} draws\n\n| | AP | standard deviation |\n|---|---|---|")
    for name, i in rows.items():
        print(f"| {name} | {whole[i]:.1f} | {drawn[:, i].std():.1f} |")
    difference = drawn[:, 1] - drawn[:, 0]
    print(f"| the second less the first | {whole[1] - whole[0]:+.1f} | {difference.std():.1f} |")
    print(f"\nbelow zero in {np.mean(difference < 0):.0%} of the draws")


if __name__ == "__main__":
    main()
