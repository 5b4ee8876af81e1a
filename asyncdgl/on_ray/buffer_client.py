"""A buffer as its producer or its reader sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from asyncdgl.buffers.entry import PassName, Provenance
from asyncdgl.on_ray.transport.calls import Call, Calls
from asyncdgl.on_ray.transport.memory import Stored

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Arrays


class BufferClient:
    """A buffer as its producer or its reader sees it.

    Args:
        actor: its handle.

    Attributes:
        memory: see ``Calls``.
    """

    def __init__(self, actor: Any) -> None:
        self._calls = Calls(actor)
        self.memory = self._calls.memory

    def close(self) -> None:
        """See ``Calls``."""
        self._calls.close()

    def begin(self, life: int, following: PassName) -> None:
        """See ``BufferActor``."""
        self._calls.ask("begin", life, following)

    def begin_reading(self, number: int) -> tuple[int, int]:
        """See ``BufferActor``."""
        return cast("tuple[int, int]", self._calls.ask("begin_reading", number))

    def sent_until(self, incarnation: int) -> int:
        """See ``Link``."""
        return cast(int, self._calls.ask("sent_until", incarnation))

    def sample(self, number: int, now: float, mapped: bool) -> Call:
        """See ``BufferActor``; the answer is a ``Reply``."""
        return self._calls.call("sample", number, now, mapped)

    def wait(self, now: float, starts: int) -> None:
        """See ``BufferActor``."""
        self._calls.ask("wait", now, starts)

    def reserve(self, life: int, name: PassName, wait: bool) -> bool:
        """See ``BufferActor``."""
        return cast(bool, self._calls.ask("reserve", life, name, wait))

    def places(self, life: int, nbytes: int, count: int) -> list[int]:
        """See ``BufferActor``."""
        return cast("list[int]", self._calls.ask("places", life, nbytes, count))

    def insert(
        self,
        life: int,
        source: Provenance,
        payload: Stored | Arrays,
        nbytes: int,
        now: float,
        unit: float,
        dropped: list[int],
    ) -> Call:
        """See ``BufferActor``; the answer is the place of the next entry, or None."""
        return self._calls.call("insert", life, source, payload, nbytes, now, unit, dropped)

    def drop(self, life: int, names: list[PassName]) -> None:
        """See ``BufferActor``."""
        self._calls.ask("drop", life, names)
