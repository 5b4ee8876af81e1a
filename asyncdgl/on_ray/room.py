"""Whether shared memory still has the room that Ray's object store counts on.

The store takes pages only when it writes to them. Where others have filled `/dev/shm` meanwhile, the system ends Ray's
own process at the next object, and Ray then ends every process of the run, this one included, without a word.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from asyncdgl.errors import NoRoom
from asyncdgl.on_ray.cluster import LEAST_STORE_BYTES, SHARED_MEMORY

ENOUGH_BYTES = 16_000_000


class Room:
    """Looks after it.

    Args:
        check: called first, each time.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        free = _free_bytes()
        # The store leaves a tenth of what was free when it began. Where that was too little, it lies on the disk.
        self._least = min(ENOUGH_BYTES, free // 20) if free is not None and free >= LEAST_STORE_BYTES else None

    def check(self) -> None:
        """Called often.

        Raises:
            NoRoom: others have filled shared memory.
        """
        self._check()
        free = _free_bytes() if self._least is not None else None
        if self._least is not None and free is not None and free < self._least:
            raise NoRoom(
                f"{SHARED_MEMORY} is full ({free / 1e6:.0f} MB left), and Ray needs it to move weights: free some of "
                "it, or give the container more (docker run --shm-size)"
            )


def _free_bytes() -> int | None:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None
