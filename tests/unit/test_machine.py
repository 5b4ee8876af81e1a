"""What `auto` comes to: bfloat16 where the hardware is fast at it and the network large enough to gain."""

from __future__ import annotations

import pytest

from asyncdgl.config_file import parse_config
from asyncdgl.runtime.machine import bf16_gains

LARGE = {"data": {"dataset": "cifar10"}, "model": {"width": 32}}


@pytest.mark.parametrize(
    ("tree", "flags", "gains"),
    [
        pytest.param(LARGE, {"avx512_bf16"}, True, id="large"),
        pytest.param(LARGE, {"amx_bf16", "avx2"}, True, id="amx"),
        pytest.param(LARGE, {"avx512f", "avx512_vnni"}, False, id="emulated"),
        pytest.param(LARGE, set(), False, id="unknown"),
        pytest.param({}, {"avx512_bf16"}, False, id="digits-are-too-small"),
        pytest.param({**LARGE, "batch_size": 2}, {"avx512_bf16"}, False, id="so-are-tiny-batches"),
        pytest.param(
            {**LARGE, "runtime": "virtual", "virtual": {"train": False}}, {"amx_bf16"}, False, id="nothing-computed"
        ),
    ],
)
def test_bfloat16_on_a_cpu(tree, flags, gains) -> None:
    assert bf16_gains(parse_config(tree), flags) is gains
