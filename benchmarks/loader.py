"""Compare our loader with PaddleDetection 2.6.0's FCOS reader: images per second, bytes, padding, memory.

    python benchmarks/loader.py FOLDER     # of photographs, such as COCO's val2017 or a part of it

Each variant is a process. All load the same photographs with the same seven random boxes each and resize them
to 800×1333. They alternate every few seconds, so that other load on the machine affects all of them. The
stock reader also computes the targets of FCOS, which our model computes on the device. The million records
are generated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
SIZE = [800, 1333]
BATCH = 2  # images
BOXES = 7
SECONDS = 3  # of a turn
WARM_UP = 4  # batches at the start of a turn: some were loaded during other turns
VARIANTS = {
    "stock": ("stock", 0), "ours": ("ours", 0),
    "stock, 1 worker": ("stock", 1), "ours, 1 worker": ("ours", 1),
    "stock, 2 workers": ("stock", 2), "ours, 2 workers": ("ours", 2),
}  # fmt: skip


def prepare():
    """Import Paddle as ppfcos does, for both sides."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import paddle

        import ppfcos.paddledetection  # noqa: F401
    import cv2

    cv2.setNumThreads(0)
    return paddle


def write_annotations(folder: Path, path: Path) -> None:
    """A COCO file of all photographs in a folder, each with boxes drawn at random."""
    import numpy as np

    from ppfcos.data.images import image_size, list_images

    rng = np.random.default_rng(0)
    images, notes = [], []
    for number, name in enumerate(list_images(folder), start=1):
        height, width = image_size(name)
        images.append({"id": number, "file_name": os.path.abspath(name), "height": height, "width": width})
        for corner, size in rng.uniform(0.05, 0.5, [BOXES, 2, 2]):
            (x, y), (w, h) = corner * [width, height], size * [width, height]
            notes.append({"id": len(notes) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                          "bbox": [x, y, w, h], "area": w * h})  # fmt: skip
    content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(content))


def our_batches(annotations: Path, workers: int) -> Iterator[dict]:
    """The batches of our TrainLoader, without end."""
    from ppfcos.config import load_config
    from ppfcos.data.datasets import build_dataset
    from ppfcos.data.loader import TrainLoader

    cfg = load_config(ROOT / "configs" / "fcos_r50_fpn_1x_coco.yml", ["num_classes=1", "epoch=100000"])
    cfg["TrainDataset"] = {
        "name": "COCODataSet", "dataset_dir": "/", "image_dir": "", "anno_path": str(annotations),
    }  # fmt: skip
    reader = {**cfg["TrainReader"], "total_batch_size": BATCH}
    cfg = {**cfg, "TrainReader": reader, "worker_num": workers}
    loader = TrainLoader(cfg, build_dataset(cfg, "TrainDataset"))
    for epoch in range(100000):
        loader.set_position(epoch)
        for parts in loader:
            yield from parts


def stock_batches(annotations: Path, workers: int) -> Iterator[dict]:
    """The batches of PaddleDetection's TrainReader, without end."""
    from ppdet.core.workspace import create, merge_config
    from stock import stock_config

    config = stock_config(
        depth=50, target_size=tuple(SIZE), num_classes=1, batch_size=BATCH, from_scratch=False,
        workers=workers,
        train={"dataset_dir": "/", "image_dir": "", "anno_path": str(annotations),
               "data_fields": ["image", "gt_bbox", "gt_class", "is_crowd"]},
    )  # fmt: skip
    merge_config(config)
    loader = create("TrainReader")(create("TrainDataset")(), workers)
    while True:
        yield from iter(loader)


