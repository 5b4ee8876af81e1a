"""What recovery decides, without processes: samplings kept, passes made again, and where a run goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from asyncdgl.buffers.given import Given
from asyncdgl.engine import restart as restarts
from asyncdgl.engine.history import Completeness, Faults, History, books
from asyncdgl.engine.reports import Chunk, Reports, Saving
from asyncdgl.engine.restart import Attempts, find_restart, plan_restart, whole_passes, with_death
from asyncdgl.errors import NeedsRestart, StageFailed
from asyncdgl.observer import NullObserver, Progress
from asyncdgl.rundir.checkpoint import Checkpoint, Position, StagePosition, unsaved
from asyncdgl.rundir.records import EpochLine, EvaluationLine, Fault
from asyncdgl.rundir.trace import PassRecord, by_stage, lineage, staleness

CONFIG = {
    **{"stages": 2, "epochs": 1, "algorithm": "async-dgl"},
    **{"checkpoint": SimpleNamespace(every=None), "evaluation": SimpleNamespace(every=1)},
}


def made(stage: int, step: int, source: int | None = None, incarnation: int = 0, **others: Any) -> PassRecord:
    record = PassRecord(
        stage, incarnation, step, "train", step, None, None, None, None, None, step + 0.0, step + 0.5, {}, 1.0
    )
    if source is not None:
        of = others.pop("source_incarnation", 0)
        record = record._replace(
            source_incarnation=of, source_step=source, source_update=source, times_sampled=1, sampled_s=step - 0.1
        )
    return record._replace(**others)


def kept(stage: int, step: int, incarnation: int = 0) -> Checkpoint:
    position = StagePosition(
        stage=stage,
        incarnation=incarnation,
        step=step,
        v=0,
        updates=step,
        optimizer=(),
        entry_bytes=0,
        epoch_updates=0,
        epoch_loss=0,
        epoch_correct=0,
    )
    whole = Position(config_sha256="", passes=0, metrics_lines=0, elapsed_s=0, wall_seconds=0, stages=(position,))
    return Checkpoint(whole, {})


def given(least: int, most: int) -> tuple[Given[int], list[int]]:
    gone: list[int] = []
    return Given(least, most, gone.append), gone


def test_what_was_given_is_given_again_until_it_counts() -> None:
    log, gone = given(1, 100)
    for number in range(6):
        assert log.again(number) is None
        log.add(10 * number)
    assert [log.again(number) for number in range(6)] == [0, 10, 20, 30, 40, 50]
    log.count(3)
    assert gone == [0, 10, 20]
    assert [log.again(number) for number in (3, 5)] == [30, 50]
    with pytest.raises(LookupError, match="sampling 2"):
        log.again(2)
    log.count(2)  # late: a newer one counts already
    assert log.again(3) == 30
    log.count(6)
    assert (gone, log.again(5)) == ([0, 10, 20, 30, 40], 50), "the reader may still be reading the last one"


def test_what_can_be_given_again_begins_somewhere() -> None:
    """A log that began late has the number that its reader expects, and not what the reader needs again."""
    log, _ = given(1, 100)
    log.number = 4  # the samplings before were another one's, which is gone
    assert log.first == 4
    log.add(40)
    assert (log.first, log.number) == (4, 5)
    with pytest.raises(LookupError, match="sampling 0"):
        log.again(0)


def test_what_was_read_was_made_though_nobody_reported_it() -> None:
    reports = Reports(SimpleNamespace(**CONFIG), NullObserver(), unsaved, None, lambda stage, step: None)
    reports.write(1, Chunk(records=[made(1, step) for step in range(3)]))
    reports.write(2, Chunk(records=[made(2, 0, 1), made(2, 1, 2)]))
    reports.check_whole()
    assert (reports.made(1), reports.made(2)) == (3, 2)
    reports.write(2, Chunk(records=[made(2, 2, 4)]))  # of a process that died before it could tell
    assert reports.made(1) == 5
    with pytest.raises(StageFailed, match="stage 2 read what stage 1 made in step 4") as failure:
        reports.check_whole()
    assert failure.value.process == "stage 1"
    reports.write(2, Chunk(records=[made(2, 3, 9, source_incarnation=3)]))
    assert reports.made(1) == 5, "another incarnation's passes are other passes"
    reports.write(1, Chunk(records=[made(1, step) for step in range(3, 5)]))
    reports.check_whole()


def test_nobody_goes_on_from_other_bits() -> None:
    """The run ends with the stage's mistake, and asks all stages once more where they stand."""
    told: list[PassRecord] = []
    saved: list[int] = []

    def keep(passes: Any, elapsed_s: float, stages: Any, arrays: Any, stage: int | None = None) -> Checkpoint:
        saved.append(stages[0].stage)
        return unsaved(passes, elapsed_s, stages, arrays)

    observer = NullObserver()
    observer.passed = told.extend  # type: ignore[method-assign, assignment]
    reports = Reports(SimpleNamespace(**CONFIG), observer, keep, None, lambda stage, step: None)
    first = [made(1, step) for step in range(3)]
    reports.write(1, Chunk(records=first))
    with pytest.raises(StageFailed, match="does not repeat its own bits"):
        reports.write(1, Chunk(records=[first[1]._replace(loss=2.0)]))
    for stage in (1, 2):
        last = Chunk(records=[made(stage, 3 * (2 - stage), 0)], checkpoint=(kept(stage, 4).of(stage), {}))
        reports.write(stage, last, is_last=True)
    assert [record[:3] for record in told] == [(1, 0, 0), (1, 0, 1), (1, 0, 2), (2, 0, 0)]
    assert 1 not in saved


