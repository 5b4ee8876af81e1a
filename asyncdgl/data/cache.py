"""The cache: each data set is decoded once, and every later run maps the same files."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asyncdgl.data.base import Request, Source, shown
from asyncdgl.data.scratch import scratch
from asyncdgl.data.sources import find_source
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.registry import choices

if TYPE_CHECKING:
    from asyncdgl.config.sections import DataConfig
    from asyncdgl.data.pair import MapStyle

CACHE_VARIABLE = "ASYNCDGL_CACHE"
FORMAT = 2
"""Changes with what is kept, and with what the built-in sources make of the same files."""

Progress = Callable[[int, int], None]
Notice = Callable[[str], None]


def cache_root() -> Path:
    """Where decoded data sets lie: ``$ASYNCDGL_CACHE``, or ``asyncdgl`` in the user's cache folder."""
    from platformdirs import user_cache_dir

    return _absolute(os.environ.get(CACHE_VARIABLE) or user_cache_dir("asyncdgl"))


def prepare(config: DataConfig, on_progress: Progress | None = None, on_notice: Notice | None = None) -> Path:
    """Make sure that the data set is in the cache; returns its folder there.

    Args:
        config: which data set.
        on_progress: told (done, total) while images are decoded.
        on_notice: told what the user should know, such as files that were left out: also where nothing is decoded.

    Raises:
        DataError: the data is missing, empty or corrupt; nothing is left in the cache.
        ConfigError: there is no such source.
    """
    from asyncdgl.data.store import open_cached

    on_progress, on_notice = on_progress or (lambda done, total: None), on_notice or (lambda text: None)
    source, request = _ask(config, on_progress, on_notice)
    if source.download is not None and not request.files and _is_for_downloads(config, request.folder):
        _download(config.dataset, request)
        source, request = _ask(config, on_progress, on_notice)
    key = _key(config.dataset, source, request)
    folder = None if key is None else cache_root() / f"{_plain(config.dataset)}-{key}"
    if folder is None or not _is_there(folder, on_notice):
        folder = _decode(config.dataset, source, request, folder)
    for notice in open_cached(folder).notices:
        on_notice(notice)
    return folder


def from_pair(
    train: MapStyle, test: MapStyle, classes: Sequence[str] | None = None, on_progress: Progress | None = None
) -> Path:
    """Keep a pair of map-style data sets in the cache, under a name of its content; returns its folder.

    Images of bytes are normalised and may be augmented as those of any source; floats are used as they are.
    Arguments and errors are those of ``decode_pair``.

    Raises:
        DataError: an item is wrong, nothing can be learned from the whole, or the cache can't be written.
    """
    from asyncdgl.data.pair import decode_pair
    from asyncdgl.data.store import save

    decoded = decode_pair(train, test, classes, on_progress)
    return keep(lambda target: save(decoded, target), "pair", None)


def data_shape(config: DataConfig) -> tuple[tuple[int, ...], int]:
    """Shape of one x, channels first, and the number of classes; decodes only where they are not known otherwise.

    Raises:
        DataError: an image folder is missing or empty.
    """
    source, request = _ask(config)
    if source.shape is not None:
        return source.shape(request)
    from asyncdgl.data.store import input_shape, open_cached

    cached = open_cached(prepare(config))
    return input_shape(cached.train_x), len(cached.classes)


def _ask(
    config: DataConfig,
    on_progress: Progress = lambda done, total: None,
    on_notice: Notice = lambda text: None,
) -> tuple[Source, Request]:
    """The source, and what it is asked: one listing of its files, for the key and for the decoder."""
    source = find_source(config.dataset)
    if source.files is None:
        return source, Request(config.image_size, on_progress=on_progress, on_notice=on_notice)
    if source.needs_folder is not None and config.data_dir is None:
        raise ConfigError(f"data.dataset {config.dataset} needs --data-dir DIR with {source.needs_folder}")
    folder = _absolute(config.data_dir) if config.data_dir else cache_root() / "downloads"
    try:
        files = source.files(folder)
    except OSError as error:
        raise DataError(f"{shown(error.filename or folder)} can't be read: {error.strerror or error}") from None
    return source, Request(config.image_size, folder, files, on_progress, on_notice)


