"""Calls from one actor to another: over a socket where both are on one machine, otherwise through Ray.

A message of Ray takes about a millisecond of processor time at each end, one of a socket a tenth of that: with small
stages on few cores that is the difference between training and talking. Ray still starts, places and watches the
actors, and carries what crosses machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import secrets
import socket
import struct
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import ray

THROUGH_RAY = "ASYNCDGL_CALLS_THROUGH_RAY"
"""Set to 1, everything goes through Ray also on one machine: for tests and for measuring."""

LARGEST = 200_000
"""Bytes of a message at most: a little less than what a socket takes at once by Linux's default."""

RESTART_LIMIT_S = 60.0
"""How long a process that died may take to be there again."""

_GREETING = b"\0"


class Lost(ConnectionError):
    """The process that was called has died. Another one takes its place, and knows nothing of what was said."""


# --- Who is called ----------------------------------------------------------------------------------------------------


class Answers:
    """Serves the coroutines of an async actor to processes of this machine.

    The socket has no file and no port, takes nobody but this process's user, and is gone with the process.

    Args:
        actor: whose public methods are called.
        memory: a file descriptor that every caller gets, if it is to share memory.
    """

    def __init__(self, actor: Any, memory: int | None = None) -> None:
        self._actor = actor
        self._memory = memory
        self._listener: socket.socket | None = None
        self._name = ""
        self._life = secrets.token_hex(16)  # another one for each process of the actor
        self._running: set[asyncio.Task[None]] = set()  # the loop itself forgets tasks that nobody holds

    def listen(self) -> tuple[str, str | None]:
        """This process's life, and where callers connect. Call it in the actor's event loop.

        The second is None where there are no such sockets.
        """
        if not sys.platform.startswith("linux") or os.environ.get(THROUGH_RAY) == "1":
            return self._life, None
        if self._listener is None:
            self._name = "\0asyncdgl-" + secrets.token_hex(16)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.setblocking(False)
            self._listener.bind(self._name)
            self._listener.listen()
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        return self._life, self._name

    async def through_ray(self, life: str, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of the actor, if the caller means this process.

        Raises:
            Lost: it means an earlier one.
        """
        if life != self._life:
            raise Lost
        return await getattr(self._actor, method)(*args)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the caller has gone again
            return
        if not _same_user(connection):
            connection.close()
            return
        try:
            socket.send_fds(connection, [_GREETING], [] if self._memory is None else [self._memory])
        except OSError:
            connection.close()
            return
        connection.setblocking(False)
        asyncio.get_running_loop().add_reader(connection, self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            message = connection.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._hang_up(connection)
            return
        try:
            number, method, args = pickle.loads(message)
        except Exception:  # not what a caller sends; it must not wait for an answer
            self._hang_up(connection)
            return
        task = loop.create_task(self._answer(connection, number, method, args))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, connection: socket.socket, number: int, method: str, args: tuple[Any, ...]) -> None:
        value, error = None, None
        try:
            value = await getattr(self._actor, method)(*args)
        except Exception as raised:
            raised.add_note(traceback.format_exc())  # where it happened: the caller's own traceback doesn't show that
            error = raised
        try:
            message = _packed((number, value, error))
        except Exception as unfit:
            message = _packed((number, None, RuntimeError(f"the answer of {method} can't be sent: {unfit}")))
        try:
            connection.send(message)
        except OSError:  # the caller has died, or has stopped reading
            self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        if connection.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()


# --- Who calls --------------------------------------------------------------------------------------------------------


class Calls:
    """Calls an actor's methods, as long as its process lives: each call raises ``Lost`` after that. For one thread.

    Args:
        actor: its handle. Its method ``address`` gives what ``Answers.listen`` returns, and ``through_ray`` does what
            the method of ``Answers`` does.

    Attributes:
        memory: the file descriptor that the actor shares, where it is on this machine and shares one.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._numbers = itertools.count()
        self._answers: dict[int, tuple[Any, Exception | None]] = {}
        self.memory: int | None = None
        self._life, name = _address(actor)
        self._socket = self._connect(name)

    @property
    def is_local(self) -> bool:
        """Whether calls go over a socket of this machine."""
        return self._socket is not None

    def call(self, method: str, *args: Any) -> Call:
        """Call a method, and don't wait for its answer."""
        if self._socket is None:
            return Call(self, self._actor.through_ray.remote(self._life, method, args))
        number = next(self._numbers)
        message = _packed((number, method, args))
        try:
            self._socket.sendall(message)
        except ConnectionError:
            raise self._lost() from None
        return Call(self, number)

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its answer."""
        return self.call(method, *args).get()

    def close(self) -> None:
        """No more calls: what the actor shared is let go."""
        if self._socket is not None:
            self._socket.close()
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None

    def _connect(self, name: str | None) -> socket.socket | None:
        if name is None:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(name)  # refused on any machine but the actor's
            if not _same_user(connection):
                raise ConnectionRefusedError
            greeting, descriptors, flags, _ = socket.recv_fds(connection, 1, 1)
            if greeting != _GREETING or flags & socket.MSG_CTRUNC:  # no place for the descriptor
                raise ConnectionRefusedError
        except OSError:
            connection.close()
            return None
        self.memory = descriptors[0] if descriptors else None
        return connection

    def _get(self, key: Any) -> Any:
        if self._socket is None:
            try:
                return ray.get(key)
            except ray.exceptions.ActorUnavailableError:
                raise self._lost() from None
            except ray.exceptions.RayTaskError as raised:
                if isinstance(raised.cause, Lost):
                    raise Lost from None
                raise
        while key not in self._answers:
            self._receive(self._socket, 0)
        value, error = self._answers.pop(key)
        if error is not None:
            raise error
        return value

    def _is_done(self, key: Any) -> bool:
        if self._socket is None:
            return bool(ray.wait([key], timeout=0)[0])
        with contextlib.suppress(BlockingIOError):
            while key not in self._answers:
                self._receive(self._socket, socket.MSG_DONTWAIT)
        return key in self._answers

    def _receive(self, connection: socket.socket, flags: int) -> None:
        try:
            message = connection.recv(LARGEST, flags)
        except ConnectionError:
            message = b""
        if not message:
            raise self._lost()
        number, value, error = pickle.loads(message)
        self._answers[number] = value, error

    def _lost(self) -> Lost:
        """The other process has closed its end. Where it is gone for good, Ray's own error says who died and why."""
        _address(self._actor)
        return Lost()


def _address(actor: Any) -> tuple[str, str | None]:
    """See ``Answers.listen``; waits until an actor that died is there again."""
    deadline = time.monotonic() + RESTART_LIMIT_S
    while True:
        try:
            address: tuple[str, str | None] = ray.get(actor.address.remote(), timeout=RESTART_LIMIT_S)
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return address


@dataclass(frozen=True)
class Call:
    """A call that was made."""

    _calls: Calls
    _key: Any

    def get(self) -> Any:
        """Its answer, once; waits for it. What the method raised is raised here."""
        return self._calls._get(self._key)

    def is_done(self) -> bool:
        """Whether the answer is there."""
        return self._calls._is_done(self._key)


def _packed(message: Any) -> bytes:
    packed = pickle.dumps(message)
    if len(packed) > LARGEST:
        raise ValueError(f"{len(packed)} bytes, but a message may have {LARGEST}")
    return packed


def _same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user: nobody else's messages are unpickled."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.geteuid())