def test_what_counts_for_nobody_has_an_end() -> None:
    log, gone = given(2, 4)
    for number in range(10):
        log.add(number)
    assert gone == [0, 1, 2, 3, 4, 5]
    assert log.again(6) == 6


def test_passes_made_again_are_recorded_once_and_compared() -> None:
    history = History(2, Faults())
    first = [made(2, step, step) for step in range(5)]
    assert history.news(first) == first
    history.count(kept(2, 2))
    history.died(7.0)
    again = [record._replace(end_s=99.0, start_s=98.0, waits={"pace": 1.0}) for record in first[2:]]
    new = made(2, 5, 5)
    assert history.news([*again, new]) == [new]
    with pytest.raises(StageFailed, match=r"another loss in step 4: 2.0 where it was 1.0"):
        history.news([first[4]._replace(loss=2.0)])
    with pytest.raises(StageFailed, match=r"another source_step in step 3: 9 where it was 3"):
        history.news([first[3]._replace(source_step=9)])
    with pytest.raises(StageFailed, match="step 8 came where step 6 was due"):
        history.news([made(2, 8, 8)])


def test_three_deaths_at_one_pass_are_too_many_and_others_are_not() -> None:
    faults = Faults()
    history = History(3, faults)
    for step in range(6):  # each process comes a step further
        history.news([made(3, step, step)])
        history.died(float(step))
        history.works_again(step + 0.5, 1)
    assert [(f.at_s, f.again_s, f.passes_again) for f in faults.all[:2]] == [(0.0, 0.5, 1), (1.0, 1.5, 1)]
    assert history.life == 6
    history.died(7.0)
    with pytest.raises(StageFailed, match="stage 3: its process died 3 times at the same pass, step 6") as failure:
        history.died(8.0)
    assert failure.value.process == "stage 3"


def test_a_checkpoint_is_complete_once_all_that_it_rests_on_is_recorded() -> None:
    complete = Completeness([0, 0, 0])
    complete.add(3, [made(3, 0, 0), made(3, 1, 2)])
    complete.add(2, [made(2, 0, 0), made(2, 1, 0), made(2, 2, 3)])
    assert [complete.of(j) for j in (1, 2, 3)] == [0, 0, 0]
    complete.add(1, [made(1, 0)])
    assert [complete.of(j) for j in (1, 2, 3)] == [1, 2, 1]
    complete.add(1, [made(1, 1), made(1, 2)])
    assert [complete.of(j) for j in (1, 2, 3)] == [3, 2, 1]
    complete.add(1, [made(1, 3)])
    assert [complete.of(j) for j in (1, 2, 3)] == [4, 3, 2]


