"""Large arrays in the memory of those that are gone.

A training step makes and drops the same arrays again and again, 60 MB of them. The system gives fresh memory page by
page, each at the price of clearing it: about an eighth of a step. Here the memory of an array goes, when the array and
all its views are gone, to the next one of about its size.
"""

from __future__ import annotations

import collections
import math
import mmap
import os
import threading
from typing import Any

import numpy as np

SMALLEST = 2**18  # bytes; smaller arrays the C library keeps at hand by itself
MOST_FREE = 2**29  # bytes that may wait for use

_free: collections.defaultdict[int, list[mmap.mmap]] = collections.defaultdict(list)  # size -> what waits
_turn = threading.RLock()  # which the garbage collector may ask for while its thread has it
if hasattr(os, "register_at_fork"):  # or a child could begin in another thread's turn, which never ends there
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


class _Lent(np.ndarray):
    """The bytes under an array: when no view of them is left, their memory is free again."""

    def __del__(self) -> None:
        if not isinstance(self.base, mmap.mmap):
            return
        with _turn:
            if sum(size * len(waiting) for size, waiting in list(_free.items())) > MOST_FREE:
                _free.clear()
            _free[self.nbytes].append(self.base)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As numpy.empty; a large array begins at a page."""
    dtype = np.dtype(dtype)
    needed = math.prod(shape) * dtype.itemsize
    if needed < SMALLEST:
        return np.empty(shape, dtype)
    step = 1 << (needed.bit_length() - 4)
    size = -(-needed // step) * step
    with _turn:
        memory = _free[size].pop() if _free[size] else None
    memory = memory or _fresh(size)
    return np.ndarray(shape, dtype, np.ndarray.__new__(_Lent, (size,), np.uint8, memory))


def _fresh(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a forked child has its own
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
