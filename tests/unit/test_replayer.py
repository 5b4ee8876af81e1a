"""Replay: every kind of run is repeated bit for bit, and one altered field of one pass is found and named."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asyncdgl.config.defaults import merged
from asyncdgl.errors import ConfigError, ReplayMismatch
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.records import Summary
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord, by_stage
from asyncdgl.rundir.writer import RunWriter

TINY: dict[str, Any] = {"epochs": 1, "batch_size": 32, "data": {"validation": 0.75}, "model": {"width": 2}}
"""11 updates an epoch, as with the larger batches of all the training images."""

SLOW_END: dict[str, Any] = {"delays": {"profile": "slow_stage3", "slowdown": 3}}
"""The stages before the last are done early, and go on with forward-only passes."""

VIRTUAL: dict[str, Any] = {"runtime": "virtual"}

RUNS: dict[str, dict[str, Any]] = {
    "as it is": {"epochs": 3, "optim": {"lr_decay_every": 1}},
    "forward-only passes": SLOW_END,
    "lifo": {"buffer": {"sampler": "lifo"}, **SLOW_END},
    "fifo": {"buffer": {"sampler": "fifo"}, **SLOW_END},
    "uniform": {"buffer": {"sampler": "uniform", "size": 4}, **SLOW_END},
    "codec bf16": {"buffer": {"codec": "bf16"}, **SLOW_END},
    "codec int8": {"buffer": {"codec": "int8"}, **SLOW_END},
    "bf16": {"precision": "bf16", **SLOW_END},
    "bf16, codec int8": {"precision": "bf16", "buffer": {"codec": "int8"}},
    "lossy": {"delays": {"profile": {"every_link": {"loss": 0.3}}}},
    "random": {"delays": {"profile": "random"}},
    "wan": {"delays": {"profile": "wan"}, "buffer": {"sampler": "uniform"}},
    "straggler": {"delays": {"profile": {"stages": {2: {"pause": {"probability": 0.2, "length": 9}}}}}},
    "max_reuse": {"buffer": {"max_reuse": 2, "size": 3}},
    "blocking": {"buffer": {"max_reuse": 1, "size": 2, "on_full": "block"}, **SLOW_END},
    "min_size, max_age": {"buffer": {"min_size": 3, "max_age": 5}},
    "one place": {"buffer": {"size": 1}},
    "augmented": {"data": {"augment": True, "validation": 0.8}, "seed": 5},
    "one stage": {"stages": 1},
    "five stages": {"stages": 5, "model": {"blocks": 5}},
    "sync-dgl": {"algorithm": "sync-dgl"},
    "sync-dgl, int8": {"algorithm": "sync-dgl", "buffer": {"codec": "int8"}},
    "sequential-dgl": {"algorithm": "sequential-dgl"},
    "sequential-dgl, bf16": {"algorithm": "sequential-dgl", "buffer": {"codec": "bf16"}},
    "backprop": {"algorithm": "backprop"},
    "virtual": {**VIRTUAL, **SLOW_END},
    "virtual, prefetch": {**VIRTUAL, "buffer": {"prefetch": 3, "sampler": "uniform"}, **SLOW_END},
    "virtual, free, blocking": {
        **VIRTUAL,
        "pace": "free",
        "virtual": {"step_times": [{"train": 3, "forward": 1}, {"train": 2, "forward": 1}, {"train": 5, "forward": 2}]},
        "buffer": {"max_reuse": 2, "size": 3, "on_full": "block", "prefetch": 1, "codec": "int8"},
    },
}

ALTERED: dict[str, Any] = {"buffer": {"sampler": "uniform", "size": 4}, **SLOW_END}
"""The run whose trace is altered: 11 updates a stage, many forward-only passes, entries given more than once."""


@pytest.fixture(scope="module")
def make_run(small_config, make_recorder, digits_folder, tmp_path_factory) -> Callable[[dict[str, Any]], Run]:
    """``make_run(tree)``: what a finished run left, read back from its directory. Each is made once."""
    from asyncdgl.engine.sim import Simulation
    from asyncdgl.engine.virtual import VirtualRun

    made: dict[str, Run] = {}

    def make(tree: dict[str, Any]) -> Run:
        key = json.dumps(tree)
        if key not in made:
            config, recorder = small_config(**merged(TINY, tree)), make_recorder()
            runtime = VirtualRun if config.runtime == "virtual" else Simulation
            running = runtime(config, digits_folder, recorder)
            running.run()
            path = tmp_path_factory.mktemp("run")
            writer = RunWriter(path)
            writer.write_config(config)
            writer.passed(recorder.trace)
            writer.write_summary(make_summary(config, writer, running.outcome(), "completed", None, 1.0))
            writer.close()
            made[key] = read_run(path)
        return made[key]

    return make


@pytest.fixture(scope="module")
def original(make_run) -> Run:
    run = make_run(ALTERED)
    for j in (1, 2):
        kinds = [r.kind for r in by_stage(run.records)[j]]
        assert kinds.count(TRAIN) == 11
        assert kinds.count(FORWARD) > 5
    return run


@pytest.fixture(scope="module")
def replay(digits_folder) -> Callable[..., Any]:
    """``replay(run)``: repeat it; the result as (stage, passes, recorded, state_equal)."""
    from asyncdgl.engine.replayer import Replay

    def repeat(run: Run) -> list[tuple[Any, ...]]:
        return [dataclasses.astuple(result) for result in Replay(run, digits_folder).run()]

    return repeat


@pytest.fixture(scope="module")
def mismatch(replay) -> Callable[[Run], str]:
    """``mismatch(run)``: what the replay finds wrong with a run."""

    def find(run: Run) -> str:
        with pytest.raises(ReplayMismatch) as error:
            replay(run)
        return str(error.value)

    return find


def counted(run: Run) -> list[int]:
    """Passes of each stage."""
    return [len(passes) for passes in by_stage(run.records).values()]


def changed(run: Run, **over: Any) -> Run:
    """The run with something else in one of its files."""
    whole = {name: getattr(run, name) for name in ("path", "config", "environment", "summary", "lines", "records")}
    return Run(**{**whole, **over})


def with_trace(run: Run, trace: list[PassRecord]) -> Run:
    return changed(run, records=trace)


def with_pass(run: Run, record: PassRecord, **changes: Any) -> Run:
    """The run with another thing said of one pass."""
    assert any(getattr(record, field) != value for field, value in changes.items())
    return with_trace(run, [r._replace(**changes) if r is record else r for r in run.records])


def with_summary(run: Run, stage: int | None = None, **changes: Any) -> Run:
    """The run with another thing said in its summary, of it or of one stage."""
    summary = run.summary.model_dump()
    (summary if stage is None else summary["stages"][stage - 1]).update(changes)
    return changed(run, summary=Summary.model_validate(summary))


def of(run: Run, stage: int, kind: str | None = None) -> list[PassRecord]:
    """A stage's passes in order."""
    return [r for r in by_stage(run.records)[stage] if kind in (None, r.kind)]


