"""Loads `count_macs` from benchmarks/macs.py."""

from __future__ import annotations

import runpy
from pathlib import Path

count_macs = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "macs.py"))["count_macs"]
