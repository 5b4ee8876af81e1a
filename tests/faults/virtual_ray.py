"""What asyncdgl uses of Ray, in a world: actors, calls, their results and errors, and actors that start again."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import reprlib
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

from faults.loop import VirtualLoop
from faults.world import Process, World
from greenlet import GreenletExit
from ray import exceptions

from asyncdgl.on_ray.parts import Parts

NODE = "10.0.0.1"
_PLAIN = (type(None), bool, int, float, str)


def copied(value: Any) -> Any:
    """As it arrives in another process."""
    return value if isinstance(value, _PLAIN) else pickle.loads(pickle.dumps(value, 5))


class Ref:
    """The result of a call, for who made it."""

    def __init__(self, owner: Process) -> None:
        self.owner = owner
        self.done = False
        self._value: Any = None
        self._error: Exception | None = None
        self._told: list[Callable[[], None]] = []

    def settle(self, value: Any, error: Exception | None = None) -> None:
        if not self.done:
            self.done, self._value, self._error = True, value, error
            for told in self._told:
                told()
            self._told.clear()

    def when_done(self, told: Callable[[], None]) -> None:
        if self.done:
            told()
        else:
            self._told.append(told)

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        world, owner = self.owner.world, self.owner
        self.when_done(lambda: world.post(owner, 0.0, _set, loop, future))
        yield from future
        return self.result()


def _set(loop: VirtualLoop, future: asyncio.Future[Any]) -> None:
    if not future.done():
        loop.within(future.set_result, None)


class Call:
    """One call on its way to an actor.

    Attributes:
        producer: of a buffer: which life of its producer wrote there as the call began.
    """

    def __init__(self, ref: Ref, method: str, args: tuple[Any, ...]) -> None:
        self.ref, self.method, self.args = ref, method, args
        self.producer = -1


class Actor:
    """An actor, through all of its processes.

    Attributes:
        state: starting, alive, restarting, dead.
        instance: the object, in the present process.
        processes: how many there have been.
    """

    def __init__(self, ray: VirtualRay, cls: type, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.ray, self.cls, self.options = ray, cls, options
        self.args = tuple(dict(arg._given) if isinstance(arg, Parts) else arg for arg in args)
        self.is_async = inspect.iscoroutinefunction(cls.hello)  # type: ignore[attr-defined]
        self.name = _name(cls, args)
        self.restarts = options.get("max_restarts", 0) == -1
        self.state, self.why = "starting", ""
        self.instance: Any = None
        self.loop: VirtualLoop | None = None
        self.process: Process | None = None
        self._early: list[Call] = []
        self._calls: deque[Call] = deque()
        self._unanswered: dict[Call, None] = {}  # in the order in which they came
        self._last: dict[int, float] = {}
        self.processes = 0
        self._error: Exception | None = None
        self._is_cut_off = False
        ray.world.post(None, ray.start_s(), self._begin)

    # --- Processes

    def _begin(self) -> None:
        if self.state == "dead":
            return
        self.process = process = Process(self.ray.world, self.name)
        self.processes += 1
        process.at_death.append(partial(self._died, process))
        if self.is_async:
            self.loop = process.loop = VirtualLoop(process, partial(self.ray.after_turn, self))
            self.ray.world.post(process, 0.0, self.loop.within, self._construct)
        else:
            process.begin(self._serve)

    def _construct(self) -> None:
        self.instance = self.cls(*self.args)
        self.state = "alive"
        self.ray.world.tell(f"{self.name} is there, as {self.process.pid}")  # type: ignore[union-attr]
        early, self._early = self._early, []
        for call in early:
            self._receive(call)

    def _serve(self) -> None:
        world, process = self.ray.world, self.process
        try:
            self._construct()
        except Exception as error:
            cause = exceptions.RayTaskError(
                "__init__", "".join(traceback.format_exception(error)), error, "virtual", 1, NODE
            )
            self._error = exceptions.ActorDiedError(cause)
            world.post(None, 0.0, world.kill, process)
            world.block()
        while True:
            while not self._calls:
                world.block(None, self)
            call = self._calls.popleft()
            value, error = None, None
            try:
                value = copied(getattr(self.instance, call.method)(*call.args))
            except Exception as raised:
                error = _task_error(call.method, raised)
            world.breathe()
            self._answer(call, value, error)

    def _died(self, process: Process) -> None:
        if process is not self.process:
            return
        if self.state != "dead":
            self.state, self.why = ("restarting", "it restarts") if self.restarts else ("dead", "its process died")
            if self.restarts:
                self.ray.world.post(None, 0.05 + self.ray.start_s(), self._begin)
        self.instance = self.loop = None
        self._calls.clear()
        self.give_up()

    def give_up(self) -> None:
        """Who waits for an answer of this process learns that there is none."""
        for call in [*self._unanswered, *self._early]:
            self._refuse(call)
        self._unanswered.clear()
        self._early.clear()

    def error(self) -> Exception:
        if self.state == "dead":
            return self._error or exceptions.ActorDiedError()
        return exceptions.ActorUnavailableError(self.why, None)

    def _refuse(self, call: Call) -> None:
        delay = 0.01 + 0.3 * self.ray.world.random.random() ** 2
        self.ray.world.post(None, delay, call.ref.settle, None, self.error())

    def die(self, for_good: bool) -> None:
        """As Ray kills it."""
        if for_good:
            self.state, self.why = "dead", "it was killed"
        if self.process is not None and self.process.alive and not self._is_cut_off:
            self.ray.world.kill(self.process)
        else:
            self.give_up()

    def cut_off(self, seconds: float) -> None:
        """Ray takes it for dead, and it lives on for a while."""
        world, process = self.ray.world, self.process
        world.tell(f"{self.name} is taken for dead, and lives on for {seconds:.2f} s")
        self.state, self.why, self._is_cut_off = "dead", "it does not answer", True
        self.give_up()
        if process is not None:
            world.post(None, seconds, world.kill, process)

    # --- Calls

    def submit(self, method: str, args: tuple[Any, ...]) -> Ref:
        world = self.ray.world
        caller = world.current
        if caller is None:
            raise RuntimeError("nobody calls")
        if world.tells:
            world.tell(f"{caller.name} -> {self.name}: {method}{reprlib.repr(args)}")
        if method == "take_place":
            self.name = f"stage {args[0].number}"
        ref = Ref(caller)
        call = Call(ref, method, copied(args) if args else args)
        arrives = max(world.now + 0.0002 + world.latency(), self._last.get(caller.pid, 0.0) + 1e-7)
        self._last[caller.pid] = arrives
        world.post(None, arrives - world.now, self._arrive, call)
        world.breathe()
        return ref

    def _arrive(self, call: Call) -> None:
        if not call.ref.owner.alive and self.ray.world.random.random() < 0.5:
            return  # it had not left its process
        if self.state == "starting":
            self._early.append(call)
        elif self.state == "alive":
            self._receive(call)
        else:
            self._refuse(call)

    def _receive(self, call: Call) -> None:
        self._unanswered[call] = None
        self.ray.world.post(self.process, 0.0, self._take, call)

    def _take(self, call: Call) -> None:
        if self.loop is not None:
            self.loop.create_task(self._run(call))
        else:
            self._calls.append(call)
            self.ray.world.wake(self.process, self)  # type: ignore[arg-type]

    async def _run(self, call: Call) -> None:
        value, error = None, None
        call.producer = getattr(self.instance, "_producer", -1)
        try:
            value = copied(await getattr(self.instance, call.method)(*call.args))
        except Exception as raised:
            error = _task_error(call.method, raised)
        else:
            self.ray.after_call(self, call)
        self._answer(call, value, error)

    def _answer(self, call: Call, value: Any, error: Exception | None) -> None:
        if call in self._unanswered:
            del self._unanswered[call]
            world = self.ray.world
            world.post(None, 0.0002 + world.latency(), call.ref.settle, value, error)


def _task_error(method: str, raised: Exception) -> Exception:
    text = "".join(traceback.format_exception(raised))
    return exceptions.RayTaskError(method, text, raised, "virtual", 1, NODE).as_instanceof_cause()


def _name(cls: type, args: tuple[Any, ...]) -> str:
    names = {"PaceActor": "the pace keeper", "EvaluationActor": "the evaluator"}
    if cls.__name__ in names:
        return names[cls.__name__]
    return "a stage" if cls.__name__ == "StageActor" else f"buffer {args[1]}"


class Handle:
    """An actor as others see it, in any process."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def __reduce__(self) -> tuple[Callable[[int], Handle], tuple[int]]:
        _ACTORS[id(self._actor)] = self._actor
        return _handle, (id(self._actor),)

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        return SimpleNamespace(remote=lambda *args: self._actor.submit(method, args))


