"""The data source that a name chooses."""

from __future__ import annotations

from asyncdgl.data.base import Source
from asyncdgl.errors import ConfigError
from asyncdgl.registry import find


def find_source(name: str) -> Source:
    """A built-in source, or one of the user's: a Source, or a pair (train, test) of map-style data sets.

    Raises:
        ConfigError: there is none of this name, or it is something else.
    """
    part = find("data", name)
    if isinstance(part, Source):
        return part
    if isinstance(part, tuple | list) and len(part) == 2:
        from asyncdgl.data.pair import decode_pair

        train, test = part
        return Source(lambda request: decode_pair(train, test, on_progress=request.on_progress))
    raise ConfigError(
        f"data.dataset {name} is a {type(part).__name__}: it must be an asyncdgl.data.base.Source, or a pair "
        "(train, test) of objects with __len__ and __getitem__"
    )
