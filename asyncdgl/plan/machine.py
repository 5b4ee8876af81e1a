"""What ``auto`` comes to on this machine."""

from __future__ import annotations

import contextlib
import os
from itertools import takewhile
from pathlib import Path
from typing import Literal

from asyncdgl.config.model import RunConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.shape import conv_shapes
from asyncdgl.plan.limits import cores_allowed

DEVICES = Path("/dev")

FAST_BF16 = {"amx_bf16", "avx512_bf16"}
"""CPUs that multiply bfloat16 faster than float32; others emulate it."""

WORTH_BF16 = 30e6
"""Multiply-adds of a block's forward pass over a mini-batch from which bfloat16 gains more than its casts cost: 1.1 to
1.5 times as fast above, 0.8 to 0.9 below (experiments/throughput)."""


def available_cores() -> int:
    """Cores that this process may use: those that it may run on, or fewer where its container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = cores_allowed()
    return cores if allowed is None else max(1, min(cores, int(allowed)))


def wanted_address(configured: str | None) -> str | None:
    """The Ray cluster to join: ``--address``, else ``RAY_ADDRESS``; None to start a local one.

    ``auto`` is the one that `ray start` started or joined on this machine last, and stays ``auto`` where there is none.
    """
    address = configured if configured is not None else os.environ.get("RAY_ADDRESS") or None
    if address == "auto":
        with contextlib.suppress(OSError):
            started = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
            address = started.read_text(encoding="utf-8").strip() or address
    return None if address == "local" else address


def threads_here(asked: RunConfig) -> int:
    """CPU threads of each stage. Stages in processes of their own share the cores; in one process they take turns."""
    if asked.threads != "auto":
        return asked.threads
    return max(1, available_cores() // asked.stages) if asked.runtime == "ray" else available_cores()


def device_here(asked: RunConfig) -> Literal["cpu", "cuda"]:
    """Where the stages compute.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    has_gpu = visible_gpus() > 0
    if asked.device == "cuda" and not has_gpu and wanted_address(asked.ray.address) is None:
        raise ConfigError("device cuda: this machine has no NVIDIA GPU; use --device cpu")
    return ("cuda" if has_gpu else "cpu") if asked.device == "auto" else asked.device


def precision_here(asked: RunConfig, device: Literal["cpu", "cuda"]) -> Literal["float32", "bf16"]:
    """Of the arithmetic on this device."""
    if asked.precision != "auto":
        return asked.precision
    return "bf16" if device == "cuda" or bf16_gains(asked, cpu_flags()) else "float32"


def visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without torch, which takes seconds to import."""
    here = len(list(DEVICES.glob("nvidia[0-9]*")))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return here
    names = (name.strip() for name in listed.split(","))
    # As CUDA reads it: what is none ends the list. Names of another kind than numbers are taken for GPUs that are here.
    known = takewhile(lambda name: int(name) < here if name.isdecimal() else name not in ("", "-1"), names)
    return min(here, len(list(known)))


def bf16_gains(config: RunConfig, flags: set[str]) -> bool:
    """Whether a CPU with these feature flags trains this network faster in bfloat16."""
    if not config.has_tensors or not FAST_BF16 & flags:
        return False
    model, pixels = config.model, config.data.image_size
    if model.name == "conv":
        shapes = conv_shapes((3, pixels, pixels), model.blocks, model.width, model.downsample)
        counts = [9 * s.in_features * s.features * s.height * s.width for s in shapes]
    else:
        from asyncdgl.data.cache import data_shape
        from asyncdgl.nets.cost import block_multiply_adds

        counts = [count for count in block_multiply_adds(model, *data_shape(config.data)) if count]
    return sum(counts) * config.batch_size >= WORTH_BF16 * len(counts) > 0


def cpu_flags() -> set[str]:
    """Feature flags of this machine's CPU, where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
