"""How many processors there are to compute on."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Those that this process may run on: fewer than the machine has under ``taskset`` or a scheduler."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
