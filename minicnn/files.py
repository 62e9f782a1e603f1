"""Files that are whole or not there at all, whenever the process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import stat
from pathlib import Path

LINKS = 40  # that a system follows from one name to the next


def write_atomically(path: str | os.PathLike, contents: bytes) -> None:
    """Write bytes to `path` through a temporary file in the same folder, fsync and rename.

    A reader sees the old file or the new one. A symbolic link stays, its target is written; a file that was there keeps
    its permissions; a stream is written to as it is. Raises OSError, which names the file.
    """
    try:
        if is_stream(path):
            stream = _opened(path)
            with open(os.dup(stream), "wb") if isinstance(stream, int) else open(path, "ab") as file:
                file.write(contents)
            return
        mode = os.stat(path).st_mode if os.path.exists(path) else None
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(partial_name(target.name))
        try:
            with open(partial, "xb") as file:
                if mode is not None:
                    partial.chmod(stat.S_IMODE(mode))
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_file(path: str | os.PathLike, most: int = -1) -> bytes:
    """The bytes of a file, at most `most` of them. Raises OSError, also for what is no file: a pipe without a writer
    would keep its reader waiting."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "is no file", str(path))
    with open(path, "rb") as file:
        return file.read(most)


def is_stream(path: str | os.PathLike) -> bool:
    """Whether writing there replaces no file: a pipe, a device, or what a process has open, as /dev/stdout is, were it
    a file."""
    if not os.path.exists(path):
        return False
    return not (os.path.isfile(path) or os.path.isdir(path)) or _opened(path) is not None


def _opened(path: str | os.PathLike) -> int | str | None:
    """What a path names that is in a folder of descriptors: the number of one of this process, else the path there;
    None for a path that is in no such folder."""
    path = os.path.abspath(path)
    for _ in range(LINKS):
        folder, name = os.path.realpath(os.path.dirname(path)), os.path.basename(path)
        if folder == os.path.realpath("/dev/fd"):
            return int(name)
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd", folder):
            return path
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


def partial_name(name: str) -> str:
    """Of no other thread, process or machine; a long name is cut, for file systems have a limit."""
    name = name.encode(errors="ignore")[:100].decode(errors="ignore")
    return f".{name}.{_machine()}.{os.getpid()}.{secrets.token_hex(4)}.partial"


def _machine() -> str:
    return platform.node().replace(".", "-") or "localhost"


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Delete what processes of this machine that are gone, killed while they wrote, have left in a folder."""
    for partial in Path(folder).glob(f".*.{_machine()}.*.*.partial"):
        process = partial.name.split(".")[-3]
        if process.isdigit() and not _is_running(int(process)):
            with contextlib.suppress(OSError):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there, signal 0 is Ctrl-C: leave what may be somebody's
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else, or is no process
        return True
    return True


def cache_folder() -> Path:
    """$MINICNN_CACHE, else minicnn in the user's cache folder. Raises RuntimeError where there is no home folder."""
    cache = os.environ.get("MINICNN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "minicnn"
    return Path(cache).expanduser()
