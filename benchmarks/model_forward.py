"""Measure the time per image of each exported configuration on a CPU.

    python benchmarks/model_forward.py
    python benchmarks/model_forward.py --only fcos_r50_fpn_1x_coco --repeats 20

The exported program runs in Paddle Inference with oneDNN on one image of the size that docs/model_zoo.md
gives. Normalization, decoding and NMS are included; reading and resizing are not. Weights are random, so
hardly any box is above the threshold. PaddleDetection 2.6.0's R50 alternates with ours, image by image, on
the same pixels. Its reader pads to multiples of 128, that is to 896×1408; here it gets the 800×1344 of ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from alternating import alternate, separate_results, serve
from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BESIDE_STOCK = "fcos_r50_fpn_1x_coco"
CLASSES = 80
WARM_UP = 2
MODEL = "model"


def export_ours(name: str, folder: Path) -> tuple[int, int]:
    """Export a configuration with random weights, and return the height and width of its images."""
    from model_zoo import test_size

    from ppfcos.config import load_config
    from ppfcos.engine.model import build_model
    from ppfcos.export.program import EndToEndNetwork, network_input, save_program
    from ppfcos.modeling.fuse import fuse_batch_norms

    cfg = load_config(ROOT / "configs" / f"{name}.yml", ["device=cpu"])
    size = test_size(cfg)
    folder.mkdir()
    save_program(EndToEndNetwork(fuse_batch_norms(build_model(cfg)), network_input()), folder / MODEL)
    return size


def export_stock(name: str, folder: Path) -> tuple[int, int]:
    """Export PaddleDetection's model for our configuration, and return the height and width of its images."""
    from model_zoo import test_size
    from stock import save_program, stock_config

    from ppfcos.config import load_config

    cfg = load_config(ROOT / "configs" / f"{name}.yml")
    height, width = test_size(cfg)
    depth = cfg["ResNet"]["depth"]
    config = stock_config(
        depth=depth, target_size=(height, width), num_classes=CLASSES, batch_size=1, from_scratch=False
    )
    folder.mkdir()
    save_program(config, folder / MODEL)
    return height, width


def prepared(side: str, name: str, folder: Path) -> Callable[[], object]:
    """Return a function that runs one image."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import numpy as np

        import ppfcos.paddledetection  # noqa: F401
    from ppfcos.deploy.runtimes.paddle_inference import PaddleInferenceRuntime

    height, width = {"ours": export_ours, "stock": export_stock}[side](name, folder)
    files = folder / f"{MODEL}.json", folder / f"{MODEL}.pdiparams"
    runtime = PaddleInferenceRuntime(*files, ("bbox", "bbox_num"), environment.available_cores(), "cpu")
    inputs = {
        "image": np.random.default_rng(0).integers(0, 256, [1, 3, height, width]).astype("float32"),
        "im_shape": np.array([[height, width]], "float32"),
        "scale_factor": np.ones([1, 2], "float32"),
    }
    return lambda: runtime.run(inputs)


def work(side: str, name: str) -> None:
    """Run an image once per request, and write the seconds."""
    with separate_results() as results, tempfile.TemporaryDirectory() as folder:
        run = prepared(side, name, Path(folder) / "exported")

        def seconds() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        serve(seconds, results)


def measure(name: str, sides: list[str], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side over alternating images."""
    commands = {side: [__file__, "--worker", side, "--only", name] for side in sides}
    results = alternate(commands, WARM_UP + repeats)
    return {side: statistics.median(found[WARM_UP:]) for side, found in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="one configuration, without .yml")
    parser.add_argument("--repeats", type=int, default=10, help="counted images of each side (default 10)")
    parser.add_argument("--worker", choices=["ours", "stock"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.only)
        return
    # What was trained in eight bits is, in float, the network that it was trained on from.
    paths = (path for path in (ROOT / "configs").glob("fcos_*.yml") if not path.stem.endswith("_qat"))
    names = sorted(path.stem for path in paths)
    print(f"{day_and_machine()}, median of {args.repeats} images")
    print("| configuration | seconds | PaddleDetection's | its / ours |")
    print("|---|---|---|---|")
    for name in [args.only] if args.only else names:
        found = measure(name, ["ours", "stock"] if name == BESIDE_STOCK else ["ours"], args.repeats)
        stock = found.get("stock")
        beside = f"{stock:.3f} | {stock / found['ours']:.2f}" if stock else "- | -"
        print(f"| `{name}` | {found['ours']:.3f} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
