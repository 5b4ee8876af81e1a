"""An algorithm of one's own: a right one runs, a wrong one gets one message that names it, before anything is made."""

from __future__ import annotations

import subprocess
import sys

import pytest

import asyncdgl
from asyncdgl.algorithms.base import Algorithm
from asyncdgl.config.yaml import parse_config
from asyncdgl.errors import ConfigError, RunFailed

pytestmark = pytest.mark.usefixtures("one_thread", "own_parts")
SMALL = {"stages": 3, "epochs": 1, "batch_size": 256, "model": {"blocks": 3, "width": 4}}


def test_one_of_ones_own_runs_where_it_says_and_is_repeated(tmp_path) -> None:
    run = asyncdgl.run(SMALL, algorithm="own_parts:backwards_dgl", out=tmp_path / "run")
    assert (run.config.runtime, run.summary.status) == ("sim", "completed")
    assert [stage.updates for stage in run.summary.stages] == [5, 5, 5]
    assert len(asyncdgl.replay(run)) == 3


def test_one_learner_is_one_stage(tmp_path) -> None:
    own, built_in = (
        asyncdgl.run(SMALL, algorithm=name, out=tmp_path / name.partition(":")[0])
        for name in ("own_parts:end_to_end", "backprop")
    )
    assert [s.state_sha256 for s in own.summary.stages] == [s.state_sha256 for s in built_in.summary.stages]
    assert len(own.summary.stages) == 1


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"algorithm": "own_parts:mlp"}, "is a function: it must be an asyncdgl.algorithms.base.Algorithm"),
        ({"algorithm": "own_parts:there_is_none"}, "can't be imported: AttributeError"),
        ({"algorithm": "own_parts:backwards_dgl", "runtime": "ray"}, "does not run on ray, virtual: use --runtime sim"),
        ({"algorithm": "own_parts:virtual_only", "runtime": "sim"}, "does not run on ray, sim: use --runtime virtual"),
        ({"algorithm": "own_parts:impossible_buffers"}, "its between: "),
        (
            {"algorithm": "own_parts:names_no_stage"},
            "gave a turn to stage 9; the stages that have not stopped are 1 to",
        ),
        ({"algorithm": "own_parts:gives_no_pair"}, "must give pairs (stage, time in steps, or None), got 1"),
        ({"algorithm": "own_parts:goes_back_in_time"}, "gave the time -1.0: it must be a number of steps from 0"),
        ({"algorithm": "own_parts:stops_at_once"}, "ended while stages 1 to 3 had not stopped"),
        ({"algorithm": "own_parts:fails_at_once"}, "its order fails: AttributeError"),
    ],
)
def test_a_wrong_one_is_named_before_anything_is_made(tmp_path, over, said) -> None:
    with pytest.raises(ConfigError) as caught:
        asyncdgl.run(SMALL, **over, out=tmp_path / "run")
    assert str(caught.value).count(over["algorithm"]) >= 1
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_order_that_ends_too_soon_fails_the_run(tmp_path) -> None:
    with pytest.raises(RunFailed, match="stops_in_the_middle: its order ended while stages 1 to 3 had not stopped"):
        asyncdgl.run({**SMALL, "epochs": 2}, algorithm="own_parts:stops_in_the_middle", out=tmp_path / "run")


@pytest.mark.parametrize("runtimes", ["sim", (), ("sim", "cloud")])
def test_runtimes_are_checked_where_they_stand(runtimes) -> None:
    with pytest.raises(TypeError, match="runtimes must be some of ray, sim, virtual"):
        Algorithm(order=lambda stages: iter(()), runtimes=runtimes)
    with pytest.raises(TypeError, match="order must be a function"):
        Algorithm(order=[1, 2, 3])  # type: ignore[arg-type]


def test_the_default_runtime_is_the_first_of_the_algorithm() -> None:
    names = ("async-dgl", "sync-dgl", "sequential-dgl", "backprop", "own_parts:backwards_dgl")
    assert [parse_config({"algorithm": name}).runtime for name in names] == ["ray", "ray", "sim", "sim", "sim"]


def test_a_configuration_for_ray_is_checked_without_it() -> None:
    """In a process of its own: another test may have imported it."""
    script = (
        "import sys; from asyncdgl.config.yaml import parse_config; "
        "assert parse_config({'algorithm': 'sync-dgl'}).runtime == 'ray'; assert 'ray' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
