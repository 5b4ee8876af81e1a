"""Tables for people: as wide as the terminal, with fewer columns where it is narrow; and the one at a run's end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table

from asyncdgl.rundir.records import StageSummary, Summary

MOST_ROWS = 16
"""Stages that a table shows; of more, the first and the last."""

UNBOUNDED = 10_000
PLAIN_WIDTH = 100
"""Columns where the output is no terminal."""


class Column(NamedTuple):
    """Of a table: its heading, its cells, and its rank: the highest leave first where there is no room, 0 never."""

    name: str
    cells: Sequence[str]
    rank: int
    words: bool = False


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    plain = not sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=PLAIN_WIDTH if plain else None)


def fitted(out: Console, columns: Sequence[Column], title: str = "", names_dropped: bool = True) -> Table:
    """A table no wider than ``out``: whole columns leave, no number is cut.

    Args:
        out: where it will be shown.
        columns: those without any cell are left out at once.
        title: above it.
        names_dropped: whether a line below it names the columns that left for want of room.
    """
    shown = [column for column in columns if any(column.cells)] or list(columns[:1])
    unbounded = out.options.update_width(UNBOUNDED)  # what a table would take, not what it would be squeezed into
    dropped: list[str] = []
    while True:
        table = _table(shown, title)
        width = Measurement.get(out, unbounded, table).maximum
        worst = max(shown, key=lambda column: column.rank)
        if width <= out.width or worst.rank == 0:
            break
        shown.remove(worst)
        dropped.append(worst.name.replace("\n", " "))
    if names_dropped and dropped:
        table.caption, table.caption_justify = f"no room for: {', '.join(dropped)}", "left"
    return table


def _table(columns: Sequence[Column], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        # Words may be folded where even the columns of rank 0 have no room; numbers never.
        justify: JustifyMethod = "left" if column.words else "right"
        table.add_column(column.name, justify=justify, no_wrap=not column.words, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def number(value: float | None, form: str) -> str:
    """A cell; empty where there is no number."""
    return "" if value is None else format(value, form)


def some_of(count: int) -> list[int | None]:
    """Which of so many rows a table shows; None is a gap."""
    if count <= MOST_ROWS:
        return list(range(count))
    half = MOST_ROWS // 2
    return [*range(half), None, *range(count - half, count)]


def show_summary(summary: Summary, profile: str) -> None:
    """The table at the end of a run, and its main numbers."""
    out = console()
    shown = some_of(len(summary.stages))
    rows = [None if index is None else summary.stages[index] for index in shown]
    title = f"{summary.algorithm} on {summary.runtime}, delay profile {profile}"
    out.print(fitted(out, _stage_columns(rows, summary), title))
    for split, accuracy, ensemble in (
        ("test", summary.test_accuracy, summary.ensemble_test_accuracy),
        ("validation", summary.validation_accuracy, summary.ensemble_validation_accuracy),
    ):
        if accuracy is not None:
            out.print(f"{split} accuracy {accuracy:.4f} (last stage), {ensemble:.4f} (ensemble of all heads)")
    out.print(_duration(summary))


def _stage_columns(rows: Sequence[StageSummary | None], summary: Summary) -> list[Column]:
    def column(name: str, rank: int, cells: Sequence[str], words: bool = False) -> Column:
        return Column(name, cells, rank, words)

    def each(form: str, value: str, part: str | None = None) -> list[str]:
        found = [getattr(row, value) if row is not None else None for row in rows]
        return [number(v if part is None or v is None else getattr(v, part), form) for v in found]

    apart = summary.runtime != "sim"  # there stages take turns: who computes how long says nothing of the algorithm
    return [
        column("stage", 0, [str(row.stage) if row is not None else "…" for row in rows]),
        column("updates", 6, each("d", "updates")),
        column("forwards", 9, each("d", "forward_passes")),
        column("test acc.", 1, each(".4f", "test_accuracy")),
        column("val. acc.", 2, each(".4f", "validation_accuracy")),
        # Staleness leaves before what it does not say: with M = 1 it is 0, and most batches are passed over.
        column("staleness", 5, each(".2f", "staleness", "mean")),
        column("batch age", 3, each(".2f", "batch_age", "mean")),
        column("unseen", 4, each(".1%", "batches_unseen")),
        column("reuse", 7, each(".2f", "times_sampled", "mean")),
        *([column("busy", 8, each(".0%", "busy_fraction"))] if apart else []),
        column("waited for", 10, [_main_waits(row, summary.train_seconds) for row in rows], words=True),
        column("turns lost", 10, [_turns(row.lost_turns) if row is not None else "" for row in rows]),
    ]


def _main_waits(stage: StageSummary | None, seconds: float) -> str:
    if stage is None or not seconds:
        return ""
    shares = sorted(((s / seconds, reason) for reason, s in stage.wait_seconds.items()), reverse=True)
    return ", ".join(f"{reason} {share:.0%}" for share, reason in shares[:2] if share >= 0.005)


def _turns(lost: Mapping[str, int] | None) -> str:
    return str(sum(lost.values())) if lost else ""


def _duration(summary: Summary) -> str:
    """Of real time only where the stages had it at the same time; elsewhere it says nothing but how long one waits."""
    here = f"{summary.wall_seconds:.1f} s"
    if summary.runtime == "ray":
        rate = "" if summary.images_per_second is None else f", {summary.images_per_second:.0f} images/s"
        return f"{summary.train_seconds:.1f} s of training{rate}, {here} in all"
    if summary.runtime == "virtual":
        unit = "steps" if summary.time_unit == "steps" else "s"
        return f"{summary.train_seconds:.1f} {unit} of virtual time, computed here in {here}"
    return f"computed here in {here}"
