"""Packaging. Versions are in requirements/*.txt only."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """Read requirements/{name}.txt without comments, pip options and direct references."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return [entry for entry in entries if entry and not entry.startswith("-") and " @ " not in entry]


def version() -> str:
    """Read the version without importing the package."""
    text = (ROOT / "ppfcos" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


train = requirements("train") + requirements("onnx")

setup(
    name="ppfcos",
    version=version(),
    description="FCOS, the anchor-free object detector, trained on PaddlePaddle in PaddleDetection's style",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["ppfcos", "ppfcos.*"]), "ppfcos.configs"],
    package_dir={"ppfcos.configs": "configs"},  # so that `-c NAME` needs no checkout
    package_data={"ppfcos.visualize": ["templates/*"], "ppfcos.configs": ["*.yml", "*/*.yml"]},
    python_requires=">=3.9,<3.14",
    install_requires=requirements("base"),
    extras_require={
        "train": train + requirements("cpu"),
        "cpu": train + requirements("cpu"),
        "gpu": train,  # paddlepaddle-gpu is installed from Paddle's own index
        "deploy": [],
        "onnx": requirements("onnx"),
        "openvino": requirements("openvino"),
        "dev": requirements("dev"),
        "docs": requirements("docs"),
    },
    entry_points={"console_scripts": ["ppfcos = ppfcos.cli.main:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