def _absolute(path: str) -> Path:
    try:
        return Path(os.path.abspath(os.path.expanduser(path)))
    except FileNotFoundError:
        raise DataError(f"{shown(path)} leads nowhere: the working folder was deleted") from None


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _key(dataset: str, source: Source, request: Request) -> str | None:
    """Names what is decoded, and from which files; None where nobody knows what a source of the user's reads."""
    own_code: bytes | None = b""
    if dataset not in choices("data"):
        own_code = None if source.files is None else _code(source)
    if own_code is None:
        return None
    options = {"dataset": dataset, "image_size": request.image_size}
    if source.files is not None:
        options["data_dir"] = str(request.folder)
    digest = hashlib.sha256(f"{FORMAT} {json.dumps(options, sort_keys=True)}".encode() + own_code)
    for path, size, changed in request.files:
        digest.update(os.fsencode(path) + f" {size} {changed}\n".encode())
    return digest.hexdigest()[:20]


def _code(source: Source) -> bytes | None:
    """The file that decodes, so that a change of it is seen; None where there is none."""
    try:
        module = inspect.getsourcefile(source.decode)
        return None if module is None else Path(module).read_bytes()
    except (TypeError, OSError):
        return None


def _is_there(folder: Path, on_notice: Notice) -> bool:
    from asyncdgl.data.store import damage

    try:
        problem = damage(folder)
    except OSError as error:
        raise DataError(
            f"the decoded data in {folder} can't be read ({error.strerror}): it is another user's; ask for it to be "
            f"made readable (chmod -R a+rX), or set {CACHE_VARIABLE} to a folder of your own"
        ) from None
    if problem is not None and folder.exists():
        on_notice(f"the decoded data in {folder} is damaged ({problem}): decoding it again")
    return problem is None


def _decode(dataset: str, source: Source, request: Request, folder: Path | None) -> Path:
    from asyncdgl.data.child import decode_here, run_in_child

    def decode(target: Path) -> None:
        if source.in_process:
            decode_here(dataset, request, target)
        else:
            run_in_child(dataset, request, target)

    return keep(decode, _plain(dataset), folder)


def content_folder(name: str, meta: bytes) -> Path:
    """Of a data set in the cache that is named by its content, as its META says it."""
    return cache_root() / f"{name}-{hashlib.sha256(meta).hexdigest()[:20]}"


def keep(write: Callable[[Path], None], name: str, folder: Path | None) -> Path:
    """Have a data set written to the cache whole or not at all.

    Args:
        write: writes its files into the folder that it is given.
        name: what its folder's name begins with.
        folder: of the cache; None: the one that its content names.

    Raises:
        DataError: the cache can't be written.
    """
    from asyncdgl.data.store import META

    root = cache_root()
    try:
        with scratch(root) as space:
            new = space / "new"
            new.mkdir()
            write(new)
            folder = folder or content_folder(name, (new / META).read_bytes())
            _place(new, folder, space)
    except BrokenPipeError:  # of whoever is told the progress
        raise
    except OSError as error:
        raise cannot_be_written(error) from None
    return folder


def cannot_be_written(error: OSError) -> DataError:
    """What is said of a cache that can't be."""
    return DataError(
        f"the cache folder {cache_root()} can't be written ({error.strerror}): set {CACHE_VARIABLE} to another one"
    )


def _place(new: Path, folder: Path, space: Path) -> None:
    """Move a data set to its folder; what is damaged there goes, and a whole one, of a run that was quicker, stays."""
    from asyncdgl.data.store import damage

    for attempt in range(10):  # others may do the same at the same time
        try:
            new.rename(folder)
            return
        except OSError as error:
            if damage(folder) is None:
                return
            problem = error
        with contextlib.suppress(FileNotFoundError):
            folder.rename(space / f"damaged{attempt}")
    raise problem


def _is_for_downloads(config: DataConfig, folder: Path) -> bool:
    """Whether files may be put there: nothing of the user's lies in it."""
    return config.data_dir is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _download(dataset: str, request: Request) -> None:
    from asyncdgl.data.child import run_in_child

    folder, existed = request.folder, request.folder.exists()
    try:
        with scratch(folder) as space:
            new = space / "new"
            new.mkdir()
            run_in_child(dataset, request, new, download=True)
            for part in new.iterdir():
                part.rename(folder / part.name)
    except OSError as error:
        raise DataError(f"{shown(folder)}: files can't be downloaded there ({error.strerror})") from None
    finally:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
