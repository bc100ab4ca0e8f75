"""What a figure was measured on."""

from __future__ import annotations

import datetime
import platform

from ppfcos import environment


def machine() -> str:
    """Such as `2 cores of AMD EPYC`; the cores are those that this process may use."""
    processor = environment.processor_name() or platform.processor() or platform.machine()
    return f"{environment.available_cores()} cores of {processor}"


def day_and_machine() -> str:
    """Such as `2026-11-20, 2 cores of AMD EPYC`."""
    return f"{datetime.date.today()}, {machine()}"
