"""Make the images of the documentation from the demo's results (`make demo`).

    python scripts/make_doc_images.py

Needs Chromium for the pages. Each image in docs/images has less than 200 kB.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
CONFIG = "configs/fcos_demo_shapes.yml"
OUTPUT = "output/fcos_demo_shapes"
BUNDLE = "output_inference/fcos_demo_shapes"
MAX_BYTES = 200_000
TERMINAL_PAGE = """<body style="margin:0;background:#1e1e2e"><pre style="margin:0;padding:18px;color:#cdd6f4;
font:13px/1.45 'DejaVu Sans Mono',monospace;white-space:pre-wrap"><span style="color:#a6e3a1">
$ {command}</span>
{text}</pre>"""


def run(*arguments: str | Path, cwd: Path = ROOT, accepted: tuple[int, ...] = (0,)) -> None:
    """Run a command of ppfcos in a checkout."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, check=False, stdout=subprocess.DEVNULL)
    if done.returncode not in accepted:
        raise SystemExit(f"{arguments[0]} ended with exit code {done.returncode}")


def save(image: Image.Image, name: str) -> None:
    """Save an image with the best quality below the size limit."""
    path = IMAGES / name
    image = image.convert("RGB")
    for quality in (90, 80, 70, 60):
        if path.suffix == ".png":
            image.quantize(256 * quality // 90).save(path, optimize=True)
        else:
            image.save(path, quality=quality, optimize=True)
        if path.stat().st_size < MAX_BYTES:
            print(f"{path.relative_to(ROOT)}: {image.width}x{image.height}, {path.stat().st_size} bytes")
            return
    raise SystemExit(f"{path} has more than {MAX_BYTES} bytes")


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Take a screenshot of an HTML file in Chromium, without empty rows at the bottom."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        command = [
            shutil.which("chromium") or shutil.which("google-chrome") or "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
            "--virtual-time-budget=3000",
            f"--screenshot={target}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(target).convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((image.width - 1, image.height - 1)))
    *_, bottom = ImageChops.difference(image, background).getbbox()
    return image.crop((0, 0, image.width, min(image.height, bottom + 12)))


def tile_images(paths: list[Path], columns: int, side: int) -> Image.Image:
    """Put images into a grid."""
    rows = -(-len(paths) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for i, path in enumerate(paths):
        tile = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * side, i // columns * side))
    return sheet


def make_detections() -> None:
    """Detections of the exported model on eight validation images."""
    with tempfile.TemporaryDirectory() as folder:
        data = ROOT / "dataset/shapes/val2017"
        options = ("--infer_dir", data, "--output_dir", folder, "--draw_threshold", "0.3")
        run("tools/infer.py", "--bundle", BUNDLE, *options)
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix in (".jpg", ".png"))
        save(tile_images(paths[:8], columns=4, side=240), "detections.jpg")


def make_batch() -> None:
    """A training batch with its boxes."""
    with tempfile.TemporaryDirectory() as folder:
        run("tools/show_batch.py", "-c", CONFIG, "--output", Path(folder) / "batch.png")
        image = Image.open(Path(folder) / "batch.png")
        image.thumbnail((1200, 1200))
        save(image, "batch.jpg")


def make_report() -> None:
    """The evaluation report."""
    with tempfile.TemporaryDirectory() as folder:
        run("tools/eval.py", "-c", CONFIG, "-o", f"weights={OUTPUT}/best_model.pdparams", "--report", folder)
        save(screenshot(Path(folder) / "report.html", 1200, 1500), "report.png")


def make_data_check() -> None:
    """The report of the data check, on a data set with issues."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        for name in ("configs", "ppfcos", "tools"):
            (checkout / name).symlink_to(ROOT / name)
        data = checkout / "dataset/shapes"
        shutil.copytree(ROOT / "dataset/shapes", data)
        images = sorted((data / "train2017").iterdir())
        images[3].write_bytes(images[3].read_bytes()[:2000])  # a truncated file
        images[5].unlink()
        shutil.copy(sorted((data / "val2017").iterdir())[0], images[7])  # an image of both sets
        run("tools/check_data.py", "-c", CONFIG, "--output_dir", "out", cwd=checkout, accepted=(0, 1))
        save(screenshot(checkout / "out/report.html", 1200, 1300), "data_check.png")


def make_network() -> None:
    """The drawing of the exported network."""
    with tempfile.TemporaryDirectory() as folder:
        run("tools/model_info.py", BUNDLE, "--output", folder)
        page = Path(folder) / "drawing.html"
        page.write_text('<body style="margin:0"><img src="network.svg" width="1500">', encoding="utf-8")
        save(screenshot(page, 1500, 1300), "network.png")


def make_terminal() -> None:
    """The first and the last lines of the training log."""
    lines = (ROOT / OUTPUT / "train.log").read_text(encoding="utf-8").splitlines()
    lines = [re.sub(r"^\[[^]]*\] ", "", line) for line in lines if not line.startswith("=")]
    starts = ("model:", "data:", "devices:", "schedule:", "folder:")
    shown = [line for line in lines if line.startswith(starts)][:6]
    shown += ["", *[line for line in lines if line.startswith("epoch: [12/12]")][-3:]]
    last = next(i for i, line in enumerate(lines) if line.startswith("after epoch     AP"))
    text = "\n".join([*shown, "", *lines[last:]])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.html"
        command = f"python tools/train.py -c {CONFIG} --eval"
        page.write_text(TERMINAL_PAGE.format(command=command, text=html.escape(text)), encoding="utf-8")
        save(screenshot(page, 1100, 410), "terminal.png")


def main() -> None:
    """Make all images."""
    if not (ROOT / OUTPUT / "best_model.pdparams").exists() or not (ROOT / BUNDLE / "bundle.yml").exists():
        raise SystemExit("the demo's results are missing: run `make demo` first")
    IMAGES.mkdir(exist_ok=True)
    for make in (make_detections, make_batch, make_report, make_data_check, make_network, make_terminal):
        make()


if __name__ == "__main__":
    main()
