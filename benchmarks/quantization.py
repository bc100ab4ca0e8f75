"""Measure the cost in AP and the gain in time of INT8, compared with the same network in float.

    python benchmarks/quantization.py BUNDLE/model.onnx -c configs/fcos_r18_bccd.yml \\
        -o TrainDataset.dataset_dir=dataset/bccd EvalDataset.dataset_dir=dataset/bccd

The file is an end-to-end network in float32. It is calibrated on images of TrainDataset; AP is that of
EvalDataset in ONNX Runtime. Times are medians of one image with decoding and NMS, float and INT8 alternating.
OpenVINO computes in float32 what it does not compute in INT8. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from machine import day_and_machine

from ppfcos import environment

environment.configure_process()
with environment.quiet_imports():
    import onnxruntime
    import openvino
    import paddle  # noqa: F401  # before modules that import it with warnings

    from ppfcos.config import load_config
    from ppfcos.data.datasets import build_dataset
    from ppfcos.deploy.detections import split_batch
    from ppfcos.deploy.images import read_image
    from ppfcos.deploy.preprocess import Preprocess
    from ppfcos.export.bundle_files import preprocess_steps
    from ppfcos.export.ptq import QuantizationReport, QuantizationSettings, evenly_chosen, quantize
    from ppfcos.metrics.coco import evaluate_detections

Network = Callable[[Mapping[str, np.ndarray]], tuple]
ERRORS_ONLY = 3
WARM_UPS = 2


def onnx_runtime(file: Path, threads: int) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["bbox", "bbox_num"], dict(batch))


def open_vino(file: Path, threads: int) -> Network:
    properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", properties)

    def run(batch: Mapping[str, np.ndarray]) -> tuple:
        answers = compiled(dict(batch))
        return answers["bbox"], answers["bbox_num"]

    return run


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": open_vino}


def average_precision(network: Network, data, preprocess: Preprocess) -> float:
    """Return the AP in percent."""
    found = []
    for record in data.records:
        for each in split_batch(*network(preprocess([read_image(record["im_file"])])), ()):
            sizes = np.concatenate([each.boxes[:, :2], each.boxes[:, 2:] - each.boxes[:, :2]], axis=1)
            found += [
                {
                    "image_id": int(np.ravel(record["im_id"])[0]),
                    "category_id": data.categories[label]["id"],
                    "bbox": box,
                    "score": score,
                }
                for label, box, score in zip(each.labels.tolist(), sizes.tolist(), each.scores.tolist())
            ]
    return 100 * evaluate_detections(data.coco_ground_truth(), found).ap


def median_times(networks: list[Network], batch: Mapping[str, np.ndarray], rounds: int) -> list[float]:
    """Return the milliseconds of each network over alternating runs."""
    times: list[list[float]] = [[] for _ in networks]
    for _ in range(WARM_UPS + rounds):
        for network, mine in zip(networks, times):
            start = time.perf_counter()
            network(batch)
            mine.append(1000 * (time.perf_counter() - start))
    return [statistics.median(mine[WARM_UPS:]) for mine in times]


def print_result(files: tuple[Path, Path], report: QuantizationReport, data, preprocess, args) -> None:
    aps = [average_precision(onnx_runtime(file, args.threads), data, preprocess) for file in files]
    in_float = len(report.float_layers)
    print(f"\n{day_and_machine()}; {args.threads} threads; {len(data.records)} images; {args.method}")
    print(report.table())
    print("\n| | float32 | INT8 | |\n|---|---|---|---|")
    print(f"| AP | {aps[0]:.1f} | {aps[1]:.1f} | {aps[1] - aps[0]:+.2f} |")
    print(f"| layers in INT8 | 0 | {len(report.layers) - in_float} of {len(report.layers)} | |")
    print(f"| disagreement | | {report.after:.3f} | throughout: {report.before:.3f} |")
    ratio = report.float_bytes / report.bytes
    print(f"| MB | {report.float_bytes / 1e6:.1f} | {report.bytes / 1e6:.1f} | {ratio:.2f} times smaller |")
    batch = preprocess([read_image(data.records[0]["im_file"])])
    for name, load in RUNTIMES.items():
        times = median_times([load(file, args.threads) for file in files], batch, args.rounds)
        speed = times[0] / times[1]
        print(f"| ms, {name} | {times[0]:.1f} | {times[1]:.1f} | {speed:.2f} times faster |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("-o", "--opt", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=32, help="to calibrate with")
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--disagreement", type=float, default=QuantizationSettings.disagreement)
    parser.add_argument("--threads", type=int, default=environment.available_cores())
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    cfg = load_config(args.config, args.opt)
    preprocess = Preprocess(preprocess_steps(cfg["EvalReader"]))
    files = [record["im_file"] for record in build_dataset(cfg, "TrainDataset").records]
    batches = (preprocess([read_image(path)]) for path in evenly_chosen(files, args.images))
    settings = QuantizationSettings(method=args.method, disagreement=args.disagreement)
    with tempfile.TemporaryDirectory() as folder:
        files = args.model, Path(folder) / "model_int8.onnx"
        report = quantize(*files, batches, settings)
        print_result(files, report, build_dataset(cfg, "EvalDataset"), preprocess, args)


if __name__ == "__main__":
    main()
