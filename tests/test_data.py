"""The data sets: what is in them, and what a user is told when they cannot be had."""

import contextlib
import gzip
import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from minicnn import data
from minicnn.data import DataError, load
from minicnn.files import partial_name
from tests.test_files import run_and_measure

MNIST = Path(os.environ.get("MINICNN_DATA", ""), "mnist")
needs_mnist = pytest.mark.skipif(
    not (
        os.environ.get("MINICNN_DATA")
        and all(any((MNIST / f"{name}{end}").exists() for end in ("", ".gz")) for name in data.MNIST_FILES)
    ),
    reason="needs MNIST: set MINICNN_DATA to a folder whose mnist/ holds the four files "
    f"({', '.join(data.MNIST_FILES)}, each as it is or as .gz), for example from {data.MIRRORS[0]}",
)


@pytest.fixture(autouse=True)
def no_internet(monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", ())
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install scikit-learn")
    return load("digits")


@pytest.fixture(scope="module")
def mnist():
    return load("mnist")


def histogram(labels):
    return np.bincount(labels, minlength=10).tolist()


def assert_form(dataset):
    for part in ("train", "validation", "test"):
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        assert images.shape == (len(labels), 1, 28, 28) and images.dtype == np.float32
        assert labels.shape == (len(labels),) and labels.dtype == np.int32


def test_load_of_an_unknown_name():
    with pytest.raises(DataError, match="unknown data set 'cifar': choose 'digits' or 'mnist'"):
        load("cifar")


# digits


def test_digits_form_split_and_range(digits):
    assert_form(digits)
    assert digits.name == "digits"
    assert [len(digits.train_labels), len(digits.validation_labels), len(digits.test_labels)] == [1500, 0, 297]
    for images in (digits.train_images, digits.test_images):
        assert images.min() == 0 and images.max() == 1


def test_digits_split_is_fixed(digits):
    assert histogram(digits.train_labels) == [151, 157, 142, 155, 143, 157, 151, 148, 151, 145]
    assert digits.test_labels[:12].tolist() == [2, 2, 9, 8, 8, 3, 6, 0, 4, 4, 7, 6]
    for once, again in zip(digits[1:], load("digits")[1:], strict=True):
        np.testing.assert_array_equal(once, again)


def test_digits_are_all_there_once(digits):
    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([images.reshape(len(images), -1), labels]).tolist()))

    # 3x bilinear scaling with half-pixel centres leaves the source pixels themselves at 1, 4, 7, ... of the 24.
    images = np.concatenate([digits.train_images, digits.test_images])[:, 0, 3:26:3, 3:26:3] * 16
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    source = load_digits()
    np.testing.assert_allclose(images, np.round(images), atol=1e-5)
    assert rows(np.round(images), labels) == rows(source.images, source.target)


def test_digits_scaling_against_loops(digits):
    from sklearn.datasets import load_digits

    index = np.random.RandomState(0).permutation(1797)[1500]
    source = load_digits().images[index]
    expected = np.zeros((28, 28))
    for row in range(24):
        for column in range(24):
            # The centre of a target pixel, in source pixels; beyond the outermost centres the edge goes on.
            y = min(max((row + 0.5) / 3 - 0.5, 0), 7)
            x = min(max((column + 0.5) / 3 - 0.5, 0), 7)
            top, left = min(int(y), 6), min(int(x), 6)
            down, right = y - top, x - left
            upper = (1 - right) * source[top, left] + right * source[top, left + 1]
            lower = (1 - right) * source[top + 1, left] + right * source[top + 1, left + 1]
            expected[row + 2, column + 2] = ((1 - down) * upper + down * lower) / 16
    assert not np.allclose(expected, expected.T)
    np.testing.assert_allclose(digits.test_images[0, 0], expected, rtol=0, atol=1e-7)


def test_digits_validation_is_the_end_of_train(digits):
    split = load("digits", validation=200)
    assert_form(split)
    np.testing.assert_array_equal(split.train_images, digits.train_images[:1300])
    np.testing.assert_array_equal(split.validation_images, digits.train_images[1300:])
    np.testing.assert_array_equal(split.validation_labels, digits.train_labels[1300:])


@pytest.mark.parametrize("validation", [-1, 1500])
def test_digits_validation_out_of_range(digits, validation):
    with pytest.raises(DataError, match=f"validation = {validation} of 1500 training samples: choose 0 to 1499"):
        load("digits", validation=validation)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install scikit-learn"):
        load("digits")


