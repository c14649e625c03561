"""Huge pages for memory that is streamed through again and again.

A processor prefetches within a page, and looks up the address of each: in pages of 4 KiB, two cores do not
reach the speed of the memory. Most Linux systems give huge pages only to memory for which they are asked.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import cast

_HUGE_PAGE = 2 * 2**20
_AT_ONCE = 32 * _HUGE_PAGE
_GAP = 4096  # what an allocator puts between two of its large blocks
_MADV_COLLAPSE = 25  # Linux 6.1: at once, and whatever the system's setting


def use_huge_pages(blocks: Iterable[tuple[int, int]], seconds: float = 5.0) -> int:
    """Ask the system to hold blocks of memory (address, size in bytes) in huge pages; their contents stay.

    Args:
        seconds: after which it is left at what was done. Two gigabytes take two; but where free memory is
            scarce, or in pieces, the system first makes room, which takes longer.

    Returns:
        Bytes for which it did: 0 on systems that cannot, less than the sum where a block begins or ends
        within a huge page.
    """
    if not sys.platform.startswith("linux"):
        return 0
    moved, deadline = 0, time.monotonic() + seconds
    for start, end in _joined(blocks):
        end = end // _HUGE_PAGE * _HUGE_PAGE
        for first in range(-(-start // _HUGE_PAGE) * _HUGE_PAGE, end, _AT_ONCE):
            if time.monotonic() >= deadline:
                return moved
            length = min(_AT_ONCE, end - first)
            if _madvise()(first, length, _MADV_COLLAPSE) == 0:
                moved += length
    return moved


def _joined(blocks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges (start, end) of blocks, neighbours as one, so that pages across their borders count too."""
    joined: list[tuple[int, int]] = []
    for start, size in sorted(blocks):
        if joined and start - joined[-1][1] <= _GAP:
            joined[-1] = joined[-1][0], start + size
        else:
            joined.append((start, start + size))
    return joined


@cache
def _madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast(Callable[[int, int, int], int], madvise)
