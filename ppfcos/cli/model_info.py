"""`tools/model_info.py`: what an exported network is made of, layer by layer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppfcos import console, environment
from ppfcos.cli import command
from ppfcos.errors import ConfigError, OutputError
from ppfcos.json_files import to_json

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Look into the ONNX network of a bundle: inputs, outputs, operations, and for each layer its shape, "
    "precision, parameters, bytes and GFLOPs (multiply-adds); in an INT8 file, what fell back to float. With "
    "--time the network is run, and the time of each layer measured; with --output it is drawn."
)
EXAMPLE = """
    python tools/model_info.py output_inference/fcos_r50_fpn_1x_coco
    python tools/model_info.py output_inference/fcos_r50_fpn_1x_coco --precision int8 --time --output drawn
    python tools/model_info.py output_inference/fcos_r50_fpn_1x_coco --size 512,896 --json network.json
"""
PAGE_FILE, DRAWING_FILE = "network.html", "network.svg"
PRECISIONS = ("fp32", "fp16", "int8")  # that a file can be in
RUNTIMES = ("onnxruntime", "openvino")  # those that tell the time of a layer


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="the folder that tools/export_model.py wrote")
    add("--precision", choices=PRECISIONS, help="which of its networks (default: the first that it has)")
    add(
        "--size",
        type=_size,
        metavar="H,W",
        help="of the picture, for a network of a free size (default: what the bundle resizes to)",
    )
    command.add_switch(parser, "--time", "run the network, and measure each layer")
    add("--runtime", choices=RUNTIMES, help=f"for --time (default: {RUNTIMES[0]})")
    add("--threads", type=command.positive, metavar="N", help="of the CPU, for --time (default: every core)")
    add("--device", help="for --time: auto, cpu, gpu or a name that the runtime knows (default: auto)")
    add("--json", metavar="FILE", help="write all figures there, with every scale and shape")
    add("--output", metavar="FOLDER", help=f"draw the network: {PAGE_FILE} and {DRAWING_FILE}")
    return parser


def show(options: argparse.Namespace) -> None:
    """Look into the network that the command line names.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
    """
    with environment.quiet_imports():
        from ppfcos.deploy.bundle import read_bundle
        from ppfcos.fileio import require_writable, require_writable_file
        from ppfcos.visualize.network_report import network_text

    bundle = read_bundle(options.bundle)
    if options.output:
        require_writable(options.output, "--output")
    if options.json and Path(options.json).is_dir():
        raise OutputError(f"--json {options.json}: a folder has this name; name a file")
    if options.json:
        require_writable_file(options.json, "--json")
    figures = _figures(bundle, options)
    if options.json:
        _write_text(Path(options.json), to_json(figures, indent=1))
    if options.output:
        _draw(Path(options.output), figures)
    # At the end, for whoever reads it may go before it does.
    console.show(network_text(figures))


def _figures(bundle: Any, options: argparse.Namespace) -> dict[str, Any]:
    from ppfcos.analysis.info import NetworkInfo
    from ppfcos.deploy.runtimes.choice import default_threads

    given = [name for name in ("runtime", "threads", "device") if getattr(options, name) is not None]
    if given and not options.time:
        raise ConfigError(f"--{given[0]} is for --time: add --time, or leave it out")
    network = NetworkInfo(bundle, options.precision, options.size)
    if not options.time:
        return network.figures()
    return network.timed_figures(
        options.runtime or RUNTIMES[0], options.threads or default_threads(), options.device or "auto"
    )


def _draw(folder: Path, figures: Mapping[str, Any]) -> None:
    from ppfcos.visualize.network_drawing import network_svg
    from ppfcos.visualize.network_page import network_page

    drawing = network_svg(figures)
    _write_text(folder / DRAWING_FILE, drawing)
    _write_text(folder / PAGE_FILE, network_page(figures, drawing))


def _write_text(path: Path, text: str) -> None:
    from ppfcos.fileio import replacing

    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    logger.info("written: %s", path)


def _size(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHT,WIDTH, such as 800,1344")
    return int(sides[0]), int(sides[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(show, build_parser(), argv)
