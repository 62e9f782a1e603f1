"""experiments/executors.py: no death of a process loses a job, and none is left behind. Dask's is in test_sweep.py."""

import os
import signal
import threading
import time
import traceback

import pytest

from experiments import executors

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


def die(path, times):
    """Kill this process, unless as many have died already as `path` has lines; then say how many have."""
    deaths = len(path.read_text().splitlines())
    if deaths < times:
        with path.open("a") as file:
            file.write("dead\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return deaths


@needs_posix
def test_processes_start_the_job_of_a_dead_one_again(tmp_path):
    """Three times in all, and leave those of others alone."""
    paths = [tmp_path / str(times) for times in (0, 1, 2, 1000)]
    for path in paths:
        path.touch()
    with executors.Processes(2) as pool:
        *surviving, hopeless = [pool.submit(die, path, int(path.name)) for path in paths]
        assert [future.result(timeout=120) for future in surviving] == [0, 1, 2]
        with pytest.raises(RuntimeError, match="died 3 times"):
            hopeless.result(timeout=120)
        assert pool.submit(die, paths[0], 0).result(timeout=120) == 0
    assert len(paths[-1].read_text().splitlines()) == 3


def die_while_sending(path):
    """The first time, return something that takes long to send, and die meanwhile; then say that it died."""
    if path.exists():
        return "dead"
    path.touch()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(2**29)


@needs_posix
def test_processes_survive_a_result_of_which_half_arrived(tmp_path):
    with executors.Processes(1) as pool:
        assert pool.submit(die_while_sending, tmp_path / "died").result(timeout=120) == "dead"


def test_processes_hand_on_an_exception_with_its_traceback():
    with executors.Processes(1) as pool:
        error = pool.submit(int, "no number").exception(timeout=120)
        assert isinstance(error, ValueError) and "in _do_jobs" in "".join(traceback.format_exception(error))
        assert pool.submit(int, "1").result(timeout=120) == 1


@needs_posix
def test_processes_leave_ctrl_c_to_the_caller():
    """A terminal sends it to all of them: an idle one would end with a traceback."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest runs in the background
    try:
        with executors.Processes(1) as pool:
            process = pool.submit(os.getpid).result(timeout=120)
            os.kill(process, signal.SIGINT)
            for _ in range(3):
                time.sleep(0.3)
                assert pool.submit(os.getpid).result(timeout=120) == process
    finally:
        signal.signal(signal.SIGINT, before)
