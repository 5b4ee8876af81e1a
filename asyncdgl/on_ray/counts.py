"""The books of a run's buffers, as their processes say them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from asyncdgl.engine.history import books
from asyncdgl.errors import StageFailed
from asyncdgl.on_ray.results import left, once_there
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.records import BufferSummary


def count_buffers(
    buffers: Mapping[int, Any],
    outcome: Outcome,
    read_by: Callable[[int], Any],
    get: Callable[..., Any],
    doing: str,
    limit_s: float,
) -> None:
    """Once everything that was sent has been taken; a buffer that can't say them any more has none.

    Args:
        buffers: by the stage before each.
        outcome: where they go; what is there and can't be said again stays.
        read_by: what a stage has read, see ``History.read``.
        get: the result of a call, see ``result``.
        doing: what the run does, for its errors.
        limit_s: for all of them.
    """
    told = {buffer.after_stage: buffer for buffer in outcome.buffers}
    calls = {j: buffer.statistics.remote() for j, buffer in buffers.items()}
    deadline = time.monotonic() + limit_s
    for j, ref in calls.items():
        with contextlib.suppress(TimeoutError, StageFailed):
            get_one = partial(get, who=f"buffer {j}", doing=doing, timeout=left(deadline))
            counts = once_there(ref, buffers[j].statistics.remote, get_one, deadline)
            if (producer := outcome.ends.get(j)) is not None:
                counts = books(counts, producer.passes, read_by(j + 1))
            reader = outcome.ends.get(j + 1)
            used = reader.passes if reader is not None else counts["sampled"]
            counts["sampled"] = max(counts["sampled"], used)  # it may be there since its reader's last sampling
            told[j] = BufferSummary(after_stage=j, **counts, fetched_unused=counts["sampled"] - used)
    outcome.buffers[:] = [told[j] for j in sorted(told)]
