"""A process that dies ends the run with one clear error; nothing is left behind."""

from __future__ import annotations

import os
import signal

import pytest

from asyncdgl.errors import StageFailed

SMALL = {"data": {"dataset": "synthetic"}, "model": {"width": 8}, "stages": 3, "epochs": 20}


@pytest.mark.ray
@pytest.mark.parametrize("victim", ["stage 2", "buffer 1"])
def test_a_killed_process_is_named(run_ray, victim) -> None:
    pids, killed = {}, []

    def on_start(ray_run) -> None:
        pids.update({p.name: p.pid for p in ray_run.outcome().processes})

    def kill(recorder) -> None:
        if not killed and len(recorder.trace) > 50:
            killed.append(pids[victim])
            os.kill(pids[victim], signal.SIGKILL)

    with pytest.raises(StageFailed, match=r"stage [123]") as failure:
        run_ray(SMALL, on_start=on_start, on_passes=kill)
    assert killed
    assert "died" in str(failure.value)
    if victim == "stage 2":
        assert failure.value.process == "stage 2"
