"""The buffer's actor, called directly."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from asyncdgl.buffers.entry import PassName, Provenance
from asyncdgl.buffers.given import Given
from asyncdgl.config.yaml import parse_config
from asyncdgl.plan.resolve import planned

NEXT = 10**9


def provenance(step: int) -> Provenance:
    return Provenance(PassName(1, 0, step), step, True, step)


def make_buffer(**settings: Any) -> Any:
    # Ray reads its settings when it is imported: only once the cluster's are made.
    from asyncdgl.on_ray.buffer import BufferActor

    return BufferActor(planned(parse_config({"buffer": settings})), 1, "pace", {}, 64)


def make_slow_buffer(pace: Any) -> Any:
    """Behind a link whose entries take 10 steps on average, on the profile clock."""
    from asyncdgl.on_ray.buffer import BufferActor

    buffer = BufferActor(parse_config({"seed": 3, "delays": {"profile": "wan"}}), 1, "pace", {}, 64)
    buffer._pace = pace
    return buffer


def test_what_was_given_stays_until_the_reader_has_read_it(cluster) -> None:
    """An entry may leave the buffer before its reader has read what it was given; its place stays."""
    from asyncdgl.on_ray.transport.memory import MappedMemory

    buffer = make_buffer(size=1, prefetch=2)
    buffer._given = Given(4, 0, buffer._forget)  # its reader's checkpoints count at once
    reader = MappedMemory(buffer._memory.descriptor, writable=False)
    read = []

    async def script() -> None:
        for step in range(0, 80, 2):
            await insert(step)
            reply = await buffer.sample(NEXT, 0.0, True)
            assert reply.sample.source.name.step == step
            read.append((step, reader.read(reply.sample.payload)))
            await insert(step + 1)  # takes a place that is free now
            # What a stage with a prefetch of two still uses: this one, and two that it has asked for.
            for number, payload in read[-3:]:
                assert (payload["float32"] == number).all()
                assert (payload["y"] == np.arange(number, number + 3)).all()

    async def insert(step: int) -> None:
        payload = {"float32": np.full(5000, step, np.float32), "y": np.arange(step, step + 3)}
        assert await buffer.insert(0, provenance(step), payload, 1, 0.0, 1.0, []) is None

    asyncio.run(script())
    # One held, four given, one being written: places are used again.
    assert buffer._memory.nbytes <= 6 * 20_480
    assert (read[0][1]["float32"] != 0).all()  # the first one's was: what is read lies in the memory itself


def test_a_producer_writes_where_it_is_told(cluster) -> None:
    from asyncdgl.on_ray.transport.memory import MappedMemory, stored_bytes

    buffer = make_buffer(size=3, sampler="fifo")
    memory = MappedMemory(buffer._memory.descriptor, writable=True)

    async def script() -> None:
        places = await buffer.places(0, stored_bytes({"y": np.zeros(7)}), 2)
        for step in range(20):
            stored = memory.write(places.pop(0), {"y": np.full(7, step, float)})
            places.append(await buffer.insert(0, provenance(step), stored, 1, 0.0, 1.0, []))
            newest = max(0, step - 2)
            reply = await buffer.sample(NEXT, 0.0, True)
            assert (memory.read(reply.sample.payload)["y"] == newest).all()
        assert len(set(places)) == 2

    asyncio.run(script())


def test_a_reader_on_another_machine_gets_the_arrays(cluster) -> None:
    buffer = make_buffer(size=1)

    async def script() -> list[Any]:
        taken = []
        for step in range(3):
            await buffer.insert(0, provenance(step), {"y": np.full(7, step)}, 1, 0.0, 1.0, [])
            taken.append((await buffer.sample(NEXT, 0.0, False)).sample.payload)
        return taken

    for step, payload in enumerate(asyncio.run(script())):
        assert (payload["y"] == step).all()  # also after its place was used again


def test_a_reader_that_waits_on_the_profile_clock_sees_an_entry_that_arrives_sooner(cluster) -> None:
    """It waits for one entry, and another one is sent that will be here before it."""
    asked: list[float] = []

    class Pace:
        """The profile clock stands still: only a sooner entry can end the wait early."""

        class reached:
            @staticmethod
            async def remote(stage: int, due: float, starts: int) -> float:
                asked.append(due)
                await asyncio.sleep(0.15)
                return 0.0

    async def script() -> None:
        buffer = make_slow_buffer(Pace)
        payload = {"y": np.zeros(7)}
        await buffer.insert(
            0, provenance(0), payload, 1, 50.0, 1.0, []
        )  # sent late on its clock: arrives after step 50
        waiting = asyncio.ensure_future(buffer.wait(0.0, 1))
        await asyncio.sleep(0.02)
        assert len(asked) == 1
        assert asked[0] > 50
        await buffer.insert(0, provenance(1), payload, 1, 0.0, 1.0, [])  # overtakes it
        await asyncio.sleep(0.02)
        assert len(asked) == 2, "the reader looks again"
        assert asked[1] < 50
        await waiting

    asyncio.run(script())


def test_a_wait_that_its_stage_has_overtaken_takes_it_out_of_no_pace(cluster) -> None:
    """Stage 2 got another entry and starts its next pass before the keeper hears what it had been waiting for."""
    from asyncdgl.on_ray.pace import Caller, PaceActor

    config = planned(parse_config({"stages": 2, "delays": {"profile": {"window": 1.0}}}))

    async def start_of_stage_1(overtaken: bool) -> float | None:
        pace = PaceActor(config)
        for stage in (1, 2):
            await pace.start(Caller(stage, 0), 0.0)
        await pace.release(Caller(2, 0))
        if overtaken:
            await pace.start(Caller(2, 0), 1.0)
        late = asyncio.ensure_future(pace.reached(2, 30.0, 1))
        await asyncio.sleep(0)
        clock = (await pace.start(Caller(1, 0), 5.0)).clock
        late.cancel()
        return clock

    assert asyncio.run(start_of_stage_1(overtaken=False)) == 5.0, "a stage that waits holds nobody"
    assert asyncio.run(start_of_stage_1(overtaken=True)) is None, "one that computes does"
