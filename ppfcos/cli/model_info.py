"""`tools/model_info.py`: describe an exported network layer by layer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppfcos import console, environment
from ppfcos.cli import command
from ppfcos.errors import ConfigError, OutputError
from ppfcos.json_files import to_json

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Inspect the ONNX network of a bundle: inputs, outputs, operators, and for each layer its shape, "
    "precision, parameters, bytes and GMACs (multiply-adds); for an INT8 network also what fell back to "
    "float. --time runs the network and measures each layer; --output draws it."
)
EXAMPLE = """
    python tools/model_info.py output_inference/fcos_r50_fpn_1x_coco
    python tools/model_info.py output_inference/fcos_r50_fpn_1x_coco --precision int8 --time --output drawn
    python tools/model_info.py output_inference/fcos_r50_fpn_1x_coco --size 512,896 --json network.json
"""
PAGE_FILE, DRAWING_FILE = "network.html", "network.svg"
PRECISIONS = ("fp32", "fp16", "int8")
RUNTIMES = ("onnxruntime", "openvino")  # those that measure layers


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder written by tools/export_model.py")
    add("--precision", choices=PRECISIONS, help="network of the bundle (default: its first)")
    add(
        "--size",
        type=_size,
        metavar="H,W",
        help="image size for a network without a fixed size (default: the size to which the bundle resizes)",
    )
    command.add_switch(parser, "--time", "run the network and measure each layer")
    add("--runtime", choices=RUNTIMES, help=f"for --time (default: {RUNTIMES[0]})")
    add("--threads", type=command.positive, metavar="N", help="CPU threads for --time (default: all cores)")
    add("--device", help="for --time: auto, cpu, gpu or a name that the runtime knows (default: auto)")
    add("--json", metavar="FILE", help="write everything to FILE, with all scales and shapes")
    add("--output", metavar="FOLDER", help=f"draw the network into {PAGE_FILE} and {DRAWING_FILE}")
    return parser


def show(options: argparse.Namespace) -> None:
    """Print the description of a bundle's network, and write the files that the options name."""
    with environment.quiet_imports():
        from ppfcos.deploy.bundle import read_bundle
        from ppfcos.fileio import require_writable, require_writable_file
        from ppfcos.visualize.network_report import network_text

    bundle = read_bundle(options.bundle)
    if options.output:
        require_writable(options.output, "--output")
    if options.json:
        if Path(options.json).is_dir():
            raise OutputError(f"--json {options.json} is a folder; name a file")
        require_writable_file(options.json, "--json")
    info = _describe(bundle, options)
    if options.json:
        _write(Path(options.json), to_json(info, indent=1))
    if options.output:
        from ppfcos.visualize.network_drawing import network_svg
        from ppfcos.visualize.network_report import network_page

        drawing = network_svg(info)
        _write(Path(options.output, DRAWING_FILE), drawing)
        _write(Path(options.output, PAGE_FILE), network_page(info, drawing))
    console.show(network_text(info))  # last: the reader of a pipe may stop early


def _describe(bundle: Any, options: argparse.Namespace) -> dict[str, Any]:
    from ppfcos.analysis.info import NetworkInfo
    from ppfcos.deploy.runtimes.choice import default_threads

    for name in ("runtime", "threads", "device"):
        if getattr(options, name) is not None and not options.time:
            raise ConfigError(f"--{name} requires --time: add --time or omit --{name}")
    network = NetworkInfo(bundle, options.precision, options.size)
    if not options.time:
        return network.describe()
    threads = options.threads or default_threads()
    return network.describe_with_times(options.runtime or RUNTIMES[0], threads, options.device or "auto")


def _write(path: Path, text: str) -> None:
    from ppfcos.fileio import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    logger.info("written: %s", path)


def _size(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHT,WIDTH, such as 800,1344")
    return int(sides[0]), int(sides[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return command.run(show, build_parser(), argv)
