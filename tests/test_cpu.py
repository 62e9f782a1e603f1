"""The CPU backend by itself: its random numbers, and its threads, which change no bit and stand in the way neither of
forks, nor of Python's end, nor of the user's own threads."""

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minicnn import cpu, evaluate, kernels_numpy, predict, threads
from minicnn.layers import Flatten
from minicnn.paper.saliency import saliency_maps
from tests.conftest import colour_cnn, small_cnn

ROOT = Path(__file__).parents[1]


def philox_oracle(counter, key):
    """Philox4x32-10 of one counter in Python integers, after Salmon et al. (SC 2011), figure 2 and table 2."""
    mask = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [high >> 32 ^ c[1] ^ k[0], high & mask, low >> 32 ^ c[3] ^ k[1], low & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_oracle_gives_the_published_answers(counter, key, answer):
    assert " ".join(f"{word:08x}" for word in philox_oracle(counter, key)) == answer


def test_philox():
    layer, step, seed = 3, 0xFFFFFFFE, 0x299F31D0A4093822
    expected = [philox_oracle([block, layer, step, 0], [seed & 0xFFFFFFFF, seed >> 32]) for block in range(50)]
    assert kernels_numpy.philox(50, layer, step, seed).tolist() == expected
    assert kernels_numpy.philox(1, 0, 0, 0).tolist() == [philox_oracle([0] * 4, [0] * 2)]


@pytest.fixture
def with_threads():
    """set_threads, undone at the end of the test."""
    before = cpu.threads()
    yield cpu.set_threads
    cpu.set_threads(before)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_threads_change_no_bit(with_threads, size, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 2**17)
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((512, 3, 19, 21), (4, 3, size, size), (4,)))
    size_out, offset = (20 - size, 22 - size), (0, 0)

    def results():
        y = cpu.conv2d(x, w, b, size_out, offset, True)
        assert y.size > 4 * threads.SMALL  # otherwise there is nothing to divide
        pooled, winner = cpu.max_pool2d(y, 2)
        return [
            y,
            cpu.conv2d_input_grad(y, w, x.shape[2:], offset),
            cpu.conv2d_weight_grad(x, y, w.shape[2:], offset),
            cpu.bias_grad(y),
            cpu.relu_grad(y, y),
            pooled,
            winner,
            cpu.max_pool2d_grad(pooled, winner, y.shape, 2),
            cpu.max_pool2d_grad_of_ties(pooled, y, pooled, 2),
        ]

    by_threads = []
    for count in (1, 2, 5):
        with_threads(count)
        by_threads.append([a.tobytes() for a in results()])
    assert by_threads[0] == by_threads[1] == by_threads[2]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_are_all_images_in_order_and_of_one_size(with_threads, count):
    with_threads(count)
    for images, chunk in itertools.product((0, 1, 31, 63, 64, 100, 128, 257, 1000), (1, 7, 64, 256, 4096)):
        found = threads.shares(images, chunk)
        taken = [len(range(images)[share]) for share in found]
        assert [i for share in found for i in range(images)[share]] == list(range(images))
        assert set(taken[:-1]) <= {taken[0]} and taken[-1] <= taken[0] <= chunk
        if images >= chunk >= 32 * count:
            assert max(taken) * count <= chunk and len(found) % count == 0


def test_predict_and_saliency_maps_have_the_same_bits_for_any_number_of_threads(with_threads):
    network, rng = small_cnn(), np.random.default_rng(0)
    images, labels = rng.random((150, 1, 8, 8), dtype=np.float32), rng.integers(0, 3, 150)
    found = []
    for count in (1, 2, 4):
        with_threads(count)
        maps = saliency_maps(network, images, labels)
        found.append([a.tobytes() for a in (predict(network, images), predict(network, images, dropout=1), *maps)])
    assert found[0] == found[1] == found[2]