def test_who_is_missing_is_one_whom_stages_use() -> None:
    faults = Faults()
    for name in ("buffer 1", "stage 2", "the pace keeper", "the evaluator", "spare 1"):
        faults.died(name, 1.0)
    assert faults.missing == "the pace keeper"
    faults.works_again("the pace keeper", 2.0)
    assert faults.missing == "buffer 1"
    faults.works_again("buffer 1", 2.0)
    assert faults.missing is None


def test_the_books_of_a_buffer_that_died() -> None:
    """It got steps 0 to 9, of which 0, 3 and 4 were read; another one got the rest."""
    counts = {"sent": 6, "inserted": 5, "sampled": 7, "retired": 2, "overwritten_unused": 1, "lost": 1, "left": 2}
    found = books(counts, 16, bytes([1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]))
    assert (found["sent"], found["inserted"], found["retired"], found["lost_in_fault"]) == (16, 8, 5, 7)
    assert found["sent"] == found["inserted"] + found["lost"] + found["lost_in_fault"]
    assert found["inserted"] == found["left"] + found["retired"] + found["overwritten_unused"]
    assert books({**counts, "sent": 16}, 16, b"\1") == {**counts, "sent": 16, "lost_in_fault": 0}
    stopped = books({**counts, "sent": 9}, 4, b"\1\1")  # while its producer made passes again
    assert (stopped["sent"], stopped["lost_in_fault"], stopped["retired"]) == (9, 0, 2)


def test_an_incarnation_goes_on_from_where_the_one_before_it_stood() -> None:
    own = [*(made(1, s) for s in range(6)), *(made(1, s, incarnation=1) for s in (3, 4)), made(1, 4, incarnation=2)]
    live = lineage(by_stage(own)[1])
    assert [(r.incarnation, r.step) for r in live] == [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4)]


def test_staleness_counts_updates_that_the_producers_state_rests_on() -> None:
    producer = [*(made(1, s) for s in range(6)), *(made(1, s, incarnation=1, end_s=s + 20.5) for s in range(3, 9))]
    reads = [
        made(2, 0, 4, sampled_s=5.6, source_update=4),  # of the first incarnation, when it had made 6
        made(2, 1, 4, sampled_s=25.0, source_update=4, source_incarnation=1),  # 3, 4 of the second: 5 in all
        made(2, 2, 3, sampled_s=1.0, source_update=3),  # made again later than it was read
    ]
    assert staleness(reads, producer).tolist() == [0, 0]
    assert staleness(reads[1:2], [*producer, made(1, 9, incarnation=1, end_s=40.0)]).tolist() == [0]


def run_of(records: list[PassRecord], lines: list[Any], algorithm: str = "async-dgl") -> Any:
    stages = max(r.stage for r in records)
    config = SimpleNamespace(stages=stages, algorithm=algorithm)
    return SimpleNamespace(records=records, passes=by_stage(records), lines=lines, config=config, summary=None)


def epoch(stage: int, number: int) -> EpochLine:
    return EpochLine(stage=stage, epoch=number, updates=2 * number, loss=1.0, accuracy=0.5, lr=0.1, end_s=1.0)


def evaluation(final: bool) -> EvaluationLine:
    return EvaluationLine(epoch=1, epochs=(1, 1), final=final, end_s=1.0, test_accuracy=(0.5, 0.5),
                          test_ensemble_accuracy=(0.5, 0.5), test_loss=(1.0, 1.0))  # fmt: skip


