"""The trace: JSON round trip, and what follows from hand-made traces with known answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdgl.rundir.trace import (
    PassRecord,
    batch_age,
    batches_unseen,
    by_stage,
    distribution,
    overlap,
    read_trace,
    staleness,
    times_sampled,
)

FLOATS = st.floats(allow_nan=False, allow_infinity=False)

RECORDS = st.builds(
    PassRecord,
    stage=st.integers(1, 9),
    incarnation=st.integers(0, 3),
    step=st.integers(0, 10**9),
    kind=st.sampled_from(["train", "forward"]),
    batch=st.integers(0, 10**9),
    source_incarnation=st.none() | st.integers(0, 3),
    source_step=st.none() | st.integers(0, 10**9),
    source_update=st.none() | st.integers(0, 10**9),
    times_sampled=st.none() | st.integers(1, 99),
    sampled_s=st.none() | FLOATS,
    start_s=FLOATS,
    end_s=FLOATS,
    waits=st.dictionaries(st.sampled_from(["empty", "full", "pace"]), FLOATS),
    loss=st.none() | FLOATS,
)


@given(RECORDS)
def test_a_line_gives_back_every_bit(passed: PassRecord) -> None:
    line = passed.to_json()
    assert "\n" not in line
    assert PassRecord(**json.loads(line)) == passed


def test_a_line_has_the_documented_fields(record) -> None:
    assert list(json.loads(record(1, 0, 1.0).to_json())) == [
        *("stage", "incarnation", "step", "kind", "batch", "source_incarnation", "source_step", "source_update"),
        *("times_sampled", "sampled_s", "start_s", "end_s", "waits", "loss"),
    ]


def test_a_loss_that_is_no_number_survives(record, tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(record(1, 0, 1.0, loss=math.nan).to_json() + "\n")
    (read,) = read_trace(path)
    assert math.isnan(read.loss)


def test_a_line_that_a_kill_cut_short_is_left_out(record, tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [record(1, step, step + 0.1).to_json() + "\n" for step in range(3)]
    whole = "".join(lines)
    for kept in range(len(whole) + 1):
        path.write_text(whole[:kept])
        complete = sum(kept >= len("".join(lines[:n])) for n in (1, 2, 3))
        assert [r.step for r in read_trace(path)] == list(range(complete))


def test_by_stage_orders_stages_incarnations_and_steps(record) -> None:
    trace = [
        record(2, 1, 1.0),
        record(1, 5, 2.0),
        record(2, 0, 3.0),
        record(1, 4, 4.0, incarnation=1),
    ]
    names = {j: [(r.incarnation, r.step) for r in passes] for j, passes in by_stage(trace).items()}
    assert names == {1: [(0, 5), (1, 4)], 2: [(0, 0), (0, 1)]}
    assert list(by_stage(trace)) == [1, 2]


# --- Staleness: the producer's updates end at 1, 2, …, 6 seconds ------------------------------------------------------


@pytest.fixture
def producer(record):
    return [record(1, step, step + 1.0) for step in range(6)]


@pytest.mark.parametrize(
    ("sampled_s", "source_step", "expected"),
    [
        pytest.param(1.0, 0, 0, id="at-the-moment-it-was-made"),
        pytest.param(1.9, 0, 0, id="before-the-next-update-ends"),
        pytest.param(2.0, 0, 1, id="one-update-later"),
        pytest.param(5.5, 2, 2, id="two-updates-later"),
        pytest.param(5.5, 4, 0, id="newest"),
    ],
)
def test_staleness_counts_the_updates_since_the_entry_was_made(
    record, producer, sampled_s, source_step, expected
) -> None:
    reader = record(2, 0, 9.0, sampled_s=sampled_s, source_incarnation=0, source_step=source_step)
    reader = reader._replace(source_update=source_step)
    assert staleness([reader], producer).tolist() == [expected]


def test_staleness_of_an_entry_from_a_forward_only_pass_subtracts_no_update_of_its_own(record, producer) -> None:
    # Step 2 was forward-only: updates were completed at 1, 2, 4, 5 and 6 s, two of them before the pass.
    producer[2] = record(1, 2, 3.0, kind="forward", loss=None)
    reader = record(2, 0, 9.0, sampled_s=4.5, source_incarnation=0, source_step=2, source_update=2)
    assert staleness([reader], producer).tolist() == [1]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sampled_s": 6.0}, id="producer-has-done-its-updates"),
        pytest.param({"kind": "forward", "loss": None}, id="forward-only-reader"),
        pytest.param({"source_update": None, "sampled_s": None}, id="no-source"),
    ],
)
def test_staleness_leaves_out(record, producer, changes) -> None:
    values = {"sampled_s": 3.5, "source_incarnation": 0, "source_step": 2, "source_update": 2, **changes}
    assert staleness([record(2, 0, 9.0, **values)], producer).tolist() == []


def test_staleness_finds_the_kind_of_a_restarted_producers_pass(record) -> None:
    producer = [
        record(1, 0, 1.0),
        record(1, 1, 2.0, kind="forward", loss=None),
        record(1, 1, 3.0, incarnation=1),
        record(1, 2, 4.0, incarnation=1),
    ]
    reader = record(2, 0, 9.0, sampled_s=3.0, source_incarnation=1, source_step=1, source_update=1)
    assert staleness([reader], producer).tolist() == [0]


def test_algorithm_1_has_staleness_and_batch_age_0(record) -> None:
    first = [record(1, n, 2.0 * n + 1) for n in range(5)]
    second = [
        record(2, n, 2.0 * n + 2, sampled_s=2.0 * n + 1, source_incarnation=0, source_step=n, source_update=n)
        for n in range(5)
    ]
    assert staleness(second, first).tolist() == [0] * 4  # the last one was sampled when stage 1 had done its updates
    assert batch_age(second, first).tolist() == [0] * 5
    assert overlap(first, second) == 0


def test_batch_age_counts_batches_of_stage_1(record) -> None:
    first = [record(1, n, n + 1.0) for n in range(6)]
    readers = [
        record(3, 0, 9.0, batch=0, sampled_s=1.0),
        record(3, 1, 9.0, batch=0, sampled_s=4.2),
        record(3, 2, 9.0, batch=3, sampled_s=6.0),
        record(3, 3, 9.0, batch=3, sampled_s=6.0, kind="forward", loss=None),
        record(1, 3, 9.0, batch=3),
    ]
    assert batch_age(readers, first).tolist() == [0, 3, 2]


def test_batch_age_follows_a_stream_that_begins_again(record) -> None:
    """`sequential-dgl`: stage 1 forwards each batch again for stage 2, which reads it at once."""
    first = [record(1, n, n + 1.0) for n in range(3)]
    first += [record(1, 3 + n, 4.0 + 2 * n, batch=n, kind="forward", loss=None) for n in range(3)]
    second = [record(2, n, 5.0 + 2 * n, batch=n, sampled_s=4.0 + 2 * n, source_step=3 + n) for n in range(3)]
    assert batch_age(second, first).tolist() == [0, 0, 0]


def test_batches_unseen_is_the_share_that_was_passed_over(record) -> None:
    seen = [record(2, n, 1.0 + n, batch=batch) for n, batch in enumerate([0, 3, 3, 7, 1])]
    forward = record(2, 5, 9.0, batch=19, kind="forward", loss=None)
    assert batches_unseen([*seen, forward]) == 1 - 4 / 8
    assert batches_unseen([record(1, n, 1.0 + n) for n in range(5)]) == 0
    assert batches_unseen([forward]) is None
    assert batches_unseen([]) is None


def test_times_sampled_counts_training_passes_alone(record) -> None:
    kinds = [("train", 1), ("forward", 2), ("train", 3), ("forward", 9)]
    passes = [record(2, n, 1.0 + n, kind=kind, times_sampled=times) for n, (kind, times) in enumerate(kinds)]
    assert times_sampled([*passes, record(2, 4, 9.0)]).tolist() == [1, 3]


# --- Overlap ----------------------------------------------------------------------------------------------------------


@st.composite
def passes_of_a_stage(draw) -> list[tuple[int, int]]:
    """Intervals that follow each other, as the passes of one stage do."""
    marks = draw(st.lists(st.integers(0, 4), max_size=12))
    position, spans = 0, []
    for gap, length in zip(marks[::2], marks[1::2], strict=False):
        spans.append((position + gap, position + gap + length))
        position += gap + length
    return spans


@given(passes_of_a_stage(), passes_of_a_stage())
def test_overlap_is_the_time_in_which_both_compute(one, other) -> None:
    def records(spans):
        blank = PassRecord(1, 0, 0, "train", 0, None, None, None, None, None, 0.0, 0.0, {}, None)
        return [blank._replace(start_s=float(a), end_s=float(b)) for a, b in spans]

    def seconds(spans):
        return {t for a, b in spans for t in range(a, b)}

    expected = len(seconds(one) & seconds(other))
    assert overlap(records(one), records(other)) == expected
    assert overlap(records(other), records(one)) == expected


def test_overlap_takes_passes_in_any_order(record) -> None:
    one = [record(1, 1, 9.0, start_s=7.0), record(1, 0, 4.0, start_s=0.0)]
    other = [record(2, 0, 8.0, start_s=3.0)]
    assert overlap(one, other) == 2.0


# --- Distributions ----------------------------------------------------------------------------------------------------


def test_distribution() -> None:
    assert distribution(np.arange(101)).model_dump() == {"mean": 50.0, "p50": 50.0, "p95": 95.0, "max": 100.0}


def test_distribution_of_nothing_is_none() -> None:
    assert distribution(np.array([], np.int64)).model_dump() == dict.fromkeys(("mean", "p50", "p95", "max"))
