"""The buffer's actor, called directly."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from asyncdgl.batch import PassName, Provenance
from asyncdgl.config_file import parse_config


class Payload(dict[str, Any]):
    """Arrays that a weak reference can point to."""


def test_what_was_given_stays_until_the_reader_has_fetched_it(cluster) -> None:
    """A run on a busy machine lost an entry that left the buffer between its sampling and its fetching."""
    # Ray reads its settings when it is imported: only once the cluster's are made.
    from asyncdgl.runtime.ray_actors import BufferActor

    buffer = BufferActor(parse_config({"buffer": {"size": 1, "prefetch": 2}}), 1, None)
    alive: list[weakref.ref[Payload]] = []

    async def insert_and_sample(step: int) -> None:
        payload = Payload()
        alive.append(weakref.ref(payload))
        await buffer.insert(Provenance(PassName(1, 0, step), step, True, step), payload, 8, 0.0, 1.0, [])
        reply = await buffer.sample(0.0, False)
        assert reply.sample is not None
        assert reply.sample.source.name.step == step

    async def script() -> None:
        for step in range(8):
            await insert_and_sample(step)

    asyncio.run(script())
    gc.collect()
    held = [step for step, reference in enumerate(alive) if reference() is not None]
    # The one in the buffer, and with a prefetch of two the last four that were given: it is one of those.
    assert held == [4, 5, 6, 7]