# MNIST itself


@needs_mnist
def test_mnist_form_split_and_range(mnist):
    assert_form(mnist)
    assert mnist.name == "mnist"
    assert [len(mnist.train_labels), len(mnist.validation_labels), len(mnist.test_labels)] == [59000, 1000, 10000]
    for images in (mnist.train_images, mnist.test_images):
        assert images.min() == 0 and images.max() == 255 / 256


@needs_mnist
def test_mnist_labels(mnist):
    assert histogram(mnist.test_labels) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    all_of_train = np.concatenate([mnist.train_labels, mnist.validation_labels])
    assert histogram(all_of_train) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels[2659] == 4  # the image of the paper's Appendix A


@needs_mnist
def test_mnist_validation_of_the_papers_text(mnist):
    paper = load("mnist", validation=10000)
    assert [len(paper.train_labels), len(paper.validation_labels)] == [50000, 10000]
    np.testing.assert_array_equal(paper.validation_images[-1000:], mnist.validation_images)
    np.testing.assert_array_equal(paper.validation_labels[:9000], mnist.train_labels[50000:])


# MNIST's files, on small ones of the same form


NAME = "t10k-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    random = np.random.RandomState(1)
    shapes = [(20, 28, 28), (20,), (5, 28, 28), (5,)]
    return [random.randint(0, 256 if len(s) == 3 else 10, s).astype(np.uint8) for s in shapes]


@pytest.fixture
def files(arrays, monkeypatch):
    """Uncompressed bytes by name; minicnn.data expects exactly these."""
    contents = {name: idx(array) for name, array in zip(data.MNIST_FILES, arrays, strict=True)}
    expected = {
        name: (array.shape, hashlib.sha256(contents[name]).hexdigest())
        for name, array in zip(data.MNIST_FILES, arrays, strict=True)
    }
    monkeypatch.setattr(data, "MNIST_FILES", expected)
    return contents


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """$MINICNN_DATA/mnist, empty."""
    monkeypatch.setenv("MINICNN_DATA", str(tmp_path / "data"))
    path = tmp_path / "data" / "mnist"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """$MINICNN_CACHE/mnist, not yet made."""
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist"


def put(folder, files, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(contents) if compress else contents)


def assert_loads(arrays):
    images, labels, test_images, test_labels = arrays
    dataset = load("mnist", validation=4)
    assert_form(dataset)
    np.testing.assert_array_equal(dataset.train_images, images[:16, None].astype(float) / 256)
    np.testing.assert_array_equal(dataset.train_labels, labels[:16])
    np.testing.assert_array_equal(dataset.validation_images, images[16:, None].astype(float) / 256)
    np.testing.assert_array_equal(dataset.validation_labels, labels[16:])
    np.testing.assert_array_equal(dataset.test_images, test_images[:, None].astype(float) / 256)
    np.testing.assert_array_equal(dataset.test_labels, test_labels)


def refusal():
    with pytest.raises(DataError) as caught:
        load("mnist", validation=4)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_from_the_data_folder(files, folder, cache, arrays, compress):
    put(folder, files, compress)
    assert_loads(arrays)
    assert not cache.exists()


@pytest.mark.parametrize("validation", [-1, 20])
def test_mnist_validation_out_of_range(files, folder, cache, validation):
    put(folder, files)
    with pytest.raises(DataError, match=f"validation = {validation} of 20 training samples: choose 0 to 19"):
        load("mnist", validation=validation)


def test_mnist_from_the_cache_where_the_data_folder_lacks_a_file(files, folder, cache, arrays):
    put(cache, files, compress=True)
    assert_loads(arrays)
    folder.rmdir()
    assert_loads(arrays)


def test_mnist_in_other_spellings(files, folder, cache, arrays):
    """A file that was unpacked and kept its .gz, and the name that some archives unpack."""
    (folder / f"{NAME}.gz").write_bytes(files.pop(NAME))
    (folder / LABELS.replace("-idx1", ".idx1")).write_bytes(files.pop(LABELS))
    put(folder, files)
    assert_loads(arrays)


@pytest.mark.parametrize("tail", [b"", b"rubbish"])
def test_mnist_in_several_members_of_gzip(files, folder, arrays, tail):
    """As pigz and bgzip write it; what follows them is nobody's."""
    whole = files.pop(NAME)
    members = (whole[:100], whole[100:1000], b"", whole[1000:])
    (folder / f"{NAME}.gz").write_bytes(b"".join(map(gzip.compress, members)) + tail)
    put(folder, files)
    assert_loads(arrays)


