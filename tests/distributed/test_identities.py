"""Identities b, c and g of the semantics, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from asyncdgl.rundir.reader import read_run

SMALL = {"data": {"dataset": "synthetic"}, "stages": 3, "model": {"width": 8}, "epochs": 1}

RANDOM_LATENCY = {
    "name": "overtaking",
    "every_link": {"latency": {"law": "uniform", "mean": 4, "spread": 4}},
}

ASYNCHRONOUS = {
    "sim": {"runtime": "sim"},
    "sim slow stage 2": {"runtime": "sim", "delays": {"profile": "slow_stage2", "slowdown": 3}},
    "sim lossy uniform": {
        "runtime": "sim",
        "delays": {"profile": "lossy"},
        "buffer": {"sampler": "uniform", "size": 3, "codec": "bf16"},
    },
    "sim blocking fifo": {
        "runtime": "sim",
        "buffer": {"sampler": "fifo", "size": 2, "max_reuse": 2, "on_full": "block", "codec": "int8"},
    },
    "ray slow stage 2": {"runtime": "ray", "delays": {"profile": "slow_stage2"}},
    "ray free wan": {
        "runtime": "ray",
        "pace": "free",
        "delays": {"profile": "wan"},
        "buffer": {"sampler": "lifo", "size": 5, "codec": "int8"},
    },
    "ray random lossy": {
        "runtime": "ray",
        "delays": {"profile": {"every_stage": {"step_law": "exponential"}, "every_link": {"loss": 0.2}}},
        "buffer": {"sampler": "uniform", "max_reuse": 3, "max_age": 6, "min_size": 2},
    },
    "ray blocking": {
        "runtime": "ray",
        "delays": {"profile": "slow_stage3"},
        "buffer": {"size": 2, "max_reuse": 1, "on_full": "block", "prefetch": 1},
    },
}


@pytest.fixture(scope="module")
def first_hash() -> dict[str, str]:
    return {}


@pytest.mark.ray
@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_stage_1_ends_the_same_in_every_run(name, run_sim, run_ray, check_conservation) -> None:
    run = run_ray if ASYNCHRONOUS[name]["runtime"] == "ray" else run_sim
    recorder = run({**SMALL, **ASYNCHRONOUS[name]})
    check_conservation(recorder)
    reference = run_sim({**SMALL, "algorithm": "sync-dgl"})
    assert recorder.hashes[0] == reference.hashes[0]
    # The other stages learn from what happened to be there: equal ones would mean that nothing was asynchronous.
    assert recorder.hashes[1] != reference.hashes[1]
    quota = len(reference.passes(1))
    assert [len(recorder.passes(j, "train")) for j in (1, 2, 3)] == [quota] * 3


SYNCHRONOUS = {
    "as it is": {},
    "one place": {"buffer": {"size": 1, "prefetch": 0}},
    "inserts arrive in the wrong order": {"delays": {"profile": RANDOM_LATENCY}, "buffer": {"size": 8}},
    "free pace, int8": {"pace": "free", "buffer": {"codec": "int8", "prefetch": 0}},
}


@pytest.mark.ray
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_sync_dgl_on_ray_equals_sim_bit_for_bit(name, run_sim, run_ray, check_conservation) -> None:
    tree = {**SMALL, "epochs": 2, "algorithm": "sync-dgl"}
    codec = SYNCHRONOUS[name].get("buffer", {}).get("codec", "none")
    reference = run_sim({**tree, "buffer": {"codec": codec}})
    recorder = run_ray({**tree, **SYNCHRONOUS[name]})
    check_conservation(recorder)
    assert len(set(reference.hashes)) == 3
    assert [p.calls_over_sockets for p in recorder.outcome.processes if p.threads is not None] == [True] * 3
    assert recorder.hashes == reference.hashes
    losses = [[r.loss for r in recorder.passes(j, "train")] for j in (1, 2, 3)]
    assert losses == [[r.loss for r in reference.passes(j)] for j in (1, 2, 3)]


@pytest.mark.ray
def test_one_stage_on_ray_is_the_same_as_in_one_process(run_sim, run_ray) -> None:
    tree = {**SMALL, "stages": 1, "model": {"width": 8, "blocks": 2, "downsample": [2]}}
    assert run_ray(tree).hashes == run_sim(tree).hashes


@pytest.mark.ray
def test_between_machines_nothing_is_different(run_sim, tmp_path) -> None:
    """Everything goes through Ray, as where machines differ: neither sockets nor shared memory."""
    tree = {**SMALL, "algorithm": "sync-dgl", "buffer": {"codec": "int8"}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**tree, "threads": 1, "device": "cpu", "precision": "float32"}))
    run = [sys.executable, "-m", "asyncdgl", "run", "--config", str(config), "--set", "buffer.prefetch=0"]
    command = [*run, "--runtime", "ray", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "ASYNCDGL_CALLS_THROUGH_RAY": "1"}
    # Elsewhere than in the source folder, whose asyncdgl need not be the one that is installed.
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=180)
    started = json.loads((tmp_path / "run" / "environment.json").read_text())["processes"]
    assert [p["calls_over_sockets"] for p in started if p["threads"] is not None] == [False] * 3
    stages = read_run(tmp_path / "run").summary.stages
    assert [stage.state_sha256 for stage in stages] == run_sim(tree).hashes
