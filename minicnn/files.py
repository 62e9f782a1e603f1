"""Files that are whole or not there at all, whenever the process ends."""

import os
from pathlib import Path


def write_atomically(path, contents):
    """Write bytes to `path` through a temporary file in the same folder, fsync and rename. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
