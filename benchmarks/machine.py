"""What a figure was measured on."""

from __future__ import annotations


def day_and_machine() -> str:
    """Such as `2026-11-20, 2 cores of AMD EPYC`.

    ppfcos is imported here and no earlier: that sets what Paddle reads from the environment, which a script
    that measures another program must not have set for it.
    """
    from ppfcos.environment import day_and_machine as said

    return said()
