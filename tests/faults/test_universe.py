"""The universe of faults: the real parts of a run, while seeded faults kill, stop, cut off, tear and fill.

A failure prints its seed, the fewest faults with which it still fails, and the command that tells its story.
"""

from __future__ import annotations

import pytest
from faults import run
from faults.bugs import BUGS, planted
from faults.schedule import KINDS, plan, shrunk
from faults.universe import simulate

SEEDS, AT_ONCE = 300, 50

FOUND: dict[str, int] = {}
"""A seed that finds each planted bug."""


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_seed_ends_as_it_has_to(first: int) -> None:
    failed = [seed for seed, problem, _ in run.seeds(first, AT_ONCE, processes=1) if problem]
    assert not failed, "\n".join(run.report(seed) for seed in failed[:3])


def test_the_seeds_meet_faults_of_every_kind_and_go_on() -> None:
    kinds = {(fault.kind, fault.victim.rstrip(" 1234")) for seed in range(SEEDS) for fault in plan(seed).faults}
    assert {"stage", "buffer", "the pace keeper", "the evaluator", "the driver"} <= {
        victim for kind, victim in kinds if kind == "kill"
    }
    assert {kind for kind, _ in kinds} == {*KINDS}
    verdicts = [simulate(plan(seed)) for seed in range(20)]
    assert sum(verdict.hit for verdict in verdicts) > 20
    assert sum(verdict.resumed for verdict in verdicts) > 5


def test_a_seed_is_the_same_run_again() -> None:
    for seed in range(8):
        first, second = (simulate(plan(seed), tells=True) for _ in range(2))
        assert first.log
        assert first == second


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_found(name: str) -> None:
    with planted(name):
        assert simulate(plan(FOUND[name])).problem
    assert not simulate(plan(FOUND[name])).problem


def test_a_failure_is_shrunk_to_what_matters() -> None:
    name = "momentum_is_not_restored"
    with planted(name):
        faults = run.fewest(plan(FOUND[name]))
        assert simulate(plan(FOUND[name]), faults).problem
        assert "--seed" in run.report(FOUND[name])
    assert len(faults) <= 2


def test_shrinking_leaves_out_all_that_may_be_left_out() -> None:
    assert shrunk(list("abcdefgh"), lambda left: {"c", "g"} <= {*left}) == ["c", "g"]  # type: ignore[arg-type, comparison-overlap]
    assert shrunk([], lambda left: True) == []
