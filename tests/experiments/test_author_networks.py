"""The author's networks out of a clone of his repository: read without unpickling, found by every experiment."""

import hashlib
import math
import pickle
import shutil
import subprocess

import numpy as np
import pytest

from experiments import author_networks
from experiments.author_networks import PICKLES, Pickle, convert, read_arrays
from experiments.claims import Missing
from experiments.common import UsageError
from minicnn.paper.networks import paper_cnn
from minicnn.weights import load_npz, save_weights
from tests.experiments.conftest import assert_mistake, read_json, succeed
from tests.paper.test_facts import DATA

ORDER = PICKLES["distilled"].arrays
SHAPES = {name: parameter.shape for name, parameter in paper_cnn().parameters().items()}
COPIES = {name: DATA / "author_pickles" / f"{name}.pickle" for name in PICKLES}
needs_his_pickles = pytest.mark.skipif(
    not all(path.exists() for path in COPIES.values()),
    reason="needs the author's files: put Std/std_f, Distill2/distill_f and Distill/distill_f of "
    f"github.com/songhobby/CNN at commit {author_networks.COMMIT} into $MINICNN_DATA/author_pickles as "
    "standard.pickle, temperature20.pickle and distilled.pickle",
)
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git, which this machine lacks")


class Payload:
    """Whoever unpickles it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "x")


@pytest.fixture
def victim(tmp_path):
    """A path at which there must be no file at the end, and at which a payload does make one."""
    yield tmp_path / "victim"
    assert not (tmp_path / "victim").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "victim"))).close()
    assert (tmp_path / "victim").exists()


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=SHAPES[name]).astype(np.float32) for name in ORDER}


def pickled(arrays, *others):
    """Byte strings in the order of the distilled network, among other values, as pickle's protocol 4 writes them."""
    return pickle.dumps([*others, b"short", "text", {1: (None, True)}, *(arrays[n].tobytes() for n in ORDER)], 4)


def clone_with(folder, contents):
    """A folder with Distill/distill_f, and the Pickle that it is."""
    path = folder / PICKLES["distilled"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)
    return folder, Pickle(PICKLES["distilled"].path, hashlib.sha256(contents).hexdigest(), ORDER)


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", folder, *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


@needs_his_pickles
def test_author_networks_have_every_bit(tmp_path, monkeypatch):
    for name, made in PICKLES.items():
        (tmp_path / made.path).parent.mkdir()
        shutil.copy(COPIES[name], tmp_path / made.path)
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "cache" / "author_networks"
    text = succeed("author_networks", "--clone", tmp_path)
    assert text == f"written: standard.npz, temperature20.npz, distilled.npz in {out}\n"
    assert set(read_json(out / "author_networks.json")["networks"]) == set(PICKLES)
    found = author_networks.author_networks()
    assert list(found) == ["standard", "temperature", "distilled"]
    for name in PICKLES:
        expected = DATA / "author_networks" / f"{name}.npz"
        if not expected.exists():
            pytest.skip(f"needs {name}.npz, made before by other means, in $MINICNN_DATA/author_networks")
        assert_equal(load_npz(out / f"{name}.npz"), load_npz(expected))


def test_convert_takes_the_arrays_by_the_order_of_the_file(arrays, tmp_path):
    assert_equal(convert(*clone_with(tmp_path, pickled(arrays))), arrays)


@needs_git
def test_convert_reads_the_commit_whatever_is_checked_out(arrays, tmp_path, monkeypatch):
    clone, made = clone_with(tmp_path, pickled(arrays))
    git(clone, "init", "--quiet")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "with the file")
    commit = git(clone, "rev-parse", "HEAD")
    (clone / made.path).write_bytes(b"a later version")
    git(clone, "commit", "--quiet", "-a", "-m", "later")
    with pytest.raises(UsageError, match="is not the author's file"):
        convert(clone, made)
    monkeypatch.setattr(author_networks, "COMMIT", commit)
    assert_equal(convert(clone, made), arrays)
    git(clone, "worktree", "add", "--quiet", tmp_path / "tree", "HEAD")
    assert_equal(convert(tmp_path / "tree", made), arrays)


