"""`ppfcos environment`: print versions, devices and problems, for a bug report."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import ppfcos
from ppfcos import console, environment
from ppfcos.cli import command
from ppfcos.errors import PPFCOSError, one_line

PACKAGES = (
    *("paddlepaddle", "paddlepaddle-gpu", "paddledet", "numpy", "opencv-python", "opencv-python-headless"),
    *("scipy", "pycocotools", "faster-coco-eval", "simplejpeg", "Pillow", "visualdl"),
    *("paddle2onnx", "onnx", "onnxruntime", "openvino"),
)
VARIABLES = (  # prefixes
    *("FLAGS_", "OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_", "GLOG_", "CUDA_", "PADDLE_"),
    *("OPENCV_", "PPFCOS_"),
)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 9), (3, 13)
# Packages that install the same modules, and the command that installs one of them.
EXCLUSIVE = (
    ("opencv-python", "opencv-python-headless", "pip install opencv-python-headless"),
    ("paddlepaddle", "paddlepaddle-gpu", "then install one of them"),
)
TRAINING = ("paddle", "ppdet")
TRAINING_PACKAGES = (  # modules of requirements/train.txt that have no substitute
    *("scipy", "pycocotools", "faster_coco_eval", "PIL", "visualdl", "tqdm", "jinja2", "shtab"),
)
LEAST_DISK, LEAST_SHARED = 2 << 30, 64 << 20  # bytes
SHARED_MEMORY = "/dev/shm"


def report() -> list[str]:
    """The lines of the report, `what: value`; the last ones are the problems."""
    problems = list(_problems())
    free = f"{SHARED_MEMORY} {_free(SHARED_MEMORY)}; {_working_directory()} {_free('.')}"
    lines = [
        f"ppfcos:      {ppfcos.__version__}, {Path(ppfcos.__file__).parent}",
        f"python:      {platform.python_version()}, {sys.executable}",
        f"system:      {platform.platform()}",
        f"processor:   {environment.processor_name() or 'unknown'}, {environment.available_cores()} cores",
        f"memory:      {_memory()}; {free}",
        f"packages:    {', '.join(f'{name} {version}' for name, version in _installed().items())}",
        f"environment: {', '.join(_variables()) or 'no variable is set'}",
        f"devices:     {_devices()}",
        f"webp:        {_webp()}",
    ]
    return lines + ([f"problem:     {problem}" for problem in problems] or ["problems:    none found"])


@functools.cache
def _installed() -> dict[str, str]:
    """Versions of the installed ones of PACKAGES."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _variables() -> list[str]:
    return [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]


def _devices() -> str:
    try:
        with environment.quiet_imports():
            from ppfcos.engine.device import available_devices
            from ppfcos.engine.run_record import device_name
        return ", ".join(f"{name} ({device_name(name)})" for name in available_devices())
    except Exception as error:  # the report is for broken installations
        return f"Paddle cannot tell ({one_line(error)})"


def _webp() -> str:
    try:
        with environment.quiet_imports():
            from ppfcos.image_files import webp_decoder
        return webp_decoder()
    except Exception as error:
        return f"unknown ({one_line(error)})"


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{pages * size / 2**30:.1f} GiB"


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "the working directory, which was removed:"


def _free(folder: str) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free"
    except OSError:
        return "not there"


def _problems() -> Iterator[str]:
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        yield f"Python {platform.python_version()} was not tested: create an environment with 3.9 to 3.13"
    for one, other, cure in EXCLUSIVE:
        if {one, other} <= _installed().keys():
            yield f"{one} and {other} overwrite each other's files: pip uninstall -y {one} {other}; {cure}"
    installed = [name for name in TRAINING if importlib.util.find_spec(name) is not None]
    for name in ("cv2", *(TRAINING if installed else ())):
        try:
            with environment.quiet_imports():
                importlib.import_module("ppfcos.paddledetection" if name == "ppdet" else name)
        except PPFCOSError as error:
            yield str(error)
        except Exception as error:  # an import may fail with anything
            yield f"import {name} fails ({one_line(error)}): {environment.INSTALL_TRAIN}"
    if installed:
        missing = [name for name in TRAINING_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            yield f"{', '.join(missing)} missing: {environment.INSTALL_TRAIN}"
    elif not any(importlib.util.find_spec(name) for name in ("onnxruntime", "openvino")):
        yield "no runtime is installed: pip install onnxruntime"
    yield from _wrong_converter()
    for folder, least in ((".", LEAST_DISK), (SHARED_MEMORY, LEAST_SHARED)):
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        if free < least:
            yield f"{os.path.realpath(folder)}: only {free >> 20} MB free"


def _wrong_converter() -> Iterator[str]:
    """Paddle 2 needs paddle2onnx 1, Paddle 3 needs paddle2onnx 2."""
    paddle = _installed().get("paddlepaddle") or _installed().get("paddlepaddle-gpu") or ""
    converter = _installed().get("paddle2onnx", "")
    fitting = {"2": "1.3.1", "3": "2.1.0"}.get(paddle[:1])
    if converter and fitting and converter[0] != fitting[0]:
        yield (
            f"paddle2onnx {converter} does not work with Paddle {paddle}: pip install paddle2onnx=={fitting}"
        )


DESCRIPTION = (
    "Print versions, devices and problems of the installation. The report contains none of your data."
)
EXAMPLE = """
ppfcos environment
python -m ppfcos environment
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    return command.plain_parser(DESCRIPTION, EXAMPLE)


def show(options: argparse.Namespace) -> None:
    """Print the report."""
    console.show("\n".join(report()))


main = functools.partial(command.run, show, build_parser)
