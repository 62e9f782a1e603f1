"""The threads among which the CPU's work is divided: rows of an array, or jobs."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ROW_BLOCKS = 4
SMALL = 2**19  # numbers that one thread has written before the help of another pays
UNCUT = 2**17  # the same where results are added up, for any number of threads: their bits depend on it
LEAST_IMAGES = 16  # that a thread takes through a network by itself
MULTIPLY_ADDS = 32  # of a vector unit in the time of one number written

_this_thread = threading.local()


def _available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Helpers:
    """The threads that work beside the caller's, started at first use."""

    def __init__(self, count):
        self.count, self._pool, self._starting = count, None, threading.Lock()

    def submit(self, work, count):
        """Have up to `count` helpers call work(), soon, late or, at exit or where no thread can be started, never."""
        with contextlib.suppress(RuntimeError):
            with self._starting:
                self._pool = self._pool or ThreadPoolExecutor(self.count)
            for _ in range(min(count, self.count)):
                self._pool.submit(work)


_helpers = _Helpers(min(ROW_BLOCKS, _available_cores()) - 1)


def threads() -> int:
    """How many threads work on rows or on jobs, that of the caller among them."""
    return 1 + _helpers.count


def workers() -> int:
    """Among how many threads in_parallel divides its items here: in a job of its own, none but the one at work."""
    return 1 if getattr(_this_thread, "works", False) else threads()


def set_threads(count: int) -> None:
    """Use `count` threads (at least 1) for the work on rows or on jobs; BLAS keeps its own setting."""
    global _helpers
    if operator.index(count) < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    _helpers = _Helpers(count - 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: set_threads(threads()))  # a child has none of its parent's threads


def in_parallel(job: Callable[[Any], Any], items: Sequence) -> list:
    """[job(item) for every item of a list], the items divided among the threads. What a job calls is not divided
    further, unless it is the only one: threads that wait for each other would stand still. After an error, and after
    Ctrl-C, no job begins any more."""
    if workers() == 1 or len(items) == 1:
        return [job(item) for item in items]
    results, turn = [None] * len(items), itertools.count()
    errors: list[BaseException] = []
    working, change = 0, threading.Condition()

    def work():
        # A helper that comes late takes nothing: either no turn is left, or there is an error.
        nonlocal working
        with change:
            working += 1
        _this_thread.works = True
        try:
            while (i := next(turn)) < len(items) and not errors:
                results[i] = job(items[i])
        except BaseException as error:
            errors.append(error)
        finally:
            _this_thread.works = False
            with change:
                working -= 1
                change.notify_all()

    try:
        _helpers.submit(work, len(items) - 1)
        work()
        with change:
            change.wait_for(lambda: not working)
    except BaseException as interrupt:  # between two jobs
        errors.append(interrupt)
    if errors:
        raise errors[0]
    return results


def chunks(count: int, size: int) -> list[slice]:
    """Slices of `size` of `count` items, the last one shorter; an empty one where there are none."""
    return [slice(start, start + size) for start in range(0, max(1, count), size)]


def shares(count: int, chunk: int) -> list[slice]:
    """Slices of `count` images for in_parallel, as equal as they can be: `chunk` images, which are at work at a time,
    are shared by as many threads as then have LEAST_IMAGES or more. Chunks too small for that are at work one a thread;
    a single one, be it empty, is divided by rows instead."""
    workers = max(1, min(threads(), min(count, chunk) // LEAST_IMAGES))
    slices = max(1, workers * math.ceil(count / (chunk // workers * workers)))
    return chunks(count, max(1, math.ceil(count / slices)))


def over_rows(job: Callable[[int, int], Any], array: Any, work: int | None = None, added_up: bool = False) -> list:
    """Run job(first, last) over the rows of an array cut into ROW_BLOCKS blocks, the larger ones first, or one where
    there is one thread or the work (numbers written, by default those of the array) is small. added_up: cut in the same
    way for any number of threads, so that what is made of the results is the same. Returns them in order."""
    work = array.size if work is None else work
    if work <= UNCUT if added_up else work <= SMALL or workers() == 1:
        return [job(0, len(array))]
    rows, larger = divmod(len(array), ROW_BLOCKS)
    cuts = [rows * block + min(block, larger) for block in range(ROW_BLOCKS + 1)]
    blocks = [(first, last) for first, last in zip(cuts, cuts[1:], strict=False) if first < last]
    return in_parallel(lambda block: job(*block), blocks)
