"""The sources of the kernels; and our own C, compiled at first use by the machine's C compiler.

What is compiled, the CUDA kernels too (cuda.py), is kept in the user's cache folder, under a name that says what it was
made from and for: of C the source, the command, and all that the compiler predefines, its version and the processor's
features among it. So a folder that unlike machines share never gives one the other's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from minicnn.files import cache_folder, partial_name, remove_abandoned

T = TypeVar("T")
TIMEOUT = 120  # seconds that the compiler has
# Or gcc, for some processors, rounds products before they are added in one loop and not in another. (From gcc 8 on.)
ALL_FUSED = "--param=avoid-fma-max-bits=0"

compile_seconds: float | None = None  # that it took in this process; None where an earlier one had done it all


class CompilerError(RuntimeError):
    """There is no compiled code; the message says why in a few words."""


def kernel_folder() -> Path:
    """The folder of the sources: in the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no kernels/ in {package} or beside it: install minicnn again")


def load(sources: Sequence[Path], kept_in: Path | None = None) -> ctypes.CDLL:
    """The library of C files of one folder, compiled where no earlier process has done it. kept_in: a folder for what
    is compiled, None for the user's cache. Raises CompilerError."""
    command = [*_compiler(), "-O3", *_native(), ALL_FUSED, "-std=gnu11", "-shared", "-fPIC"]
    predefined = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    texts = [path.read_bytes() for path in (*sources, *sorted(sources[0].parent.glob("*.h")))]

    def make(library: Path) -> None:
        objects = [str(library.with_name(f"{source.stem}.o")) for source in sources]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda source, to: _run([*command, "-c", str(source), "-o", to]), sources, objects))
        _run([*command, "-x", "none", *objects, "-o", str(library)])  # none: where CC itself says -x c

    try:
        made_from = [*texts, shlex.join(command).encode(), predefined]
        return kept(f"{sources[0].stem}.so", made_from, make, lambda library: ctypes.CDLL(str(library)), kept_in)
    except (OSError, RuntimeError) as error:
        raise CompilerError(f"the C kernels cannot be built or loaded ({error})") from error


def kept(
    name: str, made_from: Sequence[bytes], make: Callable[[Path], None], use: Callable[[Path], T], folder: Path | None
) -> T:
    """use(path) of a file in a folder, None for the user's cache, that make(path) writes where no earlier process has
    done it. The file belongs to `name` and to all the bytes in made_from. One that use refuses with OSError is damaged,
    and made again. Raises OSError, and RuntimeError where there is no home folder."""
    global compile_seconds
    folder = _private(folder or cache_folder() / "compiled")
    remove_abandoned(folder)
    digest = hashlib.sha256(b"\0".join(made_from)).hexdigest()
    path = folder / f"{Path(name).stem}-{digest[:32]}{Path(name).suffix}"
    if _is_ours(path):
        with contextlib.suppress(OSError):
            return use(path)
    start = time.perf_counter()
    partial = folder / partial_name(path.name)
    partial.mkdir()
    try:
        made = partial / path.name
        make(made)
        made.chmod(0o700)
        os.replace(made, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    compile_seconds = (compile_seconds or 0) + time.perf_counter() - start
    return use(path)


def _compiler() -> list[str]:
    if given := os.environ.get("CC", "").strip():
        try:
            return shlex.split(given)
        except ValueError as error:
            raise CompilerError(f"CC is {given}, which is no command ({error})") from None
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise CompilerError("no C compiler found")


def _native() -> list[str]:
    return ["-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64") else "-march=native"]


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]} does not run ({error})") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        reason = next((line for line in lines if "error" in line), f"exit status {error.returncode}")
        raise CompilerError(f"{command[0]} failed: {reason}") from error


def _private(folder: Path) -> Path:
    """The folder, which nobody else can write to."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _is_ours(library: Path) -> bool:
    """Whether it is there, belongs to this user, and nobody else can have written to it."""
    if not library.exists():
        return False
    status = library.stat()
    return (
        not hasattr(os, "getuid") or status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
