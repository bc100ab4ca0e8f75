"""How long an image takes on this machine's CPU, for every configuration as it is exported.

    python benchmarks/model_forward.py
    python benchmarks/model_forward.py --only fcos_r50_fpn_1x_coco --repeats 20

The exported program runs in Paddle Inference with oneDNN, one image of the size that docs/model_zoo.md gives,
normalising, decoding and NMS in it, reading and resizing not. Weights are random: hardly a box is above the
threshold. PaddleDetection 2.6.0's stock R50 takes turns with ours, image by image, on the same pixels. Its
reader pads to multiples of 128, that is to 896×1408; it is given the 800×1344 of ours.
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
    """Export a configuration with random weights; the height and width of its images."""
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
    """Export PaddleDetection's model like `name` of ours; likewise."""
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
    """A function that runs one image."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import numpy as np
        import ppdet  # noqa: F401
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
    """Run an image whenever it is this side's turn and answer with its seconds."""
    with separate_results() as results, tempfile.TemporaryDirectory() as folder:
        run = prepared(side, name, Path(folder) / "exported")

        def seconds() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        serve(seconds, results)


def measure(name: str, sides: list[str], repeats: int) -> dict[str, float]:
    """Median seconds of each side over alternating images."""
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
