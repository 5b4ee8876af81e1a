"""Tables on narrow terminals: columns leave, no number is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from asyncdgl.cli import tables
from asyncdgl.cli.display import RunDisplay
from asyncdgl.cli.tables import Column, fitted, show_summary
from asyncdgl.observer import Progress
from asyncdgl.rundir.records import Fault


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(width)``: a console of that width, and what was written on it."""

    def make(width: int) -> tuple[Console, io.StringIO]:
        written = io.StringIO()
        out = Console(file=written, width=width, highlight=False, soft_wrap=True)
        monkeypatch.setattr(tables, "console", lambda: out)
        return out, written

    return make


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_columns_leave_by_rank_and_numbers_stay_whole(terminal, width) -> None:
    out, written = terminal(width)
    numbers = [f"{n}.12345678" for n in range(8)]
    out.print(fitted(out, [Column(f"c{n}", [number, number], n) for n, number in enumerate(numbers)]))
    lines = [line for line in written.getvalue().splitlines() if line.strip()]
    shown = lines[2].split()
    assert shown == numbers[: len(shown)]
    assert len(shown) == min(8, width // 13)
    assert all(len(line.rstrip()) <= width for line in lines if not line.startswith("no room"))
    left_out = [f"c{n}" for n in reversed(range(len(shown), 8))]
    assert (f"no room for: {', '.join(left_out)}" in " ".join(lines)) == bool(left_out)


def test_a_column_without_a_cell_is_left_out_at_once(terminal) -> None:
    out, written = terminal(100)
    out.print(fitted(out, [Column("stage", ["1"], 0), Column("val. acc.", [""], 2)]))
    assert "val. acc." not in written.getvalue()
    assert "no room" not in written.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_summary_of_a_run_fits(terminal, summary_of, width) -> None:
    _, written = terminal(width)
    held_out = {"validation_accuracy": 0.875, "ensemble_validation_accuracy": 0.75}
    stages = [{**stage.model_dump(), "validation_accuracy": 0.875} for stage in summary_of().stages]
    show_summary(summary_of(stages=stages, **held_out), "slow_stage2")
    text = written.getvalue()
    assert "…" not in text
    table = text[: text.index("test accuracy 0.5000")]
    assert all(len(line.rstrip()) <= width for line in table.splitlines() if "no room" not in line)
    heading = next(line for line in table.splitlines() if "updates" in line or "test acc." in line)
    for column in ("test acc.", "val. acc.", "batch age", "unseen"):  # staleness never stands without these
        assert column in heading
    assert ("staleness" in heading) == (width > 60)
    assert "test accuracy 0.5000 (last stage), 0.6250 (ensemble of all heads)" in text
    assert "validation accuracy 0.8750 (last stage), 0.7500 (ensemble of all heads)" in text
    assert "7.5 s of training, 100 images/s, 9.0 s in all" in text


def test_of_many_stages_the_first_and_the_last_are_shown(terminal, summary_of) -> None:
    _, written = terminal(100)
    one = summary_of().stages[1].model_dump()
    show_summary(summary_of(stages=[{**one, "stage": j} for j in range(1, 41)]), "none")
    first = [line.split()[0] for line in written.getvalue().splitlines() if line.strip()][3:20]
    assert first == [*map(str, range(1, 9)), "…", *map(str, range(33, 41))]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_table_fits_and_shows_what_was_passed_over(
    terminal, small_config, record, evaluation_of, tmp_path, monkeypatch, width
) -> None:
    out, written = terminal(width)
    monkeypatch.setattr("asyncdgl.cli.display.console", lambda: out)
    display = RunDisplay(small_config())
    display._live = object()  # as on a terminal
    source = {"source_incarnation": 0, "source_step": 1, "source_update": 1, "times_sampled": 1}
    display.passed([record(1, step, step + 1.0) for step in range(6)])
    display.passed([record(2, 0, 5.0, batch=1, sampled_s=4.0, **source)])
    for stage in (1, 2, 3):
        display.progressed(stage, Progress(1, 11, 0.5, 0.75, stopped=False))
    display.evaluated(evaluation_of([0.5, 0.625, 0.75], validation_accuracy=(0.1, 0.2, 0.3)))
    out.print(display._table())
    lines = written.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines[1:])
    heading = next(line for line in lines if "stage" in line)
    assert all(name in heading for name in ("test acc.", "val. acc."))
    assert "staleness" not in heading or ("batch age" in heading and "unseen" in heading)
    row = next(line for line in lines if line.split()[:1] == ["2"])
    assert "2.0" in row  # stage 1 had completed batches 2 and 3 since
    if width > 60:
        assert "50%" in row  # of batches 0 and 1 it trained on one


def test_the_live_table_says_how_many_died_and_the_last_of_them(terminal, small_config, monkeypatch) -> None:
    out, written = terminal(120)
    monkeypatch.setattr("asyncdgl.cli.display.console", lambda: out)
    display = RunDisplay(small_config())
    display._live = object()  # as on a terminal
    for stage in (1, 2, 3):
        display.progressed(stage, Progress(1, 11, 0.5, 0.75, stopped=False))
    out.print(display._table())
    assert "died" not in written.getvalue()
    faults = [Fault(process="buffer 1", at_s=1.0, again_s=2.0), Fault(process="stage 2", at_s=3.25)]
    display.faulted(faults)
    out.print(display._table())
    assert "2 faults, the last: stage 2 died at 3.2 s" in " ".join(written.getvalue().split())
    display.faulted([faults[0], Fault(process="stage 2", at_s=3.25, again_s=5.0, passes_again=7)])
    out.print(display._table())
    assert "stage 2 died at 3.2 s, works again since 5.0 s, 7 passes again" in " ".join(written.getvalue().split())
