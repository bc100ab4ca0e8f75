"""Random ground truth, and detections with every type of error."""

from __future__ import annotations

import numpy as np


def random_boxes(rng, number: int) -> np.ndarray:
    """[number, 4] x, y, width, height, of all of COCO's size classes, in an image of 640×480."""
    sizes = np.exp(rng.uniform(np.log(6), np.log(300), (number, 2)))
    corners = rng.uniform(0, 1, (number, 2)) * np.maximum([640, 480] - sizes, 1)
    return np.concatenate([corners, sizes], axis=1).round(2)


def random_truth(rng, images: int = 20, classes: int = 4, most: int = 12, crowds: float = 0.15) -> dict:
    """COCO annotations with ids that differ from their positions."""
    annotations = []
    for image in range(images):
        for box in random_boxes(rng, int(rng.integers(0, most))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * (images - image),
                    "category_id": 3 * int(rng.integers(1, classes + 1)),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1)),  # of the segmentation, as in COCO
                    "iscrowd": int(rng.random() < crowds),
                }
            )
    return {
        "images": [{"id": 10 * (images - i), "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": 3 * number, "name": f"class {number}"} for number in range(1, classes + 1)],
        "annotations": annotations,
    }


def random_detections(rng, truth: dict, copies: int = 2, extra: int = 6) -> list[dict]:
    """Correct, badly localized, misclassified, duplicate and background detections; all scores differ."""
    ids = [category["id"] for category in truth["categories"]]
    found = []
    for annotation in truth["annotations"]:
        for _ in range(int(rng.integers(0, copies + 1))):
            box = np.asarray(annotation["bbox"], float)
            spread = rng.choice([0.05, 0.3])
            box[:2] += rng.normal(0, spread, 2) * box[2:]
            box[2:] *= np.exp(rng.normal(0, spread, 2))
            label = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
            found.append((annotation["image_id"], label, box, 0.2))
    for image in truth["images"]:
        found += [(image["id"], int(rng.choice(ids)), box, 0.0) for box in random_boxes(rng, extra)]
    scores = rng.random(len(found)) * 0.8
    return [
        {"image_id": image, "category_id": label, "bbox": box.tolist(), "score": float(score + more)}
        for (image, label, box, more), score in zip(found, scores)
    ]
