"""The sockets, shared memory and clock that asyncdgl's actors use, in a world."""

from __future__ import annotations

import mmap as real_mmap
import os as real_os
import pickle
import reprlib
import struct
from collections import deque
from collections.abc import Sequence

from faults.world import Process, World


class Clock:
    """Takes the place of the module ``time``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.sleep = world.sleep

    def monotonic(self) -> float:
        return self._world.now

    perf_counter = monotonic


class Endpoint:
    """A socket, or one that listens."""

    def __init__(self, sockets: Sockets, owner: Process) -> None:
        self._sockets, self.owner = sockets, owner
        self.peer: Endpoint | None = None
        self.name = ""
        self._inbox: deque[tuple[bytes, list[int]]] = deque()
        self._queue: deque[Endpoint] = deque()
        self._last = 0.0
        self._open, self.blocking = True, True
        owner.at_death.append(self._dies)

    @property
    def waiting(self) -> int:
        """Messages, or connections, that have come."""
        return len(self._inbox) + len(self._queue)

    # --- As the actor has it

    def setblocking(self, blocking: bool) -> None:
        self.blocking = blocking

    def bind(self, name: str) -> None:
        self.name = name

    def listen(self) -> None:
        self._sockets.listeners[self.name] = self

    def accept(self) -> tuple[Endpoint, None]:
        return self._queue.popleft(), None

    def connect(self, name: str) -> None:
        self._sockets.world.breathe()
        listener = self._sockets.listeners.get(name)
        if listener is None or not listener.owner.alive:
            raise ConnectionRefusedError
        other = Endpoint(self._sockets, listener.owner)
        self.peer, other.peer = other, self
        listener._queue.append(other)
        listener.notify()

    def getsockopt(self, *_: int) -> bytes:
        return struct.pack("3i", 1, real_os.geteuid(), 0)

    def fileno(self) -> int:
        return 3 if self._open else -1

    def sendall(self, message: bytes) -> None:
        self.transmit(message, [])

    send = sendall

    def transmit(self, message: bytes, descriptors: Sequence[int]) -> None:
        peer, world = self.peer, self._sockets.world
        if peer is None or not peer._open or not self._open or not self.owner.alive:
            raise BrokenPipeError
        if world.tells:
            world.tell(f"{self.owner.name} -> {peer.owner.name}: {_described(message)}")
        arrives = self._last = max(world.now + world.latency(), self._last + 1e-9)
        world.post(None, arrives - world.now, peer._arrives, message, list(descriptors))
        world.breathe()

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self.receive(flags)[0]

    def receive(self, flags: int) -> tuple[bytes, list[int]]:
        while not self._inbox:
            if not self.blocking or flags:
                raise BlockingIOError
            self._sockets.world.block(None, self)
        if not self._inbox[0][0]:
            return self._inbox[0]  # who has hung up stays so
        return self._inbox.popleft()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._hang_up(lose=False)

    # --- As the world has it

    def _arrives(self, message: bytes, descriptors: list[int]) -> None:
        if self._open and self.owner.alive and not (self._inbox and not self._inbox[-1][0]):
            self._inbox.append((message, descriptors))
            self.notify()

    def notify(self) -> None:
        """Something has come: tell who waits for it."""
        if self.owner.strand is not None:
            self._sockets.world.wake(self.owner, self)
        else:
            self._sockets.world.post(self.owner, 0.0, self.owner.loop.readable, self)

    def _dies(self) -> None:
        if self._open:
            self._open = False
            if self.name:
                self._sockets.listeners.pop(self.name, None)
            self._hang_up(lose=self._sockets.world.random.random() < 0.5)
        for waiting in self._queue:
            waiting._dies()

    def _hang_up(self, lose: bool) -> None:
        """The other end hears of it; what is on the way may be lost."""
        peer, world = self.peer, self._sockets.world
        if peer is not None and peer._open:
            if lose:
                peer._arrives(b"", [])
            else:
                world.post(None, max(world.latency(), self._last + 1e-9 - world.now), peer._arrives, b"", [])


def _described(message: bytes) -> str:
    """A message, for a person."""
    if message == b"\0":
        return "connected"
    number, *rest = pickle.loads(message)
    return f"{number}: {reprlib.repr(tuple(rest))}"


class Sockets:
    """Takes the place of the module ``socket``."""

    AF_UNIX, SOCK_SEQPACKET, SOL_SOCKET, SO_PEERCRED, MSG_CTRUNC, MSG_DONTWAIT = 1, 5, 1, 17, 8, 64

    def __init__(self, world: World) -> None:
        self.world = world
        self.listeners: dict[str, Endpoint] = {}

    def socket(self, *_: int) -> Endpoint:
        if self.world.current is None:
            raise RuntimeError("nobody opens a socket")
        return Endpoint(self, self.world.current)

    @staticmethod
    def send_fds(connection: Endpoint, buffers: Sequence[bytes], descriptors: Sequence[int]) -> None:
        connection.transmit(buffers[0], descriptors)

    @staticmethod
    def recv_fds(connection: Endpoint, size: int, most: int) -> tuple[bytes, list[int], int, None]:
        message, descriptors = connection.receive(0)
        return message, descriptors, 0, None


class System:
    """Takes the place of the modules ``os`` and ``mmap`` where entries and connections are."""

    MFD_CLOEXEC, PROT_READ, PROT_WRITE, MAP_SHARED = 0, 1, 2, 4
    ALLOCATIONGRANULARITY = real_mmap.ALLOCATIONGRANULARITY

    def __init__(self, world: World, through_ray: bool) -> None:
        self._world = world
        self._files: dict[int, dict[int, bytearray]] = {}
        self.environ = {"ASYNCDGL_CALLS_THROUGH_RAY": "1"} if through_ray else {}

    def getpid(self) -> int:
        return self._world.current.pid if self._world.current is not None else 0

    def geteuid(self) -> int:
        return real_os.geteuid()

    def close(self, descriptor: int) -> None:
        pass

    def memfd_create(self, name: str, flags: int) -> int:
        self._files[len(self._files)] = {}
        return len(self._files) - 1

    def posix_fallocate(self, descriptor: int, place: int, nbytes: int) -> None:
        self._files[descriptor][place] = bytearray(nbytes)

    def mmap(self, descriptor: int, nbytes: int, flags: int, protection: int, offset: int) -> memoryview:
        view = memoryview(self._files[descriptor][offset])[:nbytes]
        return view if protection & self.PROT_WRITE else view.toreadonly()

    def kill(self, pid: int, _: int) -> None:
        """Ends it a moment later, since who kills goes on until it waits."""
        process = self._world.processes.get(pid)
        if process is None:
            raise ProcessLookupError
        self._world.post(None, 0.0001, self._world.kill, process)
