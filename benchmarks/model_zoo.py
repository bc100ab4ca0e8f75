"""Print a table of all configurations: parameters, MACs per image, and published AP.

    python benchmarks/model_zoo.py                     # prints it
    python benchmarks/model_zoo.py --write             # writes it to docs/model_zoo.md
    python benchmarks/model_zoo.py --only fcos_r50_fpn_1x_coco

The image is the largest that EvalReader makes, padded. benchmarks/macs.py counts the MACs, and
benchmarks/published.yml holds the published figures.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppfcos import environment

environment.configure_process()
with environment.quiet_imports():
    import paddle  # noqa: F401

    import ppfcos.paddledetection  # noqa: F401

from macs import count_macs

from ppfcos.config import load_config
from ppfcos.data.transforms.pipeline import pad_stride
from ppfcos.engine.model import build_model, count_weights
from ppfcos.fileio import replacing

PAGE = ROOT / "docs" / "model_zoo.md"
PUBLISHED = Path(__file__).with_name("published.yml")
START, END = "<!-- python benchmarks/model_zoo.py --write -->\n", "<!-- end of the table -->\n"
HEAD = (
    "| configuration | backbone | epochs | image | weights | GFLOPs | AP of its source |\n"
    "|---|---|---|---|---|---|---|\n"
)


def configurations() -> list[Path]:
    """Return all configurations that can be trained, by name."""
    return sorted((ROOT / "configs").glob("fcos_*.yml"))


def test_size(cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the largest wide image, padded as in EvalReader."""
    reader = cfg["EvalReader"]
    resize = next(entry["Resize"] for entry in reader["sample_transforms"] if "Resize" in entry)
    stride = pad_stride(reader, "EvalReader")
    shorter, longer = (-(-side // stride) * stride for side in sorted(resize["target_size"]))
    return shorter, longer


def backbone(cfg: Mapping[str, Any]) -> str:
    """Return a name such as ResNet-50, or ResNeXt-101-32x8d with DCN."""
    name = cfg[cfg["architecture"]]["backbone"]
    section = cfg.get(name) or {}
    groups, width = section.get("groups", 1), section.get("base_width", 4)
    words = [name if groups == 1 else "ResNeXt"]
    words += [str(section[key]) for key in ("depth", "model_type", "version", "width") if key in section]
    words += [f"{groups}x{width}d"] if groups > 1 else []
    words += [section["scale"].upper()] if isinstance(section.get("scale"), str) else []
    deformable = [stage for stage in section.get("dcn_v2_stages", [-1]) if stage >= 0]
    return "-".join(words).replace("PPFCOS", "") + (" with DCN" if deformable else "")


def schedule(cfg: Mapping[str, Any]) -> str:
    """Return the number of epochs and whether the training is multi-scale."""
    names = [name for entry in cfg["TrainReader"]["sample_transforms"] for name in entry]
    return f"{cfg['epoch']}, multi-scale" if "RandomResize" in names else str(cfg["epoch"])


def published_aps(name: str, published: Mapping[str, Any]) -> str:
    """Return text such as `39.6 PaddleDetection, 38.7 FCOS`; a dash if nobody has published the model."""
    found = []
    for path in published["configs"].get(name, []):
        project, model = path.split("/", 1)
        entry = published["projects"][project]
        found.append(f"{entry['models'][model]['ap']} {entry['name']}")
    return ", ".join(found) or "-"


def row(path: Path, published: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    cfg = load_config(path, ["device=cpu", "quantization_aware_training=null"])  # it changes no figure
    model = build_model(cfg)
    model.eval()
    height, width = test_size(cfg)
    weights = count_weights(model).total / 1e6
    work = count_macs(model, height, width) / 1e9
    cells = [f"`{path.stem}`", backbone(cfg), schedule(cfg), f"{height}×{width}"]
    cells += [f"{weights:.2f} M", f"{work:.1f}", published_aps(path.stem, published)]
    return f"| {' | '.join(cells)} |\n"


def write(table: str) -> None:
    """Replace the table in docs/model_zoo.md."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.escape(START) + ".*?" + re.escape(END)
    with replacing(PAGE) as unfinished:
        unfinished.write_text(
            re.sub(pattern, lambda _: START + table + END, page, flags=re.DOTALL), encoding="utf-8"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="one configuration, without .yml")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write takes all configurations")
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    table = HEAD
    print(HEAD, end="")
    for path in configurations():
        if args.only in (None, path.stem):
            table += row(path, published)
            print(table.splitlines()[-1], flush=True)
    if args.write:
        write(table)


if __name__ == "__main__":
    main()
