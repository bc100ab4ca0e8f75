"""The machine that a figure was measured on."""

from __future__ import annotations


def day_and_machine() -> str:
    """Return text such as `2026-11-20, 2 cores of AMD EPYC`."""
    from ppfcos.environment import day_and_machine as said

    return said()
