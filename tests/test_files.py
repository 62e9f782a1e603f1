"""Atomic writes: whole or not there, whatever the target is and whoever writes beside."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from minicnn import files
from minicnn.files import read_file, remove_abandoned, write_atomically

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes, which this system lacks")


def run_and_measure(code, *arguments):
    """What a Python program of its own prints, and the megabytes of memory that it had at most."""
    if sys.platform != "linux":
        pytest.skip("needs /proc/self/status, which Linux has")
    code += "\nprint(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    *said, kilobytes = run.stdout.splitlines()
    return "\n".join(said), int(kilobytes) / 1024


def test_write_is_on_disk_before_its_name_is(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, n=name, f=original: events.append(n) or f(*a))
    write_atomically(tmp_path / "new" / "folder" / "file", b"contents")
    assert events == ["fsync", "replace"]
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"contents"


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "no space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, function, error):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(type(error)) as caught:
        write_atomically(path, b"new")
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] no space left on device: '{path}'"
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_write_into_what_is_no_folder_names_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "below", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            write_atomically(path, b"contents")
    assert os.listdir(tmp_path) == ["file"]


def test_write_keeps_permissions_and_symbolic_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "later")
    write_atomically(dangling, b"new")
    assert dangling.is_symlink() and (tmp_path / "later").read_bytes() == b"new"


@needs_pipes
def test_write_into_a_pipe_or_a_device(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, b"contents")
    reader.join(10)
    assert received == [b"contents"] and stat.S_ISFIFO(pipe.stat().st_mode)
    write_atomically("/dev/null", b"contents")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@needs_pipes
def test_read_of_a_pipe_is_refused(tmp_path):
    """Without a writer it would last for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match=f"is no file: '{path}'"):
            read_file(path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"contents")
    assert read_file(tmp_path / "file") == b"contents" and read_file(tmp_path / "file", 3) == b"con"


@needs_pipes
def test_write_into_standard_output(tmp_path):
    """Whose real path, where it is a pipe, is no file."""
    code = "from minicnn.files import write_atomically; write_atomically('/dev/stdout', b'contents')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"contents", b"")


@pytest.mark.skipif(not os.path.exists("/proc/self/fd/1"), reason="needs /proc, which Linux has")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "/proc/{parent}/fd/{log}"])
def test_write_into_a_descriptor_leaves_what_is_in_its_file(tmp_path, name):
    """As a shell has it: --json /dev/stdout >>log."""
    path, code = tmp_path / "log", "print('before', flush=True); write_atomically(sys.argv[1], b'contents\\n')"
    (tmp_path / "link").symlink_to("/dev/stdout")
    path.write_text("old\n")
    with path.open("a") as log:
        name = str(tmp_path / name).format(parent=os.getpid(), log=log.fileno())
        command = [sys.executable, "-c", f"import sys; from minicnn.files import write_atomically; {code}", name]
        run = subprocess.run(command, stdout=log, stderr=subprocess.PIPE)
        log.write("after\n")
    assert (run.returncode, run.stderr, path.read_text()) == (0, b"", "old\nbefore\ncontents\nafter\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which this system lacks")
def test_write_into_a_full_device_names_it():
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_atomically("/dev/full", b"contents")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_write_of_a_new_file_has_the_permissions_of_the_process(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"contents")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_write_is_never_more_open_than_the_file_it_replaces(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    path.write_bytes(b"old")
    path.chmod(0o600)
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: seen.append(os.fstat(descriptor).st_mode))
    write_atomically(path, b"new")
    assert [stat.S_IMODE(mode) for mode in seen] == [0o600]


def test_write_by_several_threads_is_that_of_one_of_them(tmp_path):
    path, contents = tmp_path / "file", [bytes([i]) * 100_000 for i in range(4)]

    def write(own):
        for _ in range(20):
            write_atomically(path, own)
            if path.read_bytes() not in contents:
                failures.append(own[:1])

    failures = []
    threads = [threading.Thread(target=write, args=(own,)) for own in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and path.read_bytes() in contents and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127, "\u6f22" * 85, "." * 255])
def test_write_under_a_name_as_long_as_names_may_be(tmp_path, name):
    path = tmp_path / name
    write_atomically(path, b"contents")
    assert path.read_bytes() == b"contents"


def test_remove_abandoned_leaves_what_a_running_process_writes(tmp_path):
    """What a killed process left goes; what belongs to this one, to another machine or to nobody stays."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    names = {
        "gone": f".w.npz.{files._machine()}.{int(gone.stdout)}.abcd1234.partial",
        "here": files.partial_name("w.npz"),
        "elsewhere": f".w.npz.another-machine.{int(gone.stdout)}.abcd1234.partial",
        "no process": f".w.npz.{files._machine()}.{10**30}.abcd1234.partial",
        "file": "w.npz",
    }
    for name in names.values():
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / names["gone"].replace("w.npz", "w.so")
    folder.mkdir()
    (folder / "w.so").touch()
    remove_abandoned(tmp_path)
    assert set(os.listdir(tmp_path)) == set(names.values()) - {names["gone"]}