def test_the_trace_keeps_what_the_checkpoints_rest_on_and_no_more() -> None:
    """Stage 2's checkpoint has read what stage 1 made after its own: these passes stay."""
    records = [*(made(1, s) for s in range(9)), *(made(2, s, s) for s in range(8))]
    lines = [epoch(1, 1), epoch(1, 2), evaluation(False), epoch(2, 1), epoch(1, 4), epoch(2, 3), evaluation(True)]
    restart = plan_restart(run_of(records, lines), {1: [kept(1, 4), kept(1, 2)], 2: [kept(2, 6)]})
    assert [(r.stage, r.step) for r in restart.records] == [
        *((1, s) for s in range(6)),
        *((2, s) for s in range(6)),
    ]
    first, second = restart.stages[1], restart.stages[2]
    assert (first.kept.of(1).step, first.incarnation, len(first.live), first.lost) == (4, 1, 4, 5)
    assert (second.kept.of(2).step, second.incarnation, len(second.live), second.lost) == (6, 1, 6, 2)
    assert restart.lines == [epoch(1, 1), epoch(1, 2), evaluation(False), epoch(2, 1), epoch(2, 3)]
    assert restart.elapsed_s == 5.5


def test_a_checkpoint_that_rests_on_what_nobody_recorded_is_passed_over() -> None:
    records = [*(made(1, s) for s in range(4)), *(made(2, s, s) for s in (0, 1, 2)), made(2, 3, 7)]
    assert whole_passes(by_stage(records)) == {1: 4, 2: 3}
    restart = plan_restart(run_of(records, []), {1: [kept(1, 4)], 2: [kept(2, 4), kept(2, 2)]})
    assert restart.stages[2].kept.of(2).step == 2
    assert len(restart.records) == 6


def test_where_there_is_no_checkpoint_the_run_begins() -> None:
    records = [made(1, 0), made(2, 0, 0)]
    restart = plan_restart(run_of(records, [epoch(1, 1)]), {1: [], 2: []})
    assert (list(restart.records), list(restart.lines), restart.elapsed_s) == ([], [], 0.0)
    assert [(s.kept, s.incarnation, s.lost) for s in restart.stages.values()] == [(None, 0, 1)] * 2


def test_with_sync_dgl_all_stages_go_back_to_the_newest_step_that_they_share() -> None:
    records = [*(made(1, s) for s in range(9)), *(made(2, s, s) for s in range(5))]
    checkpoints = {1: [kept(1, 8), kept(1, 6), kept(1, 4)], 2: [kept(2, 4), kept(2, 2)]}
    restart = plan_restart(run_of(records, [], "sync-dgl"), checkpoints)
    assert [(r.stage, r.step) for r in restart.records] == [(j, s) for j in (1, 2) for s in range(4)]
    found = [(s.kept.of(j).step, s.incarnation, s.lost, s.again) for j, s in sorted(restart.stages.items())]
    assert found == [(4, 0, 0, 5), (4, 0, 0, 1)]


@pytest.mark.parametrize(
    ("algorithm", "of_stage_2", "fits", "anew"),
    [
        ("sync-dgl", ([], ["2 is cut"]), 9, ["1 is cut", "2 is cut"]),
        ("sync-dgl", ([], []), 9, []),  # it has none yet: nobody could go on from one of stage 1
        ("sync-dgl", ([kept(2, 4)], []), 9, ["1 is cut"]),
        ("sync-dgl", ([kept(2, 4)], []), 3, []),  # it is not wanted
        ("async-dgl", ([], []), 9, ["1 is cut"]),
    ],
)
def test_damage_counts_where_it_is_why_a_stage_begins_anew(monkeypatch, algorithm, of_stage_2, fits, anew) -> None:
    found = {1: ([], ["1 is cut"]), 2: of_stage_2}
    monkeypatch.setattr(restarts, "stage_checkpoints", lambda run, stage: found[stage])
    run = run_of([*(made(1, s) for s in range(9)), *(made(2, s, s) for s in range(5))], [], algorithm)
    _, problems, because = find_restart(run, lambda checkpoint, stage: checkpoint.of(stage).step <= fits)
    assert (problems, because) == (["1 is cut", *of_stage_2[1]], anew)


def test_a_stage_has_trained_though_the_line_of_its_last_epoch_is_lost() -> None:
    reports = Reports(SimpleNamespace(**CONFIG), NullObserver(), unsaved, None, lambda stage, step: None)
    assert reports.trained == []
    reports.write(2, Chunk(progress=Progress(epoch=1, updates=3, loss=None, accuracy=None, stopped=False)))
    assert reports.trained == [2]