def named(message: str) -> tuple[int, int]:
    """Stage and step of the pass that a message names."""
    found = re.search(r"stage (\d+), step (\d+)\b", message) or re.search(
        r"stage (\d+): the trace has step -?\d+ .*where step (\d+)\b.* is due", message
    )
    assert found is not None, message
    return int(found[1]), int(found[2])


# --- Whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_repeated_bit_for_bit(name, make_run, replay) -> None:
    run = make_run(RUNS[name])
    passes = counted(run)
    assert replay(run) == [(j, n, n, True) for j, n in enumerate(passes, 1)]
    if RUNS[name].items() >= SLOW_END.items():
        assert FORWARD in {r.kind for r in run.records}
    if name in ("as it is", "forward-only passes", "uniform", "max_reuse"):
        assert max(r.times_sampled or 0 for r in run.records) > 1


def test_the_order_of_the_lines_of_different_stages_does_not_matter(original, replay) -> None:
    """Ray's chunks come as they come; only the passes of one stage are in order, and they are numbered."""
    expected = replay(original)
    assert replay(with_trace(original, list(reversed(original.records)))) == expected
    assert replay(with_trace(original, sorted(original.records, key=lambda r: (-r.stage, r.step)))) == expected


def test_times_and_waits_are_not_repeated(original, replay) -> None:
    trace = [r._replace(start_s=0.0, end_s=9.0, sampled_s=None, waits={"full": 3.0}) for r in original.records]
    assert replay(with_trace(original, trace)) == replay(original)


