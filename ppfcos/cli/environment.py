"""`ppfcos environment`: print versions, devices and problems, for a bug report."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
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
    *("paddlepaddle", "paddlepaddle-gpu", "paddledet", "numpy", "opencv-python", "scikit-learn", "scipy"),
    *("pycocotools", "faster-coco-eval", "simplejpeg", "Pillow", "visualdl", "setuptools"),
    *("paddle2onnx", "onnx", "onnxruntime", "openvino"),
)
VARIABLES = (  # prefixes
    *("FLAGS_", "OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_", "GLOG_", "CUDA_", "PADDLE_"),
    *("OPENCV_", "PPFCOS_"),
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
        f"packages:    {', '.join(_versions())}",
        f"environment: {', '.join(_variables()) or 'no variable is set'}",
        f"devices:     {_devices()}",
        f"webp:        {_webp()}",
    ]
    return lines + ([f"problem:     {problem}" for problem in problems] or ["problems:    none found"])


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue


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
    if sys.version_info[:2] > environment.NEWEST_PYTHON:
        yield (
            f"Python {platform.python_version()}: the numpy of PaddleDetection exists for 3.9 to 3.11 only: "
            "create the environment with one of them"
        )
    for name in ("cv2", "paddle", "ppdet"):
        try:
            with environment.quiet_imports():
                importlib.import_module(name)
        except PPFCOSError as error:
            yield str(error)
        except Exception as error:  # an import may fail with anything
            yield f"import {name} fails ({one_line(error)}): pip install -r requirements.txt"
    for folder, least in ((".", LEAST_DISK), (SHARED_MEMORY, LEAST_SHARED)):
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        if free < least:
            yield f"{os.path.realpath(folder)}: only {free >> 20} MB free"


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
