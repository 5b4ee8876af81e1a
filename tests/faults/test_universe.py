"""The universe of faults: the real parts of a run, while seeded faults kill, stop, cut off, tear and fill.

A failure prints its seed, the fewest faults with which it still fails, and the command that tells its story.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

SEEDS, AT_ONCE = 300, 50

RARE = {
    "a_checkpoint_counts_before_what_it_rests_on",
    "a_damaged_checkpoint_is_read",
    "passes_made_again_are_not_compared",
    "a_late_word_counts_again",
    "what_waits_keeps_the_place_it_waits_for",
    "what_was_read_was_not_made",
    "a_place_is_not_reserved_again",
    "a_buffer_that_starts_again_has_no_books",
    "what_is_not_kept_is_asked_for_again",
    "the_run_goes_on_from_other_bits",
    "a_stage_has_trained_before_that_is_reported",
}
"""Planted bugs that need more seeds than a test has time for: `python tests/faults/run.py --bugs` looks for them."""


@pytest.fixture(scope="module")
def of() -> SimpleNamespace:
    """The parts of the universe. They import Ray, which reads its settings then: not before these tests have a turn."""
    from faults import bugs, run, schedule, universe

    return SimpleNamespace(bugs=bugs, run=run, schedule=schedule, plan=schedule.plan, simulate=universe.simulate)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_seed_ends_as_it_has_to(of, first) -> None:
    failed = [seed for seed, problem, _ in of.run.seeds(first, AT_ONCE, processes=1) if problem]
    assert not failed, "\n".join(of.run.report(seed) for seed in failed[:3])


def test_the_seeds_meet_faults_of_every_kind_and_go_on(of) -> None:
    faults = [fault for seed in range(SEEDS) for fault in of.plan(seed).faults]
    killed = {fault.victim.rstrip(" 1234") for fault in faults if fault.kind == of.schedule.KILL}
    assert killed == {"stage", "buffer", "the pace keeper", "the evaluator", "the driver"}
    assert {fault.kind for fault in faults} == {*of.schedule.KINDS}
    verdicts = [of.simulate(of.plan(seed)) for seed in range(20)]
    assert sum(verdict.hit for verdict in verdicts) > 20
    assert sum(verdict.resumed for verdict in verdicts) > 5


def test_a_seed_is_the_same_run_again(of) -> None:
    for seed in range(8):
        first, second = (of.simulate(of.plan(seed), tells=True) for _ in range(2))
        assert first.log
        assert first == second


def first_seed(of: SimpleNamespace, name: str) -> int | None:
    """One that finds a planted bug; it moves with every message that is sent."""
    with of.bugs.planted(name):
        return next((seed for seed in range(SEEDS) if of.simulate(of.plan(seed)).problem), None)


def test_planted_bugs_are_found(of) -> None:
    assert {*of.bugs.BUGS} > RARE
    missed = [name for name in sorted({*of.bugs.BUGS} - RARE) if first_seed(of, name) is None]
    assert not missed


def test_a_failure_is_shrunk_to_what_matters(of) -> None:
    name = "momentum_is_not_restored"
    seed = first_seed(of, name)
    with of.bugs.planted(name):
        faults = of.run.fewest(of.plan(seed))
        assert of.simulate(of.plan(seed), faults).problem
        assert f"--seed {seed}" in of.run.report(seed)
    assert len(faults) == 1


def test_shrinking_leaves_out_all_that_may_be_left_out(of) -> None:
    assert of.schedule.shrunk(list("abcdefgh"), lambda left: {"c", "g"} <= {*left}) == ["c", "g"]
    assert of.schedule.shrunk([], lambda left: True) == []
