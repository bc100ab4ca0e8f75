"""Compare the box AP of ours and of PaddleDetection 2.6.0's FCOS on BCCD after the same training.

    python benchmarks/bccd_accuracy.py dataset/bccd

ResNet-18 is trained from scratch for 12 epochs on 292 photographs (trainval), 4 per step, long side 320, with
the same learning rate, and evaluated on 72 photographs (test) by the same COCO metric. Both run in the
environment that ppfcos sets, for about half an hour on two cores. The folder holds BCCD in Pascal VOC layout
(github.com/Shenggan/BCCD_Dataset).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import stock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CLASSES = ["RBC", "WBC", "Platelets"]
SCHEDULE = {
    "epoch": 12,
    "base_lr": 0.005,
    "milestones": [8, 11],
    "warmup_steps": 200,
    "warmup_start": 0.1,
}
# As ppfcos.environment.keep_freed_memory does for ours; it changes the time, not the result.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


def coco_annotations(folder: Path, split: str) -> dict:
    """Return a split of BCCD as a COCO dictionary; PaddleDetection's VOC evaluation is another metric."""
    found = {"images": [], "annotations": [], "categories": []}
    found["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    stems = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    for number, stem in enumerate(stems, start=1):
        tree = ElementTree.parse(folder / "Annotations" / f"{stem}.xml")
        width, height = (int(tree.find(f"size/{side}").text) for side in ("width", "height"))
        found["images"].append({"id": number, "file_name": f"{stem}.jpg", "width": width, "height": height})
        for item in tree.findall("object"):
            sides = [float(item.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0 = max(sides[0], 0), max(sides[1], 0)
            x1, y1 = min(sides[2], width), min(sides[3], height)
            if x1 > x0 and y1 > y0:
                found["annotations"].append(
                    {
                        "id": len(found["annotations"]) + 1,
                        "image_id": number,
                        "category_id": CLASSES.index(item.find("name").text) + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
    return found


def stock_ap(folder: Path, scratch: Path, seed: int) -> list:
    """Train and evaluate PaddleDetection's FCOS in another process, and return the twelve COCO metrics."""
    for split in ("trainval", "test"):
        (scratch / f"{split}.json").write_text(json.dumps(coco_annotations(folder, split)))
    images = {"dataset_dir": str(folder), "image_dir": "JPEGImages"}
    config = stock.stock_config(
        depth=18,
        target_size=(320, 320),
        num_classes=len(CLASSES),
        batch_size=4,
        from_scratch=True,
        train={
            **images,
            "anno_path": str(scratch / "trainval.json"),
            "data_fields": ["image", "gt_bbox", "gt_class", "is_crowd"],
        },
        evaluation={**images, "anno_path": str(scratch / "test.json")},
        schedule=SCHEDULE,
        save_dir=str(scratch / "stock"),
    )
    stock.write_config(config, scratch / "stock.yml")
    program = [sys.executable, stock.__file__, "stock.yml", "stock.json", "--seed", str(seed)]
    with open(scratch / "stock.log", "w") as log:
        subprocess.run(
            program, cwd=scratch, env={**os.environ, **KEEP_FREED_MEMORY}, stdout=log, stderr=log, check=True
        )
    return json.loads((scratch / "stock.json").read_text())


def our_ap(folder: Path, scratch: Path, seed: int) -> list:
    """Train and evaluate ours by its command, and return the twelve COCO metrics."""
    program = [
        sys.executable,
        str(ROOT / "tools" / "train.py"),
        "-c",
        str(ROOT / "configs" / "fcos_r18_bccd.yml"),
    ]
    program += ["--eval", "-o", f"save_dir={scratch}", "snapshot_epoch=12", "device=cpu", f"seed={seed}"]
    program += [f"{section}Dataset.dataset_dir={folder}" for section in ("Train", "Eval", "Test")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    (scratch / "ours.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(value) for value in re.findall(r"\] = (-?[\d.]+)", done.stdout)[-12:]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="BCCD in Pascal VOC layout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("ours", "stock"), help="train one of the two, not both")
    parser.add_argument("--keep", type=Path, help="a folder for logs and checkpoints (default: thrown away)")
    args = parser.parse_args()
    from ppfcos import environment

    environment.configure_process()  # for the processes started here, too
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.keep or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        print(f"{datetime.date.today()}, BCCD, ResNet-18 from scratch at 320, 12 epochs, seed {args.seed}")
        print("| | AP | AP50 | AP75 | small | medium | large |")
        print("|---|---|---|---|---|---|---|")
        programs = {"ours": ("ppfcos", our_ap), "stock": ("PaddleDetection 2.6.0 FCOS", stock_ap)}
        for name, train in [programs[args.only]] if args.only else programs.values():
            figures = train(args.folder.resolve(), scratch.resolve(), args.seed)
            print(
                f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in figures[:6]) + " |", flush=True
            )


if __name__ == "__main__":
    main()