def work(variant: str, annotations: Path) -> None:
    """Print how long the first batch took; then load for one turn for each line on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not mix with the answers
    prepare()
    side, workers = VARIANTS[variant]
    start = time.perf_counter()
    if side == "stock":
        batches = stock_batches(annotations, workers)
    else:
        batches = our_batches(annotations, workers)
    next(batches)
    first = time.perf_counter() - start
    print(json.dumps({"first": first}), file=answers, flush=True)
    for _ in sys.stdin:
        for _ in range(WARM_UP):
            next(batches)
        start, sizes = time.perf_counter(), []
        while time.perf_counter() - start < SECONDS:
            tensors = [value for value in next(batches).values() if hasattr(value, "element_size")]
            sizes.append(sum(tensor.size * tensor.element_size() for tensor in tensors))
        rate = BATCH * len(sizes) / (time.perf_counter() - start)
        print(json.dumps({"rate": rate, "bytes": statistics.mean(sizes)}), file=answers, flush=True)


def measure(annotations: Path, rounds: int) -> dict[str, dict]:
    """Seconds to the first batch, median images a second and bytes a batch of every variant."""
    processes, found = {}, {}
    for variant in VARIANTS:
        processes[variant] = subprocess.Popen(
            [sys.executable, __file__, str(annotations), "--worker", variant],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        found[variant] = json.loads(processes[variant].stdout.readline())
    answers = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, process in processes.items():
            process.stdin.write("turn\n")
            process.stdin.flush()
            answers[variant].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        os.killpg(process.pid, signal.SIGKILL)  # and its workers
        process.wait()
    for variant, given in answers.items():
        for key in ("rate", "bytes"):
            found[variant][key] = statistics.median(answer[key] for answer in given)
    return found


def padding(annotations: Path, grouped: bool, batch: int = 16, images: int = 8000) -> float:
    """The ratio of padding in a batch's pixels, for images of the photographs' sizes."""
    import numpy as np

    from ppfcos.data.sampler import GlobalBatchSampler
    from ppfcos.data.transforms.uint8 import UInt8Resize

    listed = json.loads(annotations.read_text())["images"]
    resize = UInt8Resize(SIZE, True)
    sizes = np.array([resize.scaling(image["height"], image["width"]).pixels for image in listed])
    sizes = sizes[np.random.default_rng(0).integers(0, len(sizes), images)]
    portrait = sizes[:, 0] > sizes[:, 1]
    order = GlobalBatchSampler(images, batch, shapes=(lambda _epoch: portrait) if grouped else None)
    padded = -(-sizes[order.global_batches()].max(axis=1) // 32) * 32
    pixels = sizes[order.global_batches()].prod(axis=2).sum()
    return float(1 - pixels / (padded.prod(axis=1).sum() * batch))


def generated_records(count: int):
    """A RecordStore of that many images with boxes, made without a dict for each."""
    import numpy as np

    from ppfcos.data.records import RecordStore

    ones, rows = np.ones(count, dtype=np.int64), np.ones(count * BOXES, dtype=np.uint8)
    names = "".join(f"{number:012d}.jpg" for number in range(count)).encode()
    return RecordStore(
        {
            "folder": np.frombuffer(b"dataset/coco/train2017/", np.uint8),
            "names": np.frombuffer(names, np.uint8), "name_ends": np.cumsum(ones * 16),
            "im_id": np.arange(count), "has": np.full(count, 0b011111, np.uint8),
            "h": np.full(count, 480, np.float32), "w": np.full(count, 640, np.float32),
            "box_ends": np.cumsum(ones * BOXES),
            "gt_bbox": np.ones([count * BOXES, 4], np.float32), "gt_class": rows,
            "crowd_ends": np.zeros(count, np.int64),
            "gt_crowd": np.zeros((0, 4), np.float32),
            "is_crowd": rows.copy(), "difficult": rows.copy(),
        }
    )  # fmt: skip


def private_bytes() -> int:
    """The memory of this process that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def growth_of_a_worker(records, reads: int = 100_000) -> float:
    """MB of private memory that a forked process gains by reading so many records."""
    import numpy as np

    def read(answer) -> None:
        before = private_bytes()
        for index in np.random.default_rng(0).integers(0, len(records), reads):
            records[int(index)]["gt_bbox"].sum()
        answer.send((private_bytes() - before) / 1e6)

    receiving, sending = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=read, args=(sending,))
    worker.start()
    growth = receiving.recv()
    worker.join()
    return growth


def no_need():
    """Fail where the annotation cache is not used."""
    raise AssertionError("the cache was not opened")


def print_records(folder: Path) -> None:
    """Print memory and opening time of generated data sets, and of a list of dicts as in PaddleDetection."""
    from ppfcos.data.annotation_cache import AnnotationCache
    from ppfcos.data.statistics import LoadStatistics

    print("\n| records | held once, MB | each worker, MB | opened from the cache in |")
    print("|---|---|---|---|")
    for count in (10_000, 100_000, 1_000_000):
        records = generated_records(count)
        size = sum(column.nbytes for column in records.columns.values()) / 1e6
        cache = AnnotationCache(folder, folder / "annotations.json", folder, {"count": count})
        cache.write(records, [], LoadStatistics())
        start = time.perf_counter()
        records, _, _ = cache.open_or_make(no_need)
        seconds = time.perf_counter() - start
        print(f"| {count:,} | {size:.0f} | {growth_of_a_worker(records):.1f} | {seconds:.2f} s |", flush=True)
    dicts = list(generated_records(100_000))
    print(f"| 100,000 as a list of dicts | | {growth_of_a_worker(dicts):.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of photographs")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (default 3)")
    parser.add_argument("--worker", choices=sorted(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.folder)
        return
    prepare()
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    print(f"{datetime.date.today()}, {os.cpu_count()} cores of {(names or [platform.processor()])[0]}")
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "annotations.json"
        write_annotations(args.folder, annotations)
        found = measure(annotations, args.rounds)
        print(f"\n| {BATCH} images a batch | images/s | to stock | MB a batch | to stock | first batch |")
        print("|---|---|---|---|---|---|")
        for variant, figures in found.items():
            stock = found[variant.replace("ours", "stock")]
            print(
                f"| {variant} | {figures['rate']:.1f} | {figures['rate'] / stock['rate']:.1f} "
                f"| {figures['bytes'] / 1e6:.1f} | {figures['bytes'] / stock['bytes']:.2f} "
                f"| {figures['first']:.2f} s |"
            )
        ratios = [padding(annotations, grouped) for grouped in (False, True)]
        print("\npadded pixels in batches of 16: {:.1%} in a random order, {:.1%} grouped".format(*ratios))
        print_records(Path(folder))


if __name__ == "__main__":
    main()
