"""The actors that Ray starts again by itself, empty: the pace keeper, and buffers whose entries can be done without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray

from asyncdgl.engine.history import Faults
from asyncdgl.errors import NeedsRestart
from asyncdgl.on_ray.results import first_line


class Watch:
    """Notices that such an actor has died, and that it is there again.

    Args:
        actors: by name; each has a method ``live`` that ends when its process does.
        faults: what died is noted there.
        now: seconds since training began.
        is_gone: told of each that died.
        is_there: told of each that is there again: its name and its greeting.
    """

    def __init__(
        self,
        actors: Mapping[str, Any],
        faults: Faults,
        now: Callable[[], float],
        is_gone: Callable[[str], None],
        is_there: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._actors, self._faults, self._now = actors, faults, now
        self._is_gone, self._is_there = is_gone, is_there
        self._lives = {actor.live.remote(): name for name, actor in actors.items()}
        self._greets: dict[Any, str] = {}

    def look(self) -> None:
        """Never waits.

        Raises:
            NeedsRestart: one is dead for good.
        """
        asked = [*self._lives, *self._greets]
        for ref in ray.wait(asked, num_returns=len(asked), timeout=0)[0]:
            if ref in self._lives:
                name = self._lives.pop(ref)
                self._faults.died(name, self._now())
                self._is_gone(name)
            else:
                name = self._greets.pop(ref)
                try:
                    greeting = ray.get(ref)
                except ray.exceptions.ActorUnavailableError:  # it has died again meanwhile
                    pass
                except ray.exceptions.RayError as error:
                    raise NeedsRestart(f"the process of {name} died ({first_line(error)})", name) from None
                else:
                    self._faults.works_again(name, self._now())
                    self._is_there(name, greeting)
                    self._lives[self._actors[name].live.remote()] = name
                    continue
            self._greets[self._actors[name].hello.remote()] = name
