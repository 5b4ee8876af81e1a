"""Files of named arrays (safetensors) with a checksum: whole or not at all, and reading one can't make code run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.errors import DataError
from asyncdgl.rundir.disk import to_disk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

SHA256 = "sha256"


def save_arrays(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """Write a file, whole or not at all; it is on the disk when this returns.

    Args:
        path: of the file.
        arrays: by name.
        about: what else is to be said of them.

    Raises:
        OSError: there is no room.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    named = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            save_file(named, part, {**about, SHA256: _sha256(about, named)})
        except SafetensorError as error:  # its word for a full disk
            raise OSError(f"{path} can't be written: {error}") from error
        os.chmod(part, 0o666 & ~_umask())  # safetensors lets only the owner read it
        to_disk(part)
        part.replace(path)
        to_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a file, and what it says of them.

    Raises:
        DataError: the file is not as it was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if about.pop(SHA256) != _sha256(about, arrays):
            raise DataError(f"{path} is damaged: its content is not what the run wrote")
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise DataError(f"{path} is damaged, or no file of a run: {error}") from None
    return arrays, about


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _sha256(about: Mapping[str, str], arrays: Arrays) -> str:
    """Of all that the file says: the format itself has no checksum."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