def test_layer_of_ones_own_is_never_called_twice_at_the_same_time(with_threads):
    """It may keep something between its lines."""
    with_threads(4)
    network, calls = small_cnn(), []

    class Own(Flatten):
        def __call__(self, x, masks=None):
            calls.append((threading.get_ident(), len(x)))
            time.sleep(0.001)
            assert calls[-1] == (threading.get_ident(), len(x))
            return super().__call__(x)

    network.layers["flatten"] = Own()
    images = np.zeros((600, 1, 8, 8), np.float32)
    predict(network, images), saliency_maps(network, images, np.zeros(600, int))
    assert [size for _, size in calls] == 2 * [256, 256, 88]


def test_threads_are_at_least_one():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        cpu.set_threads(0)
    before = cpu.threads()
    for count in (float("nan"), 2.5, None):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            cpu.set_threads(count)
    assert cpu.threads() == before


def test_in_parallel_keeps_the_order_and_raises_what_a_job_raises(with_threads):
    with_threads(3)
    assert cpu.in_parallel(lambda i: cpu.in_parallel(lambda j: (i, j), range(3)), range(20)) == [
        [(i, j) for j in range(3)] for i in range(20)
    ]
    with pytest.raises(ZeroDivisionError):
        cpu.in_parallel(lambda i: 1 / (i - 7), list(range(20)))
    assert cpu.in_parallel(str, [1, 2, 3]) == ["1", "2", "3"]


class Helper:
    """One helper of which the caller is not told: a thread that works at once, or, late, when it is asked to."""

    count = 1

    def __init__(self, late=False):
        self.late = late

    def submit(self, work, count):
        self.work = work
        self.thread = threading.Thread(target=lambda: None if self.late else work())
        self.thread.start()


@pytest.fixture
def helper(monkeypatch):
    def install(**options):
        monkeypatch.setattr(threads, "_helpers", Helper(**options))
        return threads._helpers

    return install


def test_in_parallel_waits_for_helpers_that_it_was_not_told_of(helper):
    """As where the system refuses a thread for work that a pool has taken already, and another thread then does."""
    helper()
    main = threading.get_ident()

    def job(i):
        time.sleep(0.001 if threading.get_ident() == main else 0.02)
        return i

    for _ in range(10):
        assert cpu.in_parallel(job, range(8)) == list(range(8))


def test_in_parallel_gives_nothing_to_a_helper_that_comes_late(helper):
    late, done = helper(late=True), []
    cpu.in_parallel(done.append, range(5))
    late.work()
    assert done == list(range(5))


def test_in_parallel_at_the_limit_of_threads(with_threads, monkeypatch):
    """No thread can be started: the caller does without."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    with_threads(4)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        assert cpu.in_parallel(str, range(6)) == list("012345")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("in_helper", [False, True])
def test_in_parallel_begins_nothing_after_ctrl_c_or_an_error(helper, error, in_helper):
    """It waits for the jobs under way, not for a thousand more."""
    helper()
    main, begun = threading.get_ident(), []

    def job(i):
        begun.append(i)
        time.sleep(0.01)
        if (threading.get_ident() != main) == in_helper and len(begun) > 4:
            raise error

    with pytest.raises(error):
        cpu.in_parallel(job, range(1000))
    assert len(begun) < 20
    threads._helpers.thread.join(10)
    assert not threads._helpers.thread.is_alive() and len(begun) < 20


def test_in_parallel_works_in_several_threads_and_divides_no_further(with_threads):
    with_threads(3)
    before = threading.active_count()

    def slow(i):
        time.sleep(0.01)
        return threading.get_ident()

    for _ in range(5):
        threads = cpu.in_parallel(lambda i: set(cpu.in_parallel(slow, range(3))), range(12))
        assert len(set.union(*threads)) > 1 and all(len(inner) == 1 for inner in threads)
    assert threading.active_count() <= before + 2


NETWORKS = {"paper's in small": (small_cnn, (60, 1, 8, 8), 3), "of one's own": (colour_cnn, (20, 3, 32, 32), 5)}


@pytest.mark.parametrize(
    ("count", "duration", "make", "shape", "classes"),
    [
        *((count, 1.5, *network) for count in (2, 4) for network in NETWORKS.values()),
        pytest.param(4, 30, *NETWORKS["paper's in small"], marks=pytest.mark.slow),
    ],
)
def test_predict_and_saliency_maps_in_threads_of_ones_own(with_threads, count, duration, make, shape, classes):
    """The bits of one thread alone, and every thread's no_grad its own."""
    with_threads(3)
    network, rng = make(), np.random.default_rng(0)
    images, labels = rng.random(shape, dtype=np.float32), rng.integers(0, classes, shape[0])

    def maps():
        return saliency_maps(network, images, labels, chunk=16)

    alone = predict(network, images, chunk=16), maps()
    failures, until = [], time.monotonic() + duration

    def work(turn):
        for i in itertools.count(turn):
            try:
                if i % 2:
                    same = np.array_equal(predict(network, images, chunk=16), alone[0])
                else:
                    same = all(np.array_equal(a, b) for a, b in zip(maps(), alone[1], strict=True))
            except Exception as error:
                same = error
            if same is not True:
                failures.append(same)
            if time.monotonic() > until or failures:
                return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_flushes_denormals_says_what_another_library_switched_on():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    assert not cpu.flushes_denormals()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert cpu.flushes_denormals()
    finally:
        torch.set_flush_denormal(False)
    assert not cpu.flushes_denormals()


