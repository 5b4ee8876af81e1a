"""The universe of faults: the real parts of a run, while seeded faults kill, stop, cut off, tear and fill.

A failure prints its seed, the fewest faults with which it still fails, and the command that tells its story.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

SEEDS, AT_ONCE = 300, 50

FOUND = {
    "a_repeated_entry_is_taken": 11,
    "an_insert_is_answered_before_it_is_done": 1,
    "a_stage_that_waits_wakes_nobody": 1,
    "the_clock_is_not_restored": 0,
    "what_is_given_again_counts_as_used_again": 11,
    "what_is_given_again_is_the_one_after": 11,
    "momentum_is_not_restored": 0,
    "the_step_is_not_restored": 0,
    "a_checkpoint_counts_before_what_it_rests_on": 373,
    "a_later_process_says_nothing_of_what_it_drops": 575,
    "the_number_of_the_draw_is_not_restored": 0,
    "a_dead_stage_holds_others": 0,
    "a_place_is_free_though_another_needs_it": 1,
    "what_was_fetched_of_a_dead_buffer_is_waited_for": 44,
    "one_too_many_is_let_go": 61,
    "an_evaluation_is_not_asked_for_again": 10,
    "an_epoch_is_told_twice": 61,
    "nobody_ends_who_is_deaf": 108,
    "a_damaged_checkpoint_is_read": 46,
    "inserts_of_an_older_life_are_taken": 811,
    "a_buffer_that_starts_again_has_no_books": 1121,
    "a_stage_goes_on_as_the_same_incarnation": 97,
}
"""Seeds that find planted bugs; the others are rarer, and looked for by command."""


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


def test_most_bugs_have_their_seed(of) -> None:
    assert {*FOUND} <= {*of.bugs.BUGS}
    assert len(FOUND) >= 20


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_planted_bug_is_found(of, name) -> None:
    with of.bugs.planted(name):
        assert of.simulate(of.plan(FOUND[name])).problem


def test_a_failure_is_shrunk_to_what_matters(of) -> None:
    name = "momentum_is_not_restored"
    with of.bugs.planted(name):
        faults = of.run.fewest(of.plan(FOUND[name]))
        assert of.simulate(of.plan(FOUND[name]), faults).problem
        assert f"--seed {FOUND[name]}" in of.run.report(FOUND[name])
    assert len(faults) == 1


def test_shrinking_leaves_out_all_that_may_be_left_out(of) -> None:
    assert of.schedule.shrunk(list("abcdefgh"), lambda left: {"c", "g"} <= {*left}) == ["c", "g"]
    assert of.schedule.shrunk([], lambda left: True) == []
