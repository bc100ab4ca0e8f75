"""Compare the AP of an INT8 network after quantization-aware training (QAT) with that after calibration.

    python benchmarks/qat.py [--keep FOLDER] [--epochs 12] [--more 4]

A small FCOS with a MobileNetV2 is trained from scratch on the demo's generated images: first in float, then
for a few more epochs, once in float and once with QAT, at the same learning rate. Each model is exported with
all layers in INT8 and run by ONNX Runtime.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIDE = 128  # of an image as the demo's configuration reads it

# From C3 and C4 on, strides 8 to 64, as the demo's ResNet.
FLOAT = """
_BASE_: [{configs}/fcos_demo_shapes.yml]
save_dir: {output}
epoch: {epochs}
snapshot_epoch: {epochs}
PPFCOS: {{backbone: PPFCOSMobileNetV2}}
PPFCOSMobileNetV2: {{norm_type: bn, freeze_norm: false, freeze_at: -1, return_idx: [1, 2]}}
TrainDataset: {{dataset_dir: {data}}}
EvalDataset: {{dataset_dir: {data}}}
TestDataset: {{dataset_dir: {data}}}
"""
LONGER = """
_BASE_: [float.yml]
epoch: {more}
snapshot_epoch: {more}
pretrain_weights: {output}/float/model_final.pdparams
LearningRate:
  base_lr: 0.0002                 # a fifth of the demo's
  schedulers:
  - !CosineDecay {{max_epochs: {more}}}
  - !LinearWarmup {{start_factor: 0.1, steps: 50}}
"""
EIGHT_BITS = """
_BASE_: [float_longer.yml]
quantization_aware_training: {{freeze_ranges_after: 150}}
"""
CONFIGURATIONS = {"float": FLOAT, "float_longer": LONGER, "eight_bits": EIGHT_BITS}


def tool(name: str, *words: object) -> str:
    """Run a script of tools/ and return its output."""
    program = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr or done.stdout)
    return done.stdout


def bundle_of(config: Path, *words: object) -> Path:
    """Export a trained configuration in float and INT8, with all layers in INT8."""
    weights = config.parent / config.stem / "model_final.pdparams"
    folder = config.parent / "bundles"
    options = ["--precision", "fp32,int8", "--fixed_size", f"{SIDE},{SIDE}", "--output_dir", folder, *words]
    tool("export_model", "-c", config, "-o", f"weights={weights}", *options)
    return folder / config.stem


def average_precision(config: Path, bundle: Path, precision: str) -> float:
    """Return the box AP of a bundle in percent, by ONNX Runtime."""
    runtime = ["--runtime", "onnxruntime", "--precision", precision]
    printed = tool("eval", "-c", config, "--bundle", bundle, *runtime)
    return 100 * float(re.findall(r"area=   all \| maxDets=100 \] = (-?[\d.]+)", printed)[0])


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--keep", type=Path, help="a folder for data, checkpoints, bundles (default: thrown away)"
    )
    parser.add_argument("--epochs", type=int, default=12, help="in float")
    parser.add_argument("--more", type=int, default=4, help="epochs after these")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (args.keep or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        measure(scratch, args.epochs, args.more)


def measure(scratch: Path, epochs: int, more: int) -> None:
    """Print the rows of the table as soon as they are known."""
    data = scratch / "shapes"
    if not data.exists():
        subprocess.run(
            [sys.executable, str(ROOT / "dataset" / "shapes" / "generate_shapes.py"), "--output", str(data)],
            check=True,
            capture_output=True,
        )
    print(f"{day_and_machine()}; drawn shapes, MobileNetV2 at {SIDE}, {epochs} epochs and {more} more\n")
    print("| trained | AP in float | AP in INT8 | |\n|---|---|---|---|")
    calibration = ["--calibration_images", data / "train2017", "--disagreement", 1]
    values = {"configs": ROOT / "configs", "output": scratch, "data": data, "epochs": epochs, "more": more}
    for name, text in CONFIGURATIONS.items():
        config = scratch / f"{name}.yml"
        config.write_text(text.format(**values), encoding="utf-8")
        tool("train", "-c", config)
        words = [] if name == "eight_bits" else calibration
        bundle = bundle_of(config, *words)
        in_float, in_int8 = (average_precision(config, bundle, precision) for precision in ("fp32", "int8"))
        print(f"| {name} | {in_float:.1f} | {in_int8:.1f} | {in_int8 - in_float:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
