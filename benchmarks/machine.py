"""What a figure was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def day_and_machine() -> str:
    """Such as `2026-11-20, 2 cores of AMD EPYC`."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{datetime.date.today()}, {os.cpu_count()} cores of {processor}"
