"""Measure the time of the evaluation report on generated data of the size of COCO val2017.

    python benchmarks/evaluation_report.py PHOTOGRAPHS

The data are 5,000 images, 36,781 objects of 80 classes of unequal frequency, and about 450,000 detections,
true and false. PHOTOGRAPHS is a folder of JPEG files, which the report shows as the worst images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppfcos.metrics.coco import evaluate_detections
from ppfcos.visualize.evaluation_report import write_report

IMAGES, OBJECTS, CLASSES, DETECTIONS = 5000, 36781, 80, 390_000
WIDTH, HEIGHT = 640, 480


class Photographs:
    """Data set that returns the same few photographs repeatedly."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.glob("*.jpg"))

    def name(self, image: int) -> str:
        return f"{image:012d}.jpg"

    def read(self, image: int) -> np.ndarray:
        return cv2.resize(cv2.imread(str(self.files[image % len(self.files)])), (WIDTH, HEIGHT))


def boxes(rng, number: int) -> np.ndarray:
    sizes = np.exp(rng.uniform(np.log(8), np.log(350), (number, 2)))
    return np.concatenate([rng.random((number, 2)) * np.maximum([WIDTH, HEIGHT] - sizes, 1), sizes], axis=1)


def rows(images, labels, places, **more) -> list[dict]:
    """Convert columns to COCO's dicts."""
    columns = {"image_id": images + 1, "category_id": labels + 1, "bbox": places, **more}
    lists = {name: np.asarray(column).tolist() for name, column in columns.items()}
    return [dict(zip(lists, values)) for values in zip(*lists.values())]


def make(rng) -> tuple[dict, list[dict]]:
    """Return generated ground truth and detections."""
    images, places = rng.integers(0, IMAGES, OBJECTS), boxes(rng, OBJECTS)
    labels = np.minimum(rng.exponential(12, OBJECTS).astype(int), CLASSES - 1)
    crowd = (rng.random(OBJECTS) < 0.012).astype(int)
    truth = {
        "images": [{"id": image + 1} for image in range(IMAGES)],
        "categories": [{"id": label + 1, "name": f"class {label}"} for label in range(CLASSES)],
        "annotations": rows(
            images,
            labels,
            places,
            id=np.arange(OBJECTS) + 1,
            area=places[:, 2] * places[:, 3],
            iscrowd=crowd,
        ),
    }
    found = []
    for chance, spread, modesty in ((0.85, 0.05, 3), (0.5, 0.15, 5), (0.5, 0.35, 7)):
        seen = rng.random(OBJECTS) < chance
        moved = places.copy()
        moved[:, :2] += rng.normal(0, spread, (OBJECTS, 2)) * moved[:, 2:]
        moved[:, 2:] *= np.exp(rng.normal(0, spread, (OBJECTS, 2)))
        said = np.where(rng.random(OBJECTS) < 0.85, labels, rng.integers(0, CLASSES, OBJECTS))
        scores = rng.beta(4, modesty, OBJECTS)
        found += rows(images[seen], said[seen], moved[seen], score=scores[seen])
    strays = rng.integers(0, IMAGES, DETECTIONS), rng.integers(0, CLASSES, DETECTIONS)
    found += rows(*strays, boxes(rng, DETECTIONS), score=rng.beta(1, 12, DETECTIONS))
    return truth, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path)
    photographs = Photographs(parser.parse_args().photographs)
    truth, found = make(np.random.default_rng(0))
    start = time.perf_counter()
    figures = evaluate_detections(truth, found)
    middle = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(folder, "made up", truth, found, figures, photographs)
        end = time.perf_counter()
        sizes = [file.stat().st_size / 1e6 for file in (page, page.with_suffix(".json"))]
    print(f"{day_and_machine()}: {IMAGES:,} images, {OBJECTS:,} objects, {len(found):,} detections")
    print("| evaluation | report | report/evaluation | report.html | report.json |")
    print("|---|---|---|---|---|")
    evaluation, report = middle - start, end - middle
    print(
        f"| {evaluation:.1f} s | {report:.1f} s | {report / evaluation:.2f} | {sizes[0]:.1f} MB "
        f"| {sizes[1]:.1f} MB |"
    )


if __name__ == "__main__":
    main()