def test_a_run_that_is_stopped_again_goes_on_in_a_third_incarnation() -> None:
    records = [
        *(made(1, s) for s in range(5)),
        *(made(2, s, s) for s in range(4)),
        *(made(1, s, incarnation=1) for s in range(3, 8)),
        *(made(2, s, s, incarnation=1, source_incarnation=1) for s in range(4, 7)),
    ]
    assert whole_passes(by_stage(records)) == {1: 8, 2: 7}
    restart = plan_restart(run_of(records, []), {1: [kept(1, 6, 1)], 2: [kept(2, 5, 1)]})
    assert [s.incarnation for _, s in sorted(restart.stages.items())] == [2, 2]
    stayed = [(r.stage, r.incarnation, r.step) for r in restart.records]
    assert stayed == [
        *((1, 0, s) for s in range(5)),
        *((2, 0, s) for s in range(4)),
        *((1, 1, s) for s in range(3, 6)),
        (2, 1, 4),
    ]
    assert [s.lost for _, s in sorted(restart.stages.items())] == [2, 2]


def test_checkpoints_of_sync_dgl_go_to_the_disk_at_the_same_steps(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("asyncdgl.engine.reports.time.perf_counter", lambda: now[0])
    config = SimpleNamespace(checkpoint=SimpleNamespace(every=None), algorithm="sync-dgl", stages=2)
    saving = Saving(config)
    assert not saving.is_due(1, 10)
    now[0] += 11
    assert not saving.is_due(2, 10), "stage 1 has passed it by"
    assert saving.is_due(1, 20)
    saving.took(1, 0.1)
    assert not saving.is_due(1, 30)
    assert saving.is_due(2, 20)
    saving.took(2, 0.1)
    now[0] += 39  # two hundred times what both take
    assert not saving.is_due(1, 40)
    now[0] += 2
    assert saving.is_due(1, 50)
    assert not saving.is_due(2, 40)
    assert saving.is_due(2, 50)


@pytest.mark.parametrize(("algorithm", "saved"), [("async-dgl", [(2, 3), (1, 6)]), ("sync-dgl", [])])
def test_what_is_only_in_memory_goes_to_the_disk_where_all_may_have_to_go_back(algorithm, saved) -> None:
    found: list[tuple[int, int]] = []

    def keep(passes: Any, elapsed_s: float, stages: Any, arrays: Any, stage: int | None = None) -> Checkpoint:
        found.append((stage or 0, stages[0].step))
        return kept(stages[0].stage, stages[0].step)

    config = SimpleNamespace(**{**CONFIG, "algorithm": algorithm})
    reports = Reports(config, NullObserver(), keep, None, lambda stage, step: None)
    for step in (3, 6):  # neither is due: one is kept in memory for a process that dies
        position = (kept(1, step).of(1), {})
        reports.write(1, Chunk(records=[made(1, s) for s in range(step - 3, step)], checkpoint=position))
    reports.write(2, Chunk(records=[made(2, s, s) for s in range(3)], checkpoint=(kept(2, 3).of(2), {})))
    assert found == []
    for _ in range(2):
        reports.save_newest()
        assert sorted(found) == sorted(saved), "once"


def test_a_run_begins_anew_as_long_as_it_comes_further() -> None:
    attempts, error = Attempts(), NeedsRestart("the process of buffer 1 died", "buffer 1")
    for passes in (0, 40, 40, 40 + 1, 30, 41 + 1):
        attempts.failed(error, passes)
    attempts.failed(error, 42)
    with pytest.raises(StageFailed, match="buffer 1 died; 3 times, and the run came no further") as failure:
        attempts.failed(error, 41)
    assert failure.value.process == "buffer 1"
    assert not isinstance(failure.value, NeedsRestart)


def test_a_death_is_in_the_books_once() -> None:
    known = [Fault(process="buffer 1", at_s=1.0), Fault(process="stage 2", at_s=1.0, again_s=2.0)]
    assert with_death(known, "buffer 1", 3.0) == known
    assert with_death(known, None, 3.0) == known
    assert with_death(known, "stage 2", 3.0)[2:] == [Fault(process="stage 2", at_s=3.0)]
