"""What a command does around its main: errors in one line, a folder of its own, streams that may fail, exit codes."""

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from experiments import LIBRARIES, STARTED
from minicnn import backend, compiled, cpu, data, training, weights
from minicnn.compiled import CompilerError
from minicnn.files import is_stream, remove_abandoned
from minicnn.paper import attacks

# Pictures go to files: whatever this is for the shell or the notebook that starts an experiment, it need not work here.
os.environ["MPLBACKEND"] = "agg"

LOCK = ".lock"  # in a folder of results, held by the command that writes to it
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # what flock says there


class UsageError(ValueError):
    """The command line asks for something impossible; the message says what to do."""


class Parser(argparse.ArgumentParser):
    """Options have their whole names, and a mistake is a UsageError, one line without the usage."""

    def error(self, message):
        raise UsageError(f"{message} (--help explains the options)")


USER_ERRORS = (
    UsageError,
    attacks.AttackError,
    data.DataError,
    weights.WeightsError,
    training.TrainingError,
    backend.DeviceError,
    MemoryError,
    OSError,
)


def note(text):
    """Tell the user what was done otherwise than asked."""
    print(f"note: {_line(text)}", file=sys.stderr)


class _Output:
    """A standard stream that may be closed, a full disk, a pipe without a reader or a terminal of other letters: what
    it does not take is left out, and the work goes on. error: why it takes no more, or None."""

    def __init__(self, stream):
        self.stream, self.error = stream or open(os.devnull, "w"), None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="replace")

    def write(self, text):
        if self.error is None:
            try:
                self.stream.write(text)
                self.stream.flush()
            except OSError as error:
                self.error = error
                with contextlib.suppress(OSError):  # or the interpreter tries once more when it ends, and complains
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def run(main, parser, results=lambda options: f"{experiment_name()}.json", resumes=True):
    """Parse the command line and run main(options), alone in its folder. Exits with 2 and one line for a user's
    mistake, 130 for Ctrl-C, 141 or 1 where standard output has taken no more, which loses no results.

    results(options): name of the JSON file in the folder. resumes: whether the command goes on where it was stopped.
    """
    with contextlib.redirect_stdout(_Output(sys.stdout)) as out, contextlib.redirect_stderr(_Output(sys.stderr)):
        try:
            _on_ctrl_c(signal.SIG_DFL, signal.default_int_handler)
            warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy: errors say what numbers cannot be
            options = parser.parse_args()
            options.out = options.out or default_folder(options.dataset)
            standard = options.out / results(options)
            options.json = options.json or standard
            options.named = None if os.path.realpath(options.json) == os.path.realpath(standard) else options.json.stem
            _check_machine()
            use_one_blas_thread()
            for path in (options.out / LOCK, options.json):
                _check_writable(path)
            with _alone(options.out), _alone_beside(options):
                subfolders = [path for path in options.out.iterdir() if path.is_dir()]
                for folder in (options.json.parent, options.out, *subfolders):
                    remove_abandoned(folder)
                main(options)
        except USER_ERRORS as error:
            _exit(2, f"error: {_in_one_line(error)}")
        except KeyboardInterrupt:
            _on_ctrl_c(signal.default_int_handler, signal.SIG_DFL)
            kept = "; what is computed is kept: the same command goes on from there" if resumes else ""
            _exit(130, f"\nstopped{kept}")
        except SystemExit as stop:  # of --help
            if stop.code:
                raise
        if isinstance(out.error, BrokenPipeError):
            _exit(128 + 13)  # as a tool that SIGPIPE ends
        if out.error:
            _exit(1, f"error: standard output: {out.error.strerror}; the results are in their files")


def _on_ctrl_c(before, after):
    if STARTED and signal.getsignal(signal.SIGINT) is before:
        signal.signal(signal.SIGINT, after)


def _exit(code, line=None):
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)


def _in_one_line(error):
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".removesuffix(": ")
    if isinstance(error, OSError) and error.filename and error.strerror:
        return _line(f"{error.filename}: {error.strerror}")
    return _line(str(error))


def _line(text):
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def _check_machine():
    """What is used late is missed early."""
    before = compiled.compile_seconds
    try:
        cpu.convolutions()
    except (ValueError, CompilerError) as error:
        raise UsageError(str(error)) from None
    if compiled.compile_seconds != before:
        note(f"compiled the C kernels in {compiled.compile_seconds:.1f} s, once on this machine")
    for library in LIBRARIES:
        require(library)


def require(library):
    """The module, imported. Raises UsageError where it is missing, or what it reads when it is imported is broken."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UsageError(f"{error}: pip install -e '.[experiments]'") from None
    except Exception as error:
        raise UsageError(
            f"{library} cannot be imported ({error}): mend its settings, in environment variables or a file"
        ) from None


@contextlib.contextmanager
def _alone(folder, option="--out"):
    """Nobody else writes to the folder meanwhile: two at a time would lose the results of one. Raises UsageError. A
    note where the folder's file system knows no locks. option: what chooses another folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)  # the system's own, which a killed process does not keep
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"another command is at work in {folder}: wait for it, or choose another {option}") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise UsageError(f"cannot lock {folder / LOCK} ({error.strerror}): choose another {option}") from None
        note(f"{folder} is on a file system without locks: see to it that no other command writes there")
    try:
        yield
    finally:
        lock.release()


def _alone_beside(options):
    """_alone in the folder of the JSON, where that is the folder of results of another command."""
    folder = options.json.parent
    if is_stream(options.json) or folder.samefile(options.out) or not (folder / LOCK).exists():
        return contextlib.nullcontext()
    return _alone(folder, "--json")


def beside(options, name):
    """Where a file goes that belongs to the JSON and is called `name` in the folder: to the JSON, as --json names it,
    with the name of that before its own."""
    folder = options.out if is_stream(options.json) else options.json.parent
    return folder / (f"{options.named}_{name}" if options.named else name)


def default_folder(dataset):
    """Where an experiment writes without --out."""
    return Path("runs") / dataset


def _check_writable(path):
    """Raises UsageError where no file of that name can be written, before there is something to write."""
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: choose a file for --json")
        if is_stream(path):  # which tells when it is written to
            return
        folder = Path(os.path.realpath(path)).parent
        if folder.is_file():
            raise UsageError(f"cannot write {path} ({folder} is a file): choose another --out or --json")
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # of a name that is too long
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): choose another --out or --json") from None


def experiment_name():
    """The module that is run: "train" for python -m experiments.train."""
    return Path(sys.argv[0]).stem


def use_one_blas_thread():
    """The backend functions have threads of their own over rows; those of BLAS under them would be in their way."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")