def test_another_configuration_is_another_run(original, mismatch, small_config) -> None:
    for over in ({"seed": 1}, {"optim": {"lr": 0.04}}, {"model": {"width": 3}}, {"buffer": {"codec": "bf16"}}):
        config = small_config(**merged(merged(TINY, ALTERED), over))
        stage = 2 if "buffer" in over else 1  # stage 1 reads no buffer
        step = 1 if "optim" in over else 0  # the first loss is computed before any update
        assert named(mismatch(changed(original, config=config))) == (stage, step)


def test_a_run_without_summary_is_repeated_as_far_as_it_went(original, replay) -> None:
    run = changed(original, summary=None)
    assert replay(run) == [(j, n, n, None) for j, n in enumerate(counted(run), 1)]


def test_check_stops_it(original, digits_folder) -> None:
    from asyncdgl.engine.replayer import Replay

    calls = itertools.count(1)

    def check() -> None:
        if next(calls) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Replay(original, digits_folder, check).run()
    assert next(calls) == 21


def test_what_cannot_be_repeated_is_refused(original, digits_folder, small_config) -> None:
    from asyncdgl.engine.replayer import Replay

    moved = small_config(runtime="virtual", virtual={"train": False})
    with pytest.raises(ConfigError, match=r"computed nothing .*nothing to replay"):
        Replay(changed(original, config=moved), digits_folder)
    with pytest.raises(ConfigError, match=r"no passes in its trace: there is nothing to replay"):
        Replay(with_trace(original, []), digits_folder)


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "lossy", "sync-dgl", "sequential-dgl", "virtual, prefetch"])
def test_an_entry_is_let_go_once_its_last_reader_has_it(name, make_run, digits_folder) -> None:
    from asyncdgl.engine.replayer import Replay

    run = make_run(RUNS[name])
    recorded = by_stage(run.records)
    done, most = dict.fromkeys(recorded, 0), 0

    def check() -> None:
        nonlocal most
        most = max(most, len(repetition._entries))
        for j in done:
            done[j] = repetition._passes[j].step
        to_be_read = {(r.stage - 1, 0, r.source_step) for j in recorded for r in recorded[j][done[j] :]}
        assert set(repetition._entries) <= to_be_read

    repetition = Replay(run, digits_folder, check)
    repetition.run()
    assert len(repetition._entries) == 0
    if name in ("sync-dgl", "sequential-dgl"):
        assert most == 1  # read at once
    assert most > 0


# --- One altered field of one pass ------------------------------------------------------------------------------------


KINDS = [(TRAIN, 0), (TRAIN, 5), (TRAIN, -1), (FORWARD, 0), (FORWARD, -1)]
EACH = [(stage, *kind) for stage in (1, 2, 3) for kind in KINDS if (stage, kind[0]) != (3, FORWARD)]
"""Passes of each stage and kind; the last stage makes no forward-only ones."""


def chosen(run: Run, stage: int, kind: str, index: int) -> PassRecord:
    return of(run, stage, kind)[index]


@pytest.mark.parametrize(("stage", "kind", "index"), EACH)
def test_another_batch_is_named(stage, kind, index, original, mismatch) -> None:
    record = chosen(original, stage, kind, index)
    for batch in (record.batch + 1, -1, record.batch + 11):  # the next one; none; the next epoch's
        message = mismatch(with_pass(original, record, batch=batch))
        assert named(message) == (stage, record.step)
        assert f"({kind}): batch is {record.batch}, but the trace says {batch}" in message


@pytest.mark.parametrize(("kind", "index"), KINDS)
def test_another_batch_of_sequential_training_is_named(kind, index, make_run, mismatch) -> None:
    run = make_run(RUNS["sequential-dgl"])
    for stage in (1, 2, 3) if kind == TRAIN else (1, 2):
        record = chosen(run, stage, kind, index)
        for batch in (record.batch + 1, -1):
            assert named(mismatch(with_pass(run, record, batch=batch))) == (stage, record.step)


