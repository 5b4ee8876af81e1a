"""How this process computes: threads, memory, deterministic algorithms."""

from __future__ import annotations

import contextlib
import ctypes

from asyncdgl.config.resolved import ResolvedConfig


def set_up_torch(config: ResolvedConfig, stage: int | None = None) -> None:
    """Threads and, on a GPU, deterministic algorithms: what the bits of a run depend on.

    Args:
        config: the run.
        stage: the only stage that this process computes, if there is but one.
    """
    import torch

    torch.set_num_threads(config.threads if stage is None else config.threads_of(stage))
    keep_freed_memory()
    if config.device == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees: every pass needs as much again.

    Otherwise glibc gives each pass's activations back to the system, which has to clear the same pages for the next
    one: 10 to 30 % of the time where two processes compute (experiments/throughput). No effect on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()  # raises AttributeError where it is another one
        for parameter, value in _MALLOC.items():
            libc.mallopt(parameter, value)


# M_MMAP_THRESHOLD (its largest value), M_TRIM_THRESHOLD (never) and M_TOP_PAD of malloc.h
_MALLOC = {-3: 32 << 20, -1: 2**31 - 1, -2: 64 << 20}
