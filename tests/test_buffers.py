"""Memory goes from an array that is gone to the next one, and never before it is gone."""

import gc
import os
import weakref

import numpy as np
import pytest

from minicnn import buffers

SHAPE = (300, 1000)


@pytest.fixture(autouse=True)
def none_free(monkeypatch):
    monkeypatch.setattr(buffers, "_free", type(buffers._free)(list))


def address(array):
    return array.__array_interface__["data"][0]


def test_buffer_of_an_array_that_is_gone_serves_the_next():
    first = buffers.empty(SHAPE, np.float32)
    place = address(first)
    del first
    again = buffers.empty(SHAPE, np.float32)
    assert address(again) == place and again.shape == SHAPE and again.dtype == np.float32
    assert again.flags.c_contiguous and again.flags.writeable and place % 64 == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:, ::2],
        lambda a: a.T.reshape(10, -1, order="F")[3:].T,
        lambda a: np.ascontiguousarray(a[None]),
        lambda a: a.view(np.int32),
        lambda a: np.asarray(memoryview(a)),
    ],
)
def test_buffer_is_kept_while_a_view_is_left(view):
    array = buffers.empty(SHAPE, np.float32)
    array[...] = 1
    left = view(array)
    values = left.copy()
    del array
    gc.collect()
    buffers.empty(SHAPE, np.float32)[...] = 2
    assert (left == values).all()


def test_buffer_may_be_somewhat_larger_than_its_array():
    array = buffers.empty(SHAPE, np.float64)
    place = address(array)
    del array
    assert address(buffers.empty((299, 1000), np.float64)) == place
    assert address(buffers.empty((150, 1000), np.float64)) != place


def test_buffers_of_small_and_empty_arrays_are_numpys_own():
    for shape in ((0, 5), (10, 10), ()):
        array = buffers.empty(shape, np.float32)
        assert array.shape == shape and array.base is None


def test_buffers_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr(buffers, "MOST_FREE", 4 * 10**6)
    arrays = [buffers.empty(SHAPE, np.float32) for _ in range(8)]
    gone = [weakref.ref(array) for array in arrays]
    del arrays
    assert not any(ref() is not None for ref in gone)
    assert sum(size * len(waiting) for size, waiting in buffers._free.items()) <= 4 * 10**6 + 2 * 10**6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_buffer_of_a_forked_child_is_its_own():
    array = buffers.empty(SHAPE, np.float32)
    array[...] = 1
    child = os.fork()
    if child == 0:
        array[...] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (array == 1).all()
