"""Huge pages for memory that is streamed through again and again.

A processor prefetches within a page, and looks up the address of each: in pages of 4 KiB, two cores do not
reach the speed of the memory. Most Linux systems give huge pages only to memory for which they are asked.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache

_HUGE_PAGE = 2 * 2**20
_GAP = 4096  # what an allocator puts between two of its large blocks
_MADV_COLLAPSE = 25  # Linux 6.1: at once, and whatever the system's setting


def use_huge_pages(blocks: Iterable[tuple[int, int]]) -> int:
    """Ask the system to hold blocks of memory (address, size in bytes) in huge pages; their contents stay.

    Returns:
        Bytes for which it did: 0 on systems that cannot, less than the sum where a block begins or ends
        within a huge page.
    """
    if not sys.platform.startswith("linux"):
        return 0
    moved = 0
    for start, end in _joined(blocks):
        first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        length = end // _HUGE_PAGE * _HUGE_PAGE - first
        if length > 0 and _madvise()(first, length, _MADV_COLLAPSE) == 0:
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
def _madvise() -> ctypes._CFuncPtr:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise
