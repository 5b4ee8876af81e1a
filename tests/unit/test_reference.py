"""The reference of a sweep: differences between runs of one seed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from asyncdgl.errors import ConfigError
from asyncdgl.sweep.grid import load_sweep
from asyncdgl.sweep.results import RunResult, SweepResults, estimate, points, points_csv

ACCURACIES = {
    (1.0, "async-dgl"): {0: 0.50, 1: 0.60, 2: 0.70},
    (2.0, "async-dgl"): {0: 0.48, 1: 0.57, 2: 0.69, 3: 0.90},
    (None, "sync-dgl"): {0: 0.55},
}


def results(reference: dict[str, object]) -> SweepResults:
    stage = {"staleness": {"mean": None}, "times_sampled": {"mean": None}, "batch_age": {"mean": None}}
    runs = []
    for (slowdown, algorithm), seeds in ACCURACIES.items():
        for seed, accuracy in seeds.items():
            summary = {
                "test_accuracy": accuracy,
                "ensemble_test_accuracy": None,
                "train_seconds": 1.0,
                "stages": [{**stage, "busy_fraction": 1.0, "updates": 1}],
                "buffers": [],
            }
            values = {"delays.slowdown": slowdown, "algorithm": algorithm}
            runs.append(RunResult(values, seed, f"{slowdown}{algorithm}{seed}", Path(), summary))
    return SweepResults("made", Path(), ["delays.slowdown", "algorithm"], None, runs, [], reference)


def test_seeds_are_compared_with_the_same_seed() -> None:
    reference, slow, sync = points(results({"delays.slowdown": 1}))
    assert reference.difference is None
    assert slow.difference == estimate([0.48 - 0.50, 0.57 - 0.60, 0.69 - 0.70])  # seed 3 has no partner
    assert slow.difference.sd < slow.estimates["test_accuracy"].sd / 5
    assert sync.difference is None  # a slowdown means nothing to it


def test_a_baseline_can_be_the_reference() -> None:
    fast, slow, sync = points(results({"algorithm": "sync-dgl"}))
    assert fast.difference == estimate([0.50 - 0.55])
    assert slow.difference == estimate([0.48 - 0.55])
    assert sync.difference is None


def test_the_table_has_the_difference_only_with_a_reference() -> None:
    rows = list(csv.DictReader(io.StringIO(points_csv(results({"delays.slowdown": 1})))))
    assert float(rows[1]["less_reference_mean"]) == pytest.approx(-0.02)
    assert rows[0]["less_reference_mean"] == rows[2]["less_reference_mean"] == ""
    assert "less_reference" not in points_csv(results({}))


@pytest.mark.parametrize("reference", ["{buffer.size: 7}", "{optim.lr: 0.1}"])
def test_a_reference_that_no_run_has_is_refused(tmp_path, reference) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"config: {{runtime: sim}}\ngrid: {{buffer.size: [1, 2]}}\nreference: {reference}\n")
    with pytest.raises(ConfigError, match="reference: no run has"):
        load_sweep(path)