@pytest.mark.parametrize(("stage", "kind", "index"), [each for each in EACH if each[0] > 1])
def test_another_source_is_named(stage, kind, index, original, mismatch) -> None:
    record = chosen(original, stage, kind, index)
    producer = of(original, stage - 1)
    was = producer[record.source_step]
    others = [r for r in producer if r.step != was.step and r.batch != was.batch]
    for other in (others[0], others[-1]):
        message = mismatch(with_pass(original, record, source_step=other.step))
        assert named(message) == (stage, record.step)
        assert f"batch is {other.batch}, but the trace says {record.batch}" in message
    for step in (len(producer), 10**6, -1):
        message = mismatch(with_pass(original, record, source_step=step))
        assert named(message) == (stage, record.step)
        assert f"it read what step {step} of stage {stage - 1} made, which the trace does not have" in message


@pytest.mark.parametrize(("kind", "index"), KINDS)
def test_another_source_update_is_named(kind, index, original, mismatch) -> None:
    for stage in (2, 3) if kind == TRAIN else (2,):
        record = chosen(original, stage, kind, index)
        for update in (record.source_update + 1, record.source_update - 1):
            message = mismatch(with_pass(original, record, source_update=update))
            assert named(message) == (stage, record.step)
            assert f"source_update is {record.source_update}, but the trace says {update}" in message


@pytest.mark.parametrize(("kind", "index"), KINDS)
def test_another_number_of_times_is_named(kind, index, original, mismatch) -> None:
    record = chosen(original, 2, kind, index)
    message = mismatch(with_pass(original, record, times_sampled=record.times_sampled + 1))
    assert named(message) == (2, record.step)
    assert f"times_sampled is {record.times_sampled}, but the trace says {record.times_sampled + 1}" in message


@pytest.mark.parametrize(("kind", "index"), KINDS)
def test_another_kind_is_named(kind, index, original, mismatch) -> None:
    for stage in (1, 2, 3) if kind == TRAIN else (1, 2):
        record = chosen(original, stage, kind, index)
        message = mismatch(with_pass(original, record, kind=FORWARD if kind == TRAIN else TRAIN))
        assert named(message) == (stage, record.step)
        assert f"kind is {kind}" in message


@pytest.mark.parametrize("index", [0, 1, 5, -1])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_bit_of_a_loss_is_named(stage, index, original, mismatch) -> None:
    record = chosen(original, stage, TRAIN, index)
    for direction in (math.inf, -math.inf):
        loss = math.nextafter(record.loss, direction)
        message = mismatch(with_pass(original, record, loss=loss))
        assert named(message) == (stage, record.step)
        assert f"loss is {record.loss!r}, but the trace says {loss!r}" in message


