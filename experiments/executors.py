"""Where the jobs of a sweep run: processes of this machine, or a Dask cluster."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from concurrent.futures import CancelledError, ThreadPoolExecutor
from multiprocessing import resource_tracker

from experiments import common

STARTS = 3  # of a job whose process dies


class Processes(ThreadPoolExecutor):
    """An Executor of processes that begin afresh and end with the caller, however that ends.

    Each thread has one of its own: where one dies, no other's job is lost, and its job is started again, STARTS times
    in all; then the result is a RuntimeError. A ProcessPoolExecutor waits for ever for the rest of a result whose
    process died while it sent it.
    """

    def __init__(self, count):
        super().__init__(count)
        self._own, self._started = threading.local(), []
        self._starting, self._stopped = threading.Lock(), False
        if os.name == "posix":  # the first process would start it, which unblocks the signals of its thread
            resource_tracker.ensure_running()

    def submit(self, function, /, *arguments):
        return super().submit(self._in_a_process, function, arguments)

    def _in_a_process(self, function, arguments):
        for _ in range(STARTS):
            try:
                jobs = self._own.jobs = getattr(self._own, "jobs", None) or self._start()
                jobs.send((function, arguments))
                result, error, where = jobs.recv()
            except (EOFError, OSError):  # from a pipe whose other end is gone
                self._own.jobs = None
                if self._stopped:
                    raise CancelledError from None
                continue
            if error is not None:
                raise error from RuntimeError(where)
            return result
        raise RuntimeError(f"its process died {STARTS} times: somebody killed it, or it was out of memory")

    def _start(self):
        """Start a process. Returns the connection to it."""
        context = multiprocessing.get_context("spawn")
        ours, its = context.Pipe()
        process = context.Process(target=_do_jobs, args=(its,))
        with self._starting:
            if self._stopped:
                raise CancelledError
            if hasattr(signal, "pthread_sigmask"):  # Ctrl-C is for the caller alone: a process inherits this
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process.start()
            self._started.append((process, ours))
        its.close()  # the last one is the process's own: when it dies, ours tells
        return ours

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Without wait, the processes end at once."""
        if not wait:
            with self._starting:
                self._stopped = True
                for process, _ in self._started:
                    process.kill()
        super().shutdown(wait, cancel_futures=cancel_futures or not wait)
        if wait:
            for process, jobs in self._started:
                jobs.close()
                process.join()


def _do_jobs(jobs):
    """A process's work: calls come through the connection, and (result, exception, its traceback) go back."""
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    while True:
        try:
            function, arguments = jobs.recv()
        except EOFError:
            return
        try:
            answer = function(*arguments), None, None
        except Exception as error:
            answer = None, error, traceback.format_exc()
        jobs.send(answer)


def _end_with_the_caller():
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def executor(scheduler, workers):
    """An Executor: the Dask cluster whose scheduler has that address or, without one, `workers` processes. Where the
    block ends early, jobs are given up. Raises UsageError where there is no such cluster."""
    with _client(scheduler) if scheduler else contextlib.nullcontext() as client:
        pool = client.get_executor(pure=False) if scheduler else Processes(workers)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False)
            raise
        pool.shutdown()


def _client(scheduler):
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise common.UsageError(f"{error}: pip install -e '.[dask]'") from None
    print(f"asking the Dask scheduler at {scheduler}", flush=True)
    try:
        get_address_host_port(scheduler)  # which Client does as well, but then takes a minute to give up
        client = Client(scheduler, set_as_default=False)
    except (ValueError, OSError) as error:
        raise common.UsageError(f"no Dask scheduler at {scheduler} ({error})") from None
    if not client.scheduler_info()["workers"]:
        common.note(f"the Dask cluster of {scheduler} has no workers: waiting for one")
    return client
