"""What ``auto`` comes to on this machine."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path

from asyncdgl.config.model import RunConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.shape import conv_shapes

DEVICES = Path("/dev")

FAST_BF16 = {"amx_bf16", "avx512_bf16"}
"""CPUs that multiply bfloat16 faster than float32; others emulate it."""

WORTH_BF16 = 30e6
"""Multiply-adds of a block's forward pass over a mini-batch from which bfloat16 gains more than its casts cost: 1.1 to
1.5 times as fast above, 0.8 to 0.9 below (experiments/throughput)."""


def on_this_machine(config: RunConfig) -> RunConfig:
    """Everything that ``auto`` leaves open, decided; and paths that don't depend on the working directory.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    has_gpu = visible_gpus() > 0
    if config.device == "cuda" and not has_gpu and config.ray.address is None and "RAY_ADDRESS" not in os.environ:
        raise ConfigError("device cuda: this machine has no NVIDIA GPU; use --device cpu")
    device = ("cuda" if has_gpu else "cpu") if config.device == "auto" else config.device
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" or bf16_gains(config, cpu_flags()) else "float32"
    data = config.data
    if data.data_dir is not None:
        data = data.model_copy(update={"data_dir": os.path.abspath(data.data_dir)})
    return config.model_copy(update={"device": device, "precision": precision, "data": data})


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
        from asyncdgl.data.cache import image_shape
        from asyncdgl.nets.cost import block_multiply_adds

        channels, classes = image_shape(config.data)
        counts = [count for count in block_multiply_adds(model, (channels, pixels, pixels), classes) if count]
    return sum(counts) * config.batch_size >= WORTH_BF16 * len(counts) > 0


def cpu_flags() -> set[str]:
    """Feature flags of this machine's CPU, where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
