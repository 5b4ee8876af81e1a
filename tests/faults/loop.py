"""An event loop in virtual time: what asyncio needs of one, for the actors that are coroutines."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from faults.world import Process


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs the coroutines of one process.

    Args:
        process: it belongs to.
        after_turn: called after each turn: the process is in a state then that others may see.
    """

    def __init__(self, process: Process, after_turn: Callable[[], None]) -> None:
        self._process, self._world, self._after_turn = process, process.world, after_turn
        self._ready: deque[asyncio.Handle] = deque()
        self._is_posted = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._readers: dict[Any, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._copying: deque[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self.failures: list[str] = []
        process.at_death.append(self.forget)

    def time(self) -> float:
        return self._world.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._process.alive:
            self.failures.append(f"{self._process.name}: {context.get('message')}: {context.get('exception')!r}")

    # --- What is to run

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self._is_posted:
            self._is_posted = True
            self._world.post(self._process, 0.0, self._turn)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._world.post(self._process, max(0.0, when - self._world.now), self._ring, timer)
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self._world.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _ring(self, timer: asyncio.TimerHandle) -> None:
        if not timer.cancelled():
            self._run(timer)
            self._turn()

    def _turn(self) -> None:
        self._is_posted = False
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                self._run(handle)
        if self._ready and not self._is_posted:
            self._is_posted = True
            self._world.post(self._process, 0.0, self._turn)
        self._after_turn()

    def _run(self, handle: asyncio.Handle) -> None:
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            handle._run()
        finally:
            events._set_running_loop(before)

    def within(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call something that asks for the running loop."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            return call(*args)
        finally:
            events._set_running_loop(before)

    # --- Futures, tasks, readers

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **_: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self)
        if len(self._tasks) > 200:
            self._tasks = [kept for kept in self._tasks if not kept.done()]
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        """One thread, which takes its time."""
        future = self.create_future()
        self._copying.append((future, func, args))
        if len(self._copying) == 1:
            self._world.post(self._process, self._world.latency(), self._copy)
        return future

    def _copy(self) -> None:
        future, func, args = self._copying.popleft()
        try:
            value = func(*args)
        except Exception as error:
            self.within(future.set_exception, error)
        else:
            self.within(future.set_result, value)
        if self._copying:
            self._world.post(self._process, self._world.latency(), self._copy)

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        self._readers[fd] = callback, args
        for _ in range(fd.waiting):
            self.call_soon(self._read, fd)

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: Any) -> None:
        """Something has come."""
        if fd in self._readers:
            self.call_soon(self._read, fd)

    def _read(self, fd: Any) -> None:
        if fd in self._readers and fd.waiting:
            callback, args = self._readers[fd]
            callback(*args)

    def forget(self) -> None:
        """The process has died: its coroutines do nothing more, and say nothing of it."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
        self._tasks.clear()
        self._ready.clear()
