"""Measure the time from a JPEG file to boxes on a CPU, compared with PaddleDetection's deployed FCOS.

    git clone https://github.com/PaddlePaddle/PaddleDetection
    python benchmarks/end_to_end.py PaddleDetection photo.jpg

Both are exported FCOS R50 networks with 80 classes and random weights, short side 800, long side at most
1333. Hardly any box is above the threshold, so NMS has no work in either. PaddleDetection's network runs in
the Detector of its deploy/python/infer.py: once with the defaults (`--device=CPU`: one thread, no oneDNN),
once with `--enable_mkldnn=True` and one thread per core. `stock.py` describes how it is exported, and
tools/run_paddledetection_infer.py which two calls its script needs. Its reader pads to multiples of 128, ours
to 32, as the configurations say. The photograph is cropped to 5:3, so both resize it to 800×1333.

Each variant is a process, and they alternate image by image.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from alternating import alternate, separate_results, serve
from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONFIG = "fcos_r50_fpn_1x_coco"
SIZE = (800, 1333)
CLASSES = 80
WARM_UP = 2
# name → (runtime, precision) of ours
OURS = {
    "ppfcos, ONNX Runtime": ("onnxruntime", "fp32"),
    "ppfcos, OpenVINO": ("openvino", "fp32"),
    "ppfcos, Paddle Inference": ("paddle", "fp32"),
    "ppfcos, OpenVINO in bf16": ("openvino", "bf16"),
    "ppfcos, ONNX Runtime in INT8": ("onnxruntime", "int8"),
}
# name → arguments of its Detector
THEIRS = {
    "PaddleDetection as documented": {},
    "PaddleDetection with oneDNN": {"enable_mkldnn": True, "cpu_threads": os.cpu_count()},
}


def export_ours(folder: Path, photo: Path) -> None:
    """Export R50 with random weights by the command, also in INT8, calibrated on the photograph."""
    from ppfcos import environment

    environment.configure_process()
    with environment.quiet_imports():
        import paddle

        import ppfcos.paddledetection  # noqa: F401

    from ppfcos.config import load_config
    from ppfcos.engine.model import build_model

    weights = folder / "random.pdparams"
    config = ROOT / "configs" / f"{CONFIG}.yml"
    paddle.save(build_model(load_config(config, ["device=cpu"])).state_dict(), str(weights))
    program = [sys.executable, str(ROOT / "tools" / "export_model.py"), "-c", str(config)]
    program += ["-o", f"weights={weights}", "device=cpu", "--output_dir", str(folder)]
    program += ["--precision", "fp32,int8", "--calibration_images", str(photo.parent), "--disagreement", "1"]
    subprocess.run(program, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def export_theirs(folder: Path) -> None:
    """Export PaddleDetection's R50 with the configuration file that its script reads."""
    import yaml
    from stock import MEAN, STD, save_program, stock_config

    folder.mkdir()
    config = stock_config(depth=50, target_size=SIZE, num_classes=CLASSES, batch_size=1, from_scratch=False)
    save_program(config, folder / "model")
    description = {
        "mode": "paddle",
        "draw_threshold": 0.5,
        "metric": "COCO",
        "use_dynamic_shape": True,
        "arch": "FCOS",
        "min_subgraph_size": 3,
        "Preprocess": [
            {"type": "Resize", "interp": 1, "keep_ratio": True, "target_size": list(SIZE)},
            {"type": "NormalizeImage", "is_scale": True, "mean": MEAN, "std": STD},
            {"type": "Permute"},
            {"type": "PadStride", "stride": 128},
        ],
        "label_list": [str(number) for number in range(CLASSES)],
    }
    (folder / "infer_cfg.yml").write_text(yaml.safe_dump(description, sort_keys=False))


def our_detector(name: str, folder: Path) -> Callable[[str], object]:
    """Return a function from a file's path to its boxes."""
    from ppfcos.deploy import Predictor

    runtime, precision = OURS[name]
    predictor = Predictor(folder / CONFIG, runtime, precision=precision)
    return lambda path: predictor.predict([path])


def their_detector(name: str, folder: Path, scripts: Path) -> Callable[[str], object]:
    """Return a function from a file's path to its boxes that calls PaddleDetection's script."""
    sys.path.insert(0, str(ROOT / "tools"))
    import run_paddledetection_infer

    run_paddledetection_infer.accept_new_programs()
    run_paddledetection_infer.do_without_imgaug()
    sys.path.insert(0, str(scripts))
    import infer

    detector = infer.Detector(str(folder / "theirs"), device="CPU", **THEIRS[name])
    return lambda path: detector.predict_image([path], visual=False)


def work(name: str, folder: Path, scripts: Path, photo: str) -> None:
    """Detect objects in the photograph once per request, and write the seconds."""
    with separate_results() as results:
        detect = our_detector(name, folder) if name in OURS else their_detector(name, folder, scripts)

        def seconds() -> float:
            start = time.perf_counter()
            detect(photo)
            return time.perf_counter() - start

        serve(seconds, results)


def cut(photo: Path, destination: Path) -> None:
    """Crop the middle of a photograph to 5:3."""
    import cv2

    image = cv2.imread(str(photo))
    if image is None:
        raise SystemExit(f"{photo}: OpenCV cannot read this image")
    height, width = image.shape[:2]
    high, wide = min(height, width * 3 // 5), min(width, height * 5 // 3)
    top, left = (height - high) // 2, (width - wide) // 2
    cv2.imwrite(str(destination), image[top : top + high, left : left + wide])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paddledetection", type=Path, help="a clone of PaddleDetection")
    parser.add_argument("photo", type=Path, help="a JPEG file")
    parser.add_argument("--repeats", type=int, default=5, help="counted images of each (default 5)")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    scripts = (args.paddledetection / "deploy" / "python").resolve()
    if args.worker:
        work(args.worker[0], Path(args.worker[1]), scripts, str(args.photo))
        return
    if not (scripts / "infer.py").is_file():
        raise SystemExit(f"{scripts}: there is no infer.py; give the folder of a clone of PaddleDetection")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photo = folder / "photos" / "photo.jpg"
        photo.parent.mkdir()
        cut(args.photo, photo)
        export_ours(folder, photo)
        export_theirs(folder / "theirs")
        names = [*OURS, *THEIRS]
        arguments = [str(args.paddledetection), str(photo)]
        commands = {name: [__file__, *arguments, "--worker", name, str(folder)] for name in names}
        results = alternate(commands, WARM_UP + args.repeats)
    report({name: statistics.median(found[WARM_UP:]) for name, found in results.items()}, args.repeats)


def report(seconds: dict[str, float], repeats: int) -> None:
    """Print the table."""
    documented, tuned = (seconds[name] for name in THEIRS)
    print(f"{day_and_machine()}, FCOS R50 at 800×1333, JPEG file to boxes, median of {repeats} images")
    print("| | seconds | faster than as documented | faster than with oneDNN |")
    print("|---|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {found:.3f} | {documented / found:.2f} | {tuned / found:.2f} |")


if __name__ == "__main__":
    main()
