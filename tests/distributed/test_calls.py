"""Calls between actors, over a socket and through Ray: the same answers and errors."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from asyncdgl.errors import SampleBlocked

SETTINGS = {"socket": {}, "Ray": {"ASYNCDGL_CALLS_THROUGH_RAY": "1"}}


class Called:
    """An actor with a few methods."""

    def __init__(self) -> None:
        from asyncdgl.on_ray.transport.calls import Answers

        self._answers = Answers(self)
        self._open = asyncio.Event()
        self._order: list[int] = []

    async def address(self) -> tuple[str, str | None]:
        return self._answers.listen()

    async def through_ray(self, life: str, method: str, args: tuple[Any, ...]) -> Any:
        return await self._answers.through_ray(life, method, args)

    async def pid(self) -> int:
        return os.getpid()

    async def echo(self, *values: Any) -> tuple[Any, ...]:
        return values

    async def note(self, number: int) -> None:
        self._order.append(number)

    async def noted(self) -> list[int]:
        return self._order

    async def wait(self) -> str:
        await self._open.wait()
        return "opened"

    async def open(self) -> None:
        self._open.set()

    async def large(self, size: int) -> bytes:
        return bytes(size)

    async def fail(self, reason: str) -> None:
        raise SampleBlocked(reason)


@pytest.fixture(params=SETTINGS)
def calls(request, cluster) -> Any:
    import ray

    from asyncdgl.on_ray.transport.calls import Calls

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # an actor can't import tests
    options = {"num_cpus": 0, "max_concurrency": 10, "runtime_env": {"env_vars": SETTINGS[request.param]}}
    actor = ray.remote(Called).options(**options).remote()
    calls = Calls(actor)
    assert calls.is_local == (request.param == "socket")
    yield calls
    ray.kill(actor)


@pytest.mark.ray
def test_answers_come_to_their_calls(calls) -> None:
    assert calls.ask("echo", 1, "two", [3.0]) == (1, "two", [3.0])
    several = [calls.call("echo", n) for n in range(50)]
    assert [call.get() for call in reversed(several)] == [(n,) for n in reversed(range(50))]


@pytest.mark.ray
def test_calls_begin_in_order(calls) -> None:
    if not calls.is_local:
        pytest.skip("Ray may swap calls to an async actor: buffers sort what comes, and every answer knows its call")
    for call in [calls.call("note", n) for n in range(100)]:
        call.get()
    assert calls.ask("noted") == list(range(100))


@pytest.mark.ray
def test_a_call_that_waits_holds_no_other(calls) -> None:
    waiting = calls.call("wait")
    assert calls.ask("echo", 1) == (1,)
    assert not waiting.is_done()
    calls.ask("open")
    deadline = time.monotonic() + 10
    while not waiting.is_done():
        assert time.monotonic() < deadline
    assert waiting.get() == "opened"


@pytest.mark.ray
def test_what_a_method_raises_is_raised(calls) -> None:
    with pytest.raises(SampleBlocked, match="empty") as failure:
        calls.ask("fail", "empty")
    if calls.is_local:
        assert "in fail" in failure.value.__notes__[0]
    assert calls.ask("echo") == ()


@pytest.mark.ray
def test_an_answer_that_is_too_large_is_an_error_and_not_a_wait_for_ever(calls) -> None:
    if not calls.is_local:
        pytest.skip("Ray sends anything")
    with pytest.raises(RuntimeError, match=r"large can't be sent: 10000\d* bytes"):
        calls.ask("large", 10_000_000)
    with pytest.raises(ValueError, match="a message may have"):
        calls.ask("echo", bytes(10_000_000))
    assert calls.ask("echo", 1) == (1,)


@pytest.mark.ray
def test_a_large_message(calls) -> None:
    """As large as the largest that is sent: the names of many dropped entries."""
    from asyncdgl.buffers.entry import PassName
    from asyncdgl.on_ray.ends import DROPS_AT_ONCE

    names = [PassName(1, 0, 10**9 + n) for n in range(DROPS_AT_ONCE)]
    assert calls.ask("echo", names) == (names,)


@pytest.mark.ray
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_dead_actor_is_rays_error(calls, when) -> None:
    import ray

    pid = calls.ask("pid")
    waiting = calls.call("wait") if when == "during" else None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        waiting.get() if waiting else calls.ask("echo")


@pytest.mark.ray
def test_another_user_is_refused(calls) -> None:
    """Only root can try, as somebody else."""
    import ray

    if not calls.is_local or os.geteuid() != 0:
        pytest.skip("needs a socket, and another user")
    _, name = ray.get(calls._actor.address.remote())
    script = f"""
import os, socket
os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(5)
s.connect({name!r})
print(repr(s.recv(10)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "b''\n", done.stderr
