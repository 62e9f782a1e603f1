"""Make the three networks that the paper's author released out of your own clone of his repository:

    git clone https://github.com/songhobby/CNN
    python -m experiments.author_networks --clone CNN

Writes standard.npz (T = 1), temperature20.npz (T = 20) and distilled.npz to where all experiments look for them after
$MINICNN_DATA/author_networks: author_networks in the cache folder, unless --out names another. His repository has no
licence, so this project carries what reads his weights and not the weights.

They are in commit 77e07afd of its history, as pickles. A pickle can do anything when it is unpickled, so none is: each
is refused unless its SHA-256 is the expected one, and of that one nothing but the bytes of its arrays is read, by
pickletools.genops, which runs nothing. --dataset, --device and --seed have no influence.
"""

import contextlib
import hashlib
import math
import pickletools
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import common
from experiments.claims import Missing
from minicnn import data, files
from minicnn.paper.networks import paper_cnn
from minicnn.weights import save_npz

COMMIT = "77e07afdb53566fd86b7dfefce9c62ec0a897459"
LARGEST = 2**22  # bytes of a pickle, more than any of them has
ARRAY = 40  # bytes of the smallest array, dense3_b; every other byte string is shorter

# All that a pickle of his holds: Theano functions, of which the arrays are the state.
OPCODES = frozenset(
    "ADDITEMS APPEND APPENDS BINBYTES BINFLOAT BINGET BININT BININT1 BININT2 BINUNICODE BUILD EMPTY_DICT EMPTY_LIST "
    "EMPTY_SET EMPTY_TUPLE FRAME LONG1 LONG_BINGET MARK MEMOIZE NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM "
    "SETITEMS SHORT_BINBYTES SHORT_BINUNICODE STACK_GLOBAL STOP TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)


class Pickle(NamedTuple):
    """A file of his repository: its path there, its SHA-256, and the names of its arrays in the order of the file."""

    path: str
    sha256: str
    arrays: tuple[str, ...]


LAYER_BY_LAYER = tuple(paper_cnn().parameters())
PICKLES = {
    "standard": Pickle("Std/std_f", "b261a6a5f1328e58c7959026e8e3e84eb4f5f09c69fbde325bbe3b157456d510", LAYER_BY_LAYER),
    "temperature20": Pickle(
        "Distill2/distill_f", "11a0ec3ac01b3eb5b5a0de53ef60bffbd2bcc91f49b39d6a06b0e8108ddd914d", LAYER_BY_LAYER
    ),
    "distilled": Pickle(
        "Distill/distill_f",
        "8d536ddffd816e1ec815df947b08e034fdd4fc298174847c69b1396aead0ed2f",
        tuple(
            "dense3_b dense3_W dense2_W conv4_W conv1_W conv2_W conv3_W conv3_b conv2_b conv1_b conv4_b dense1_W "
            "dense1_b dense2_b".split()
        ),
    ),
}
FILES = {"standard": "standard", "temperature": "temperature20", "distilled": "distilled"}  # of the study's networks


def made_folder():
    """Where this experiment writes without --out: beside MNIST in the cache, or, where there is no home, in runs."""
    try:
        return files.cache_folder() / "author_networks"
    except RuntimeError:
        return Path("runs", "author_networks")


def find_folder():
    """The folder with the three networks: that in the data folder, else the one that is made; None where neither has
    them all."""
    own = data.data_folder()
    folders = [*([own / "author_networks"] if own else []), made_folder()]
    return next((f for f in folders if all((f / f"{file}.npz").exists() for file in PICKLES)), None)


def author_networks(device="cpu", ties="all"):
    """The author's released networks, loaded: "standard", "temperature", "distilled" -> network; or Missing."""
    folder = find_folder()
    if folder is None:
        return Missing(
            "needs the author's networks: python -m experiments.author_networks --clone DIR makes them of a clone of "
            "github.com/songhobby/CNN"
        )
    return {name: common.load_network(folder / f"{file}.npz", device, ties) for name, file in FILES.items()}


def read_arrays(contents, names):
    """name -> float32 array of the paper's network, from the byte strings of a pickle in the order of `names`.

    Nothing is unpickled. Raises ValueError for what is no pickle, has an opcode that the author's have not, or other
    arrays.
    """
    shapes = {name: parameter.shape for name, parameter in paper_cnn().parameters().items()}
    found = []
    for opcode, argument, _ in pickletools.genops(contents):
        if opcode.name not in OPCODES:
            raise ValueError(f"holds {opcode.name}, which none of the author's pickles has")
        if isinstance(argument, bytes) and len(argument) >= ARRAY:
            found.append(argument)
    if [len(array) for array in found] != [4 * math.prod(shapes[name]) for name in names]:
        raise ValueError("does not hold the arrays of the paper's network")
    return {name: np.frombuffer(a, "<f4").reshape(shapes[name]) for name, a in zip(names, found, strict=True)}


def read_file(clone, path):
    """The bytes of a file of the commit: from the history of a clone, whatever is checked out; where git cannot tell,
    from the folder. Raises UsageError where it is in neither."""
    with contextlib.suppress(OSError):  # there is no git
        command = ["git", "-C", clone, "cat-file", "blob", f"{COMMIT}:{path}"]
        shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if shown.returncode == 0:
            return shown.stdout
    try:
        return files.read_file(clone / path, LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        raise common.UsageError(
            f"{clone} holds neither {path} nor a history with it: git clone https://github.com/songhobby/CNN, with its "
            f"whole history, or check it out there: git checkout {COMMIT}"
        ) from None


def convert(clone, pickle):
    """The arrays of a Pickle of a clone. Raises UsageError where it is missing or another file, which is not opened."""
    contents = read_file(clone, pickle.path)
    if hashlib.sha256(contents).hexdigest() != pickle.sha256:
        raise common.UsageError(
            f"{clone / pickle.path} is not the author's file, and a pickle may hold anything: not opened; "
            f"git -C {clone} checkout {COMMIT} brings his"
        )
    try:
        return read_arrays(contents, pickle.arrays)
    except ValueError as error:
        raise common.UsageError(f"{clone / pickle.path} {error}") from None


def main(options):
    if options.clone is None:
        raise common.UsageError("--clone DIR is missing: your clone of https://github.com/songhobby/CNN")
    if not options.clone.is_dir():
        raise common.UsageError(f"{options.clone} is no folder: git clone https://github.com/songhobby/CNN")
    networks = {name: convert(options.clone, pickle) for name, pickle in PICKLES.items()}
    for name, arrays in networks.items():
        save_npz(options.out / f"{name}.npz", {array: arrays[array] for array in LAYER_BY_LAYER})
    sources = {name: {"path": pickle.path, "sha256": pickle.sha256} for name, pickle in PICKLES.items()}
    common.write_results(options, {"commit": COMMIT, "networks": sources})
    print(f"written: {', '.join(f'{name}.npz' for name in networks)} in {options.out}")
    found = find_folder()
    if found is None or found.resolve() != options.out.resolve():
        common.note(f"the experiments take those in {found or made_folder()}")


if __name__ == "__main__":
    parser = common.arguments(__doc__, ("mnist", "digits"), "author_networks in the cache folder")
    parser.add_argument("--clone", type=common.named(Path), metavar="DIR", help="your clone of songhobby/CNN")
    parser.set_defaults(out=made_folder())
    common.run(main, parser, resumes=False)