def test_a_loss_where_none_belongs_and_none_where_one_does(original, mismatch) -> None:
    for record, loss in ((of(original, 1, FORWARD)[2], 1.0), (of(original, 2, TRAIN)[2], None)):
        assert named(mismatch(with_pass(original, record, loss=loss))) == (record.stage, record.step)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_incarnation_is_named(stage, original, mismatch) -> None:
    for record in (of(original, stage)[0], of(original, stage)[5], of(original, stage)[-1]):
        message = mismatch(with_pass(original, record, incarnation=1))
        assert named(message) == (stage, record.step)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_source_of_another_incarnation_is_named(stage, original, mismatch) -> None:
    for record in (of(original, stage)[0], of(original, stage)[5], of(original, stage)[-1]):
        assert named(mismatch(with_pass(original, record, source_incarnation=1))) == (stage, record.step)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_swapped_steps_are_named(stage, original, mismatch) -> None:
    passes = of(original, stage)
    for first, second in itertools.pairwise([passes[0], passes[1], passes[7]]):
        swapped = {id(first): second.step, id(second): first.step}
        trace = [r._replace(step=swapped.get(id(r), r.step)) for r in original.records]
        assert named(mismatch(with_trace(original, trace))) == (stage, first.step)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_missing_and_a_doubled_line_are_named(stage, original, mismatch) -> None:
    passes = of(original, stage)
    for record in (passes[0], passes[6], passes[-2]):
        assert named(mismatch(with_trace(original, [r for r in original.records if r is not record]))) == (
            stage,
            record.step,
        )
    for record in (passes[0], passes[6]):
        message = mismatch(with_trace(original, [*original.records, record]))
        assert message == f"stage {stage}: the trace has step {record.step} where step {record.step + 1} is due"
    # The line behind the last: one pass more than the stage had to make.
    message = mismatch(with_trace(original, [*original.records, passes[-1]]))
    assert message.startswith(f"stage {stage}: the trace has step {passes[-1].step} where step {passes[-1].step + 1}")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_missing_last_line_is_found_where_the_run_was_completed(stage, original, mismatch) -> None:
    """Also where nobody read what the pass made: then no later pass misses it."""
    last = of(original, stage)[-1]
    message = mismatch(with_trace(original, [r for r in original.records if r is not last]))
    assert re.search(rf"stage ({stage}|{stage + 1})\b", message)


FIELDS = ("batch", "source_step", "source_update", "kind", "loss", "step", "incarnation")


@settings(max_examples=60)
@given(data=st.data())
def test_any_altered_field_of_any_pass_is_named(data, original, mismatch) -> None:
    record = original.records[data.draw(st.integers(0, len(original.records) - 1), "pass")]
    fields = [f for f in FIELDS if getattr(record, f) is not None]
    field = data.draw(st.sampled_from(fields), "field")
    was = getattr(record, field)
    if field == "kind":
        value: Any = FORWARD if was == TRAIN else TRAIN
    elif field == "loss":
        value = data.draw(st.sampled_from([math.nextafter(was, 0), math.nextafter(was, 9), -was, 0.0, None]), "value")
    else:
        value = data.draw(st.integers(-3, 80), "value")
    assume(value != was)
    if field == "source_step" and 0 <= value < len(of(original, record.stage - 1)):
        other, own = of(original, record.stage - 1)[value], of(original, record.stage - 1)[was]
        # Two forward-only passes of the same entry by the same weights made the same bits: no matter which was read.
        assume(other.batch != own.batch or other.kind == TRAIN or own.kind == TRAIN)
    message = mismatch(with_pass(original, record, **{field: value}))
    if field in ("step", "incarnation") and "is due" in message:
        # Too early a number shows where it doubles another one, a later one where it is missing.
        assert re.match(rf"stage {record.stage}: the trace has step ", message)
        assert named(message)[1] == record.step or f"has step {value} " in message or value < 0
    else:
        assert named(message) == (record.stage, record.step)


# --- Final states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_final_state_names_the_stage(stage, original, mismatch) -> None:
    state = original.summary.stages[stage - 1].state_sha256
    other = ("0" if state[0] != "0" else "1") + state[1:]
    message = mismatch(with_summary(original, stage, state_sha256=other))
    assert message == f"stage {stage}: every loss is equal, but its state after 11 updates is not"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_number_of_updates_names_the_stage(stage, original, mismatch) -> None:
    message = mismatch(with_summary(original, stage, updates=12))
    assert message == f"stage {stage}: the trace has 11 updates, but the summary 12"


def test_another_number_of_forward_passes_names_the_stage(original, mismatch) -> None:
    forwards = original.summary.stages[1].forward_passes
    assert re.match(r"stage 2\b", mismatch(with_summary(original, 2, forward_passes=forwards + 1)))


def test_a_stage_that_the_summary_lacks_is_named(original, mismatch) -> None:
    run = with_summary(original, stages=[stage.model_dump() for stage in original.summary.stages[:2]])
    assert mismatch(run) == "stage 3: the trace has 11 updates, but the summary none"


def test_a_completed_run_without_a_hash_is_no_equal_one(original, mismatch) -> None:
    assert re.match(r"stage 2\b", mismatch(with_summary(original, 2, state_sha256=None)))


