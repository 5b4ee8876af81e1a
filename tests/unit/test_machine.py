"""What this machine has, and what `auto` comes to on it."""

from __future__ import annotations

import pytest

from asyncdgl.config.model import RunConfig
from asyncdgl.plan.machine import bf16_gains, visible_gpus, wanted_address

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
    assert bf16_gains(RunConfig.checked(tree), flags) is gains


@pytest.mark.parametrize(
    ("devices", "listed", "gpus"),
    [
        pytest.param([], None, 0, id="none"),
        pytest.param(["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], None, 2, id="two"),
        pytest.param(["nvidia3"], None, 1, id="the-fourth-in-a-container"),
        pytest.param(["nvidia0", "nvidia1"], "1", 1, id="one-allowed"),
        pytest.param(["nvidia0", "nvidia1"], "", 0, id="none-allowed"),
        pytest.param(["nvidia0", "nvidia1"], "-1", 0, id="minus-one-is-none"),
        pytest.param(["nvidia0", "nvidia1"], "0,-1,1", 1, id="what-follows-minus-one-does-not-count"),
        pytest.param(["nvidia0", "nvidia1"], "0,7,1", 1, id="nor-what-follows-one-that-is-not-there"),
        pytest.param(["nvidia3"], "3", 0, id="in-a-container-it-has-another-number"),
        pytest.param(["nvidia0"], "GPU-8932f937", 1, id="by-its-own-name"),
        pytest.param([], "0,1", 0, id="listed-but-not-there"),
    ],
)
def test_gpus_that_a_process_may_use(devices, listed, gpus, tmp_path, monkeypatch) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr("asyncdgl.plan.machine.DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == gpus


def test_auto_is_the_cluster_that_was_started_here_last(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (wanted_address(None), wanted_address("local"), wanted_address("auto")) == ("auto", None, "auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.5:6379\n")
    assert (wanted_address(None), wanted_address("10.0.0.6:1")) == ("10.0.0.5:6379", "10.0.0.6:1")