def test_convert_without_git_reads_the_folder(arrays, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert_equal(convert(*clone_with(tmp_path, pickled(arrays))), arrays)


def test_clone_that_lacks_the_files(tmp_path):
    arguments = ["author_networks", "--clone", tmp_path, "--out", tmp_path / "out"]
    assert_mistake(
        arguments, "holds neither Std/std_f", "git clone https://github.com/songhobby/CNN", "git checkout 77e0"
    )
    arguments[2] = tmp_path / "none"
    assert_mistake(arguments, f"{tmp_path / 'none'} is no folder")
    assert_mistake(["author_networks", "--out", tmp_path / "out"], "--clone DIR is missing")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_with_a_payload_is_refused_by_its_sum(tmp_path, victim, protocol):
    for made in PICKLES.values():
        (tmp_path / made.path).parent.mkdir()
        (tmp_path / made.path).write_bytes(pickle.dumps(Payload(victim), protocol))
    out = tmp_path / "out"
    arguments = ["author_networks", "--clone", tmp_path, "--out", out]
    assert_mistake(arguments, f"{tmp_path / 'Std/std_f'} is not the author's file", "not opened", "checkout")
    assert not list(out.glob("*.npz"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_with_a_payload_runs_nothing_even_if_its_sum_were_right(tmp_path, victim, protocol):
    clone, made = clone_with(tmp_path, pickle.dumps(Payload(victim), protocol))
    with pytest.raises(UsageError, match="which none of the author's pickles has|does not hold the arrays"):
        convert(clone, made)


def test_pickle_with_a_payload_beside_the_arrays_runs_nothing(arrays, victim):
    assert_equal(read_arrays(pickled(arrays, Payload(victim)), ORDER), arrays)


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"cos\nsystem\n", "GLOBAL"),
        (b"(S'touch x'\nios\nsystem\n", "INST"),
        (b"\x82\x01", "EXT1"),
        (b"Pid\n", "PERSID"),
    ],
)
def test_read_arrays_refuses_opcodes_that_the_author_s_pickles_have_not(arrays, opcodes, name):
    whole = pickled(arrays)
    with pytest.raises(ValueError, match=f"holds (STRING|{name}), which none of the author's pickles has"):
        read_arrays(opcodes + whole, ORDER)


def test_read_arrays_refuses_damage_and_other_arrays(arrays):
    whole = pickled(arrays)
    for contents in (b"", whole[: len(whole) // 2], whole[:-1], b"no pickle"):
        with pytest.raises(ValueError):
            read_arrays(contents, ORDER)
    for names in (ORDER[1:], PICKLES["standard"].arrays):
        with pytest.raises(ValueError, match="does not hold the arrays of the paper's network"):
            read_arrays(whole, names)


def test_orders_are_those_of_the_whole_network():
    assert all(sorted(made.arrays) == sorted(SHAPES) for made in PICKLES.values())
    assert PICKLES["standard"].arrays[:3] == ("conv1_W", "conv1_b", "conv2_W")
    assert min(4 * math.prod(shape) for shape in SHAPES.values()) == author_networks.ARRAY


def test_author_networks_are_found_in_the_data_folder_then_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    missing = author_networks.author_networks()
    assert isinstance(missing, Missing) and "python -m experiments.author_networks --clone DIR" in missing.reason
    for i, place in enumerate(("cache", "data")):
        for name in PICKLES:
            assert author_networks.find_folder() == (None if i == 0 else tmp_path / "cache" / "author_networks")
            save_weights(paper_cnn(seed=i), tmp_path / place / "author_networks" / f"{name}.npz")
        monkeypatch.setenv("MINICNN_DATA", str(tmp_path / "data"))
    assert author_networks.find_folder() == tmp_path / "data" / "author_networks"
    found = author_networks.author_networks(ties="first")["temperature"]
    assert np.array_equal(found.parameters()["dense3_W"].data, paper_cnn(seed=1).parameters()["dense3_W"].data)
    (tmp_path / "data" / "author_networks" / "distilled.npz").unlink()
    assert author_networks.find_folder() == tmp_path / "cache" / "author_networks"


def test_author_networks_are_kept_in_runs_where_there_is_no_home(monkeypatch):
    def nobody():
        raise RuntimeError

    monkeypatch.setattr(author_networks.files, "cache_folder", nobody)
    assert author_networks.made_folder().parts == ("runs", "author_networks")
