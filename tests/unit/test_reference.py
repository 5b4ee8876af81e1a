"""The reference of a sweep: differences between runs of one seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from asyncdgl.errors import ConfigError
from asyncdgl.sweeps.grid import Reference, plan_sweep
from asyncdgl.sweeps.measures import estimate
from asyncdgl.sweeps.results import RunResult, SweepResults

ACCURACIES = {
    (1.0, "async-dgl"): {0: 0.50, 1: 0.60, 2: 0.70},
    (2.0, "async-dgl"): {0: 0.48, 1: 0.57, 2: 0.69, 3: 0.90},
    (None, "sync-dgl"): {0: 0.55},
}


@pytest.fixture
def results(summary_of):
    """``results({"delays.slowdown": 1}, measure)``: the results above, compared with that point."""

    def make(point: dict[str, object], measure: str = "test_accuracy") -> SweepResults:
        runs = []
        for (slowdown, algorithm), seeds in ACCURACIES.items():
            for seed, accuracy in seeds.items():
                summary = summary_of(test_accuracy=accuracy, validation_accuracy=1 - accuracy)
                values = {"delays.slowdown": slowdown, "algorithm": algorithm}
                runs.append(RunResult(values, seed, f"{slowdown}{algorithm}{seed}", Path(), summary))
        reference = Reference(measure=measure, values=point) if point else None
        return SweepResults("made", Path(), ["delays.slowdown", "algorithm"], None, runs, [], reference)

    return make


def test_seeds_are_compared_with_the_same_seed(results) -> None:
    reference, slow, sync = results({"delays.slowdown": 1}).points
    assert reference.difference is None
    assert slow.difference == estimate([0.48 - 0.50, 0.57 - 0.60, 0.69 - 0.70])  # seed 3 has no partner
    assert slow.difference.sd < slow.estimates["test_accuracy"].sd / 5
    assert sync.difference is None  # a slowdown means nothing to it


def test_a_baseline_can_be_the_reference(results) -> None:
    fast, slow, sync = results({"algorithm": "sync-dgl"}).points
    assert fast.difference == estimate([0.50 - 0.55])
    assert slow.difference == estimate([0.48 - 0.55])
    assert sync.difference is None


def test_another_measure_can_be_compared(results) -> None:
    _, slow, _ = results({"delays.slowdown": 1}, "validation_accuracy").points
    assert slow.difference.mean == pytest.approx(0.02)
    assert slow.estimates["validation_accuracy"].mean == pytest.approx(0.34)


def test_a_seed_that_diverged_is_not_compared(results, summary_of) -> None:
    whole = results({"delays.slowdown": 1})
    [first, *rest] = whole.runs
    runs = [dataclasses.replace(first, summary=summary_of(status="diverged", test_accuracy=0.1)), *rest]
    _, slow, _ = dataclasses.replace(whole, runs=runs).points
    assert slow.difference == estimate([0.57 - 0.60, 0.69 - 0.70])


def test_the_table_has_the_difference_only_with_a_reference(results) -> None:
    frame = results({"delays.slowdown": 1}).table()
    assert frame["less_reference_mean"][1] == pytest.approx(-0.02)
    assert frame["less_reference_mean"].isna().tolist() == [True, False, True]
    assert not [name for name in results({}).table().columns if "less_reference" in name]


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("{buffer.size: 7}", "reference: no run has buffer.size = 7"),
        ("{optim.lr: 0.1}", "reference: no run has optim.lr = 0.1"),
        ("{buffer.size: 1, measure: accuracy}", "reference: measure must be one of test_accuracy, "),
        ("{measure: test_accuracy}", "reference: it names no key"),
    ],
)
def test_a_reference_that_no_run_has_is_refused(tmp_path, reference, problem) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"config: {{runtime: sim}}\ngrid: {{buffer.size: [1, 2]}}\nreference: {reference}\n")
    with pytest.raises(ConfigError, match=problem):
        plan_sweep(path)
