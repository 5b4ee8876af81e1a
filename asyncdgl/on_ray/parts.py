"""The user's own parts on their way into an actor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import cloudpickle

from asyncdgl.registry import module_path


class Parts:
    """Objects that were handed over, by kind. An actor gets the mapping, and finds modules where the driver does.

    What an object is made of may stand in a module beside the driver's script: the actor must know that place before
    the object is unpacked. It comes last, so that a file of the user's takes no library's place.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)

    def __reduce__(self) -> tuple[Callable[..., Mapping[str, Any]], tuple[bytes, list[str]]]:
        return arrived, (cloudpickle.dumps(self._given), module_path())  # type: ignore[no-untyped-call]


def arrived(packed: bytes, places: Sequence[str]) -> Mapping[str, Any]:
    """What `Parts` becomes in an actor."""
    sys.path.extend(place for place in dict.fromkeys(places) if place not in sys.path)
    given: Mapping[str, Any] = cloudpickle.loads(packed)
    return given
