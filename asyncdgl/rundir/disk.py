"""What was written reaches the disk before anything rests on it."""

import contextlib
import os
from pathlib import Path


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems can't, for folders
            os.fsync(file)
    finally:
        os.close(file)