def test_mnist_from_a_data_folder_below_the_home(files, cache, arrays, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINICNN_DATA", "~/data")
    put(tmp_path / "data" / "mnist", files)
    assert_loads(arrays)


def test_mnist_below_the_home_of_nobody(files, cache, monkeypatch):
    put(cache, files)
    monkeypatch.setenv("MINICNN_DATA", "~no-such-user/data")
    assert refusal().startswith("MINICNN_DATA is ~no-such-user/data, and there is no such home folder")
    monkeypatch.delenv("MINICNN_DATA")
    monkeypatch.setenv("MINICNN_CACHE", "~no-such-user/cache")
    assert refusal().startswith("no home folder to keep MNIST in")


def test_mnist_without_a_home(files, folder, arrays, monkeypatch):
    """Nothing is asked of a home where all files are in the data folder."""
    for name in ("MINICNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: homeless() if str(path).startswith("~") else path)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    put(folder, files)
    assert_loads(arrays)
    (folder / NAME).unlink()
    assert refusal() == "no home folder to keep MNIST in: set MINICNN_CACHE, or MINICNN_DATA, to a folder"


@pytest.mark.parametrize("variable, below", [("XDG_CACHE_HOME", "minicnn/mnist"), ("HOME", ".cache/minicnn/mnist")])
def test_mnist_default_cache(files, arrays, monkeypatch, tmp_path, variable, below):
    for name in ("MINICNN_DATA", "MINICNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    put(tmp_path / below, files)
    assert_loads(arrays)


DAMAGE = {
    "wrong sum": (NAME, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "its contents are others"),
    "short": (NAME, lambda raw: raw[:-1], "holds 3935 bytes uncompressed, not 3936"),
    "long": (NAME, lambda raw: raw + b"\0", "holds more than the 3936 bytes that it has uncompressed"),
    "bad magic": (LABELS, lambda raw: b"\0\0\x09\x01" + raw[4:], "IDX header 0000090100000005, not 0000080100000005"),
    "bad count": (LABELS, lambda raw: raw[:7] + b"\x06" + raw[8:], "header 0000080100000006, not 0000080100000005"),
    "empty": (LABELS, lambda raw: b"", "header (empty), not 0000080100000005"),
    "truncated gz": (f"{NAME}.gz", lambda raw: gzip.compress(raw)[:-100], "is truncated"),
    "cut in its gz trailer": (f"{NAME}.gz", lambda raw: gzip.compress(raw)[:-3], "is truncated"),
    "not gzip": (
        f"{NAME}.gz",
        lambda raw: b"<html>",
        "is not a sound gzip file, nor an IDX file: it begins with 3c6874",
    ),
    "truncated second member": (
        f"{NAME}.gz",
        lambda raw: gzip.compress(raw[:99]) + gzip.compress(raw[99:])[:-9],
        "is truncated",
    ),
    "a bomb of members": (f"{NAME}.gz", lambda raw: gzip.compress(raw) + 9 * gzip.compress(bytes(10**5)), "holds more"),
    "a gzip bomb": (f"{NAME}.gz", lambda raw: gzip.compress(bytes(10**7)), "has the IDX header 00000000"),
    "a gzip bomb with a header": (
        f"{NAME}.gz",
        lambda raw: gzip.compress(raw + bytes(10**7)),
        "holds more than the 3936 bytes",
    ),
    "wrong gz checksum": (f"{NAME}.gz", lambda raw: gzip.compress(raw)[:-6] + b"abcdef", "is not a sound gzip file"),
    "bad gz block": (f"{NAME}.gz", lambda raw: gzip.compress(raw)[:10] + b"\xff" * 99, "is not a sound gzip file"),
    "wrong sum in gz": (
        f"{NAME}.gz",
        lambda raw: gzip.compress(raw[:-1] + bytes([raw[-1] ^ 1])),
        "its contents are others",
    ),
}


@pytest.mark.parametrize("place", ["folder", "cache"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_mnist_damaged_file_is_an_error_where_it_lies(files, folder, cache, place, damage):
    filename, spoil, problem = DAMAGE[damage]
    where = {"folder": folder, "cache": cache}[place]
    put(cache, files, compress=True)
    put(where, {name: contents for name, contents in files.items() if not filename.startswith(name)})
    (where / filename).write_bytes(spoil(files[filename.removesuffix(".gz")]))
    if place == "cache" and not filename.endswith(".gz"):
        (cache / f"{filename}.gz").unlink()
    message = refusal()
    assert f"MNIST file {where / filename}" in message and problem in message
    assert f"in {folder} or in {cache}" in message and all(name in message for name in files)


@pytest.mark.parametrize("kind", ["gzip bomb", "oversized", "endless"])
def test_mnist_file_of_any_size_takes_little_memory(tmp_path, kind):
    """A gigabyte in a megabyte, two gigabytes as they are (in a hole of the disk), and a device without an end."""
    path = tmp_path / "mnist" / f"{NAME}.gz"
    put(path.parent, {name: b"" for name in data.MNIST_FILES if name != NAME})
    if kind == "gzip bomb":
        compressor = zlib.compressobj(1, wbits=31)
        header = struct.pack(">4I", 0x0803, *data.MNIST_FILES[NAME][0])
        path.write_bytes(
            compressor.compress(header)
            + b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1024))
            + compressor.flush()
        )
    elif kind == "oversized":
        with open(path, "wb") as file:
            file.truncate(2 << 30)
    else:
        path.symlink_to("/dev/zero")
    code = """
import os, sys
from minicnn import data
os.environ["MINICNN_DATA"] = sys.argv[1]
try:
    data._mnist_file(sys.argv[2], None)
except data.DataError as error:
    print(error)
"""
    said, megabytes = run_and_measure(code, tmp_path, NAME)
    problems = {"gzip bomb": "holds more than", "oversized": "has the IDX header", "endless": "cannot be read"}
    assert said.startswith(f"MNIST file {path} {problems[kind]}") and megabytes < 400


def test_mnist_file_that_cannot_be_read(files, folder, cache):
    put(cache, files)
    (folder / NAME).mkdir()
    assert f"MNIST file {folder / NAME} cannot be read" in refusal()


@pytest.mark.parametrize("data_is_set", [True, False])
def test_mnist_missing(files, folder, cache, monkeypatch, data_is_set):
    put(cache, files)
    (cache / NAME).unlink()
    if not data_is_set:
        monkeypatch.delenv("MINICNN_DATA")
    message = refusal()
    assert f"MNIST file {NAME} is missing" in message and all(name in message for name in files)
    assert f"in {folder if data_is_set else '$MINICNN_DATA/mnist (MINICNN_DATA is not set)'} or in {cache}" in message


# Downloads, from a server on this machine


@contextlib.contextmanager
def mirror(served, promise=0, pause=0):
    """The address of a server of {file name: bytes, or the address of a redirection}, 404 for the rest; it announces
    `promise` bytes too many, and waits `pause` seconds before each byte."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            contents = served.get(self.path.removeprefix("/mnist/"))
            if contents is None:
                self.send_error(404)
                return
            if isinstance(contents, str):
                self.send_response(302)
                self.send_header("Location", contents)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents) + promise))
            self.end_headers()
            if not pause:
                self.wfile.write(contents)
                return
            for byte in contents:
                time.sleep(pause)
                self.wfile.write(bytes([byte]))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # clients of these tests hang up
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/mnist/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def packed(files):
    return {f"{name}.gz": gzip.compress(contents) for name, contents in files.items()}


def test_download_goes_to_the_second_mirror_and_is_kept(packed, folder, cache, arrays, monkeypatch, capfd):
    seen, gone = [], subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cache.mkdir(parents=True)
    (cache / partial_name("x.gz").replace(f".{os.getpid()}.", f".{gone.pid}.")).touch()  # of a killed process
    with mirror({}) as first, mirror(packed) as second:
        monkeypatch.setattr(data, "MIRRORS", (first, second))
        load("mnist", validation=4, progress=lambda *call: seen.append(call))
    assert {name: (received, total) for name, received, total in seen} == {
        name.removesuffix(".gz"): (len(contents), len(contents)) for name, contents in packed.items()
    }
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == packed
    assert capfd.readouterr() == ("", "")
    assert_loads(arrays)  # the servers are gone: from the cache


@pytest.mark.parametrize("promise", [0, 1000], ids=["ends early", "cut off"])
def test_download_that_is_damaged_is_passed_over(packed, folder, cache, arrays, monkeypatch, promise):
    damaged = {name: contents[:-10] for name, contents in packed.items()}
    with mirror(damaged, promise) as first, mirror(packed) as second:
        monkeypatch.setattr(data, "MIRRORS", (first, second))
        assert_loads(arrays)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == packed


@pytest.mark.parametrize("address", ["http://[", "nonsense:\\", "ftp://", "file:///etc/hosts"])
def test_download_redirected_to_nowhere_goes_to_the_second_mirror(packed, folder, cache, arrays, monkeypatch, address):
    with mirror(dict.fromkeys(packed, address)) as first, mirror(packed) as second:
        monkeypatch.setattr(data, "MIRRORS", (first, second))
        assert_loads(arrays)


def test_download_without_end_stops(packed, files, folder, cache, arrays, monkeypatch):
    """Of bytes, by their number; of single bytes now and then, by the time."""
    with mirror(dict.fromkeys(packed, bytes(10**8))) as first, mirror({}) as second:
        monkeypatch.setattr(data, "MIRRORS", (first, second))
        assert f"sends more than the {15680 + 1024} bytes that {next(iter(files))} can have" in refusal()
    monkeypatch.setattr(data, "TOTAL_TIME", 0.5)
    with mirror(packed, pause=0.02) as slow:
        monkeypatch.setattr(data, "MIRRORS", (slow,))
        assert f"did not send {next(iter(files))} within 0.5 seconds" in refusal()


def test_download_leaves_the_errors_of_its_progress_alone(packed, folder, cache, monkeypatch):
    def progress(name, received, total):
        raise OSError("the caller's own")

    with mirror(packed) as address:
        monkeypatch.setattr(data, "MIRRORS", (address,))
        with pytest.raises(OSError, match="the caller's own"):
            load("mnist", validation=4, progress=progress)


def test_download_that_is_damaged_everywhere_leaves_nothing(packed, files, folder, cache, monkeypatch):
    web_page = dict.fromkeys(packed, b"<html>log in to this network</html>")
    other_file = dict.fromkeys(packed, packed[f"{NAME}.gz"])
    with mirror(web_page) as first, mirror(other_file) as second:
        monkeypatch.setattr(data, "MIRRORS", (first, second))
        message = refusal()
    name = next(iter(files))
    assert f"MNIST file {name} is missing and no mirror gave it" in message
    assert f"{first}{name}.gz is not a sound gzip file" in message
    assert f"{second}{name}.gz has the IDX header" in message
    assert not cache.exists()


def test_download_interrupted_leaves_nothing(packed, folder, cache, monkeypatch):
    def interrupt(name, received, total):
        raise KeyboardInterrupt

    with mirror(packed) as address:
        monkeypatch.setattr(data, "MIRRORS", (address,))
        with pytest.raises(KeyboardInterrupt):
            load("mnist", validation=4, progress=interrupt)
    assert not cache.exists()


def test_download_interrupted_while_written_leaves_nothing(packed, folder, cache, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with mirror(packed) as address:
        monkeypatch.setattr(data, "MIRRORS", (address,))
        with pytest.raises(KeyboardInterrupt):
            load("mnist", validation=4)
    assert list(cache.iterdir()) == []


def test_download_into_a_cache_that_cannot_be_written(packed, folder, cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_bytes(b"a file where the folder should be")
    with mirror(packed) as address:
        monkeypatch.setattr(data, "MIRRORS", (address,))
        message = refusal()
    assert f"cannot write {cache}" in message and "set MINICNN_CACHE to a folder that can be written" in message


def test_download_without_a_network(files, folder, cache, monkeypatch):
    with mirror({}) as closed:
        pass
    monkeypatch.setattr(data, "MIRRORS", (closed,))
    message = refusal()
    name = next(iter(files))
    assert f"no mirror gave it: {closed}{name}.gz cannot be read (<urlopen error" in message
    assert f"in {folder} or in {cache}" in message and all(name in message for name in files)


def test_download_from_a_silent_mirror_times_out(files, folder, cache, monkeypatch):
    served = threading.Event()

    class Silent(dict):
        def get(self, name):
            served.wait()

    monkeypatch.setattr(data, "TIMEOUT", 0.05)
    with mirror(Silent()) as address:
        monkeypatch.setattr(data, "MIRRORS", (address,))
        try:
            assert "timed out" in refusal()
        finally:
            served.set()