@pytest.mark.parametrize("arithmetic", ["plain", "scaled"])
def test_saliency_maps_and_loss_do_not_depend_on_numpy_s_error_state(arithmetic):
    """Underflow is no error here, and log(0) is -infinity: for logits near 300 both happen."""
    network, rng = small_cnn(), np.random.default_rng(0)
    network.parameters()["dense2_W"].data *= 200
    images, labels = rng.random((12, 1, 8, 8), dtype=np.float32), rng.integers(0, 3, 12)
    alone = [saliency_maps(network, images, labels, arithmetic=arithmetic), evaluate(network, images, labels, T=0.3)]
    with np.errstate(all="raise"):
        again = [
            saliency_maps(network, images, labels, arithmetic=arithmetic),
            evaluate(network, images, labels, T=0.3),
        ]
    assert all(np.array_equal(a, b) for a, b in zip(alone[0], again[0], strict=True)) and alone[1] == again[1]
    assert np.abs(alone[0].logits).max() > 100


def run_python(program):
    """Run a program of its own with three threads; returns what it prints, fails where it hangs."""
    start = "import threading, numpy as np; from minicnn import cpu, predict; from tests.conftest import colour_cnn\n"
    images = "cpu.set_threads(3); net, x = colour_cnn(), np.ones((40, 3, 32, 32), np.float32)\n"
    result = subprocess.run(
        [sys.executable, "-c", start + images + program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout.split()


def test_threads_are_not_started_at_import():
    count = "print(threading.active_count())"
    assert run_python(f"{count}; cpu.set_threads(2); cpu.in_parallel(str, [1, 2]); {count}") == ["1", "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_predict_after_a_fork():
    """In the child, in its own child, and in the parent, with the same bits, and by threads of its own."""
    program = """
import os, time, warnings
def several(_):
    time.sleep(0.01)
    return threading.get_ident()
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
expected = predict(net, x)
for _ in range(2):
    child = os.fork()
    if child:
        ended = os.waitpid(child, 0)[1]
        break
else:
    ended = 0
same = np.array_equal(predict(net, x), expected) and len(set(cpu.in_parallel(several, range(9)))) > 1
os._exit(0 if same and not ended else 1)
"""
    assert run_python(program) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks")
def test_predict_in_a_pool_of_forked_processes():
    program = """
import multiprocessing, warnings
warnings.simplefilter("ignore")
expected = predict(net, x)
def same(_):
    return np.array_equal(predict(net, x), expected)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(all(pool.map(same, range(4))))
"""
    assert run_python(program) == ["True"]


def test_predict_while_python_ends():
    program = """
import atexit
expected = predict(net, x)
{}
@atexit.register
def last():
    print(np.array_equal(predict(net, x), expected))
"""
    for helpers in ("", "cpu.set_threads(3)"):  # those that worked before, and new ones that cannot start
        assert run_python(program.format(helpers)) == ["True"]