_ACTORS: WeakValueDictionary[int, Actor] = WeakValueDictionary()


def _handle(number: int) -> Handle:
    return Handle(_ACTORS[number])


class VirtualRay:
    """Takes the place of the module ``ray``."""

    exceptions = exceptions
    util = SimpleNamespace(get_node_ip_address=lambda: NODE)

    def __init__(
        self, world: World, after_turn: Callable[[Actor], None], after_call: Callable[[Actor, Call], None]
    ) -> None:
        self.world, self.after_turn, self.after_call = world, after_turn, after_call
        self.actors: list[Actor] = []

    def start_s(self) -> float:
        """How long a process takes to start."""
        return 0.05 + 0.6 * self.world.random.random() ** 2

    def remote(self, cls: type) -> Any:
        def make(options: Mapping[str, Any], *args: Any) -> Handle:
            actor = Actor(self, cls, args, options)
            self.actors.append(actor)
            return Handle(actor)

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=partial(make, options)))

    def get_actor(self, name: str) -> Handle:
        return Handle(next(actor for actor in self.actors if actor.options.get("name") == name))

    def kill(self, handle: Handle, no_restart: bool = True) -> None:
        actor, world = handle._actor, self.world
        if no_restart:
            actor.state, actor.why = "dead", "it was killed"
        world.post(None, world.latency(), actor.die, no_restart)

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        if not self.wait([ref], timeout=timeout)[0]:
            raise exceptions.GetTimeoutError("no answer in time")
        return ref.result()

    def wait(
        self, refs: Sequence[Ref], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Ref], list[Ref]]:
        world = self.world
        process = world.current
        if process is None or process.strand is None:
            raise RuntimeError("only a strand can wait for a result")
        if not process.alive:
            raise GreenletExit
        until = None if timeout is None else world.now + timeout
        mark = object()
        told = False
        while sum(ref.done for ref in refs) < num_returns and (until is None or world.now < until):
            if not told:
                for ref in refs:
                    if not ref.done:
                        ref.when_done(lambda: world.wake(process, mark))
                told = True
            world.block(until, mark)
        done = [ref for ref in refs if ref.done][:num_returns]
        return done, [ref for ref in refs if ref not in done]