# --- Stopped runs -----------------------------------------------------------------------------------------------------


def repeatable(trace: list[PassRecord], stages: int) -> list[int]:
    """How many passes of each stage can be repeated: those before the first that read what is not there."""
    recorded, counts = by_stage(trace), []
    for j in range(1, stages + 1):
        own = recorded.get(j, [])
        before = counts[-1] if counts else 0
        counts.append(next((i for i, r in enumerate(own) if j > 1 and r.source_step >= before), len(own)))
    return counts


@pytest.mark.parametrize("tree", [ALTERED, RUNS["sequential-dgl"], RUNS["virtual"]], ids=["sim", "sequential", "virt"])
def test_a_trace_that_ends_anywhere_is_repeated_to_its_end(tree, make_run, replay, mismatch) -> None:
    run = make_run(tree)
    for cut in (1, 2, 3, len(run.records) // 3, len(run.records) // 2, len(run.records) - 1):
        part = with_trace(run, run.records[:cut])
        done = [sum(r.stage == j for r in part.records) for j in (1, 2, 3)]
        for stopped in (with_summary(part, status="interrupted"), changed(part, summary=None)):
            results = replay(stopped)
            assert [r[:3] for r in results] == [(j, n, n) for j, n in enumerate(done, 1)]
        mismatch(part)  # a completed run has no such trace


@settings(max_examples=20)
@given(stage=st.integers(1, 3), share=st.floats(0, 1))
def test_a_stage_that_ends_anywhere_takes_along_only_what_read_it(stage, share, original, replay, mismatch) -> None:
    """A killed stage loses its last lines, and others had read what it made in them."""
    own = of(original, stage)
    kept = own[: int(share * len(own))]
    assume(len(kept) < len(own))
    trace = [r for r in original.records if r.stage != stage or r.step < len(kept)]
    assume(trace)
    run = with_trace(original, trace)
    results = replay(with_summary(run, status="interrupted"))
    possible = repeatable(trace, 3)
    recorded = [sum(r.stage == j for r in trace) for j in (1, 2, 3)]
    assert [r[:3] for r in results] == [(j, possible[j - 1], recorded[j - 1]) for j in (1, 2, 3)]
    for j, passes, _, state_equal in results:
        trained = sum(r.kind == TRAIN for r in of(original, j)[:passes])
        assert state_equal is (True if trained == 11 else None)
    mismatch(run)


def test_the_last_states_of_a_stopped_run_are_compared(original, mismatch, digits_folder) -> None:
    """As far as the updates agree: a stage may have gone on for a moment after the last line of its trace."""
    from asyncdgl.engine.replayer import Replay

    half = with_trace(original, original.records[: len(original.records) // 2])
    repetition = Replay(changed(half, summary=None), digits_folder)
    repetition.run()
    stages = []
    for j, passes in repetition._passes.items():
        state = {"updates": passes.learner.updates, "state_sha256": passes.learner.state_sha256()}
        counts = {**state, "forward_passes": passes.step - passes.learner.updates}
        stages.append(original.summary.stages[j - 1].model_dump() | counts)
    stopped = with_summary(half, status="interrupted", stages=stages)
    assert [r.state_equal for r in Replay(stopped, digits_folder).run()] == [True] * 3
    message = mismatch(with_summary(stopped, 2, state_sha256="0" * 64))
    assert re.fullmatch(r"stage 2: every loss is equal, but its state after \d+ updates is not", message)
    one_more = with_summary(stopped, 2, updates=stages[1]["updates"] + 1)
    assert [r.state_equal for r in Replay(one_more, digits_folder).run()] == [True, None, True]


def test_an_altered_pass_of_a_stopped_run_is_named_as_well(original, mismatch) -> None:
    run = with_summary(with_trace(original, original.records[: len(original.records) // 2]), status="failed")
    record = of(run, 2, TRAIN)[4]
    for changes in (
        {"loss": math.nextafter(record.loss, 0)},
        {"batch": record.batch + 1},
        {"source_incarnation": 1},
        {"source_step": -1},
    ):
        assert named(mismatch(with_pass(run, record, **changes))) == (2, record.step)
