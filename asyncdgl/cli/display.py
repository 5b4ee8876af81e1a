"""What a person sees of a run: a live table on a terminal, plain lines elsewhere; and the table at its end."""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.observer import Line, Progress
from asyncdgl.rundir.trace import TRAIN, PassRecord
from asyncdgl.rundir.writer import RunWriter

RECENT_PASSES = 200
MOST_ROWS = 16
"""Stages that a table shows; of more, the first and the last."""

PLAIN_WIDTH = 100
"""Columns where the output is no terminal."""


class RunDisplay:
    """Observer of a run: writes everything to the run directory and shows how it goes.

    Args:
        config: the run.
        writer: of its directory.
    """

    def __init__(self, config: ResolvedConfig, writer: RunWriter) -> None:
        self._config = config
        self._writer = writer
        self._console = console()
        self._live: Live | None = None
        self._notice = ""
        self._began = time.monotonic()
        self._progress: dict[int, Progress] = {}
        self._accuracy: list[float] = []
        numbers = range(1, config.trained_stages + 1)
        self._busy_s = dict.fromkeys(numbers, 0.0)
        self._last_s = 0.0
        self._update_ends: dict[int, list[float]] = {j: [] for j in numbers}
        self._sampled: dict[int, deque[tuple[float, int]]] = {j: deque(maxlen=RECENT_PASSES) for j in numbers}

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exc)
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)

    # --- Observer

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        self._writer.passed(records)
        for r in records if self._live is not None else ():
            self._busy_s[r.stage] += r.end_s - r.start_s
            self._last_s = max(self._last_s, r.end_s)
            if r.kind == TRAIN:
                self._update_ends[r.stage].append(r.end_s)
                if r.sampled_s is not None and r.source_update is not None:
                    self._sampled[r.stage].append((r.sampled_s, r.source_update))

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``."""
        self._progress[stage] = progress
        self._notice = "training"

    def epoch_completed(self, line: Line) -> None:
        """See ``Observer``."""
        self._writer.metric(line)

    def evaluated(self, line: Line) -> None:
        """See ``Observer``."""
        self._writer.metric(line)
        self._accuracy = line["test_accuracy"]
        if self._live is None:
            heads = " ".join(f"{a:.4f}" for a in self._accuracy)
            stage = f"stage {line['stage']}, " if "stage" in line else ""
            self.say(f"{stage}epoch {line['epoch']:3d}  test accuracy of heads 1 to {len(self._accuracy)}: {heads}")

    def noticed(self, message: str) -> None:
        """See ``Observer``."""
        self._notice = message

    # --- Live table

    def _recent_staleness(self, stage: int) -> list[int]:
        """Of the last passes that the producer's reports reach already: they come in a moment apart."""
        ends = self._update_ends.get(stage - 1, [])
        return [bisect_right(ends, s) - update - 1 for s, update in self._sampled[stage] if ends and s <= ends[-1]]

    def _table(self) -> Table:
        elapsed = time.monotonic() - self._began
        title = f"{self._config.name}: {self._notice}, {elapsed:.0f} s"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("stage", "epoch", "updates", "loss", "train acc.", "test acc.", "busy", "staleness", ""):
            table.add_column(name, justify="right")
        for j, p in sorted(self._progress.items())[:MOST_ROWS]:
            stale = self._recent_staleness(j)
            table.add_row(
                str(j),
                f"{p.epoch}/{self._config.epochs}",
                str(p.updates),
                _number(p.loss, ".4f"),
                _number(p.accuracy, ".3f"),
                f"{self._accuracy[j - 1]:.4f}" if self._accuracy else "",
                f"{self._busy_s[j] / self._last_s:.0%}" if self._last_s else "",
                f"{sum(stale) / len(stale):.1f}" if stale else "",
                "stopped" if p.stopped else "forwards only" if p.epoch >= self._config.epochs else "",
            )
        return table


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    plain = not sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=PLAIN_WIDTH if plain else None)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show_summary(summary: Mapping[str, Any], profile: str) -> None:
    """The table at the end of a run."""
    out = console()
    title = f"{summary['algorithm']} on {summary['runtime']}, delay profile {profile}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("stage", "updates", "forwards", "test acc.", "busy", "waited for", "staleness", "reuse"):
        table.add_column(name, justify="left" if name == "waited for" else "right")
    stages = summary["stages"]
    left_out = len(stages) - MOST_ROWS
    for number, s in enumerate(stages):
        if left_out > 0 and number == MOST_ROWS // 2:
            table.add_row("…", "")
        if left_out > 0 and MOST_ROWS // 2 <= number < MOST_ROWS // 2 + left_out:
            continue
        table.add_row(
            str(s["stage"]),
            str(s["updates"]),
            str(s["forward_passes"]),
            _number(s["test_accuracy"], ".4f"),
            f"{s['busy_fraction']:.0%}",
            _main_waits(s["wait_seconds"], summary["train_seconds"]),
            _number(s["staleness"]["mean"], ".2f"),
            _number(s["times_sampled"]["mean"], ".2f"),
        )
    out.print(table)
    if summary["test_accuracy"] is not None:
        out.print(
            f"test accuracy {summary['test_accuracy']:.4f} (last stage), "
            f"{summary['ensemble_test_accuracy']:.4f} (ensemble of all heads)"
        )
    unit = "steps" if summary.get("time_unit") == "steps" else "s"
    rate = f", {summary['images_per_second']:.0f} images/s" if summary["images_per_second"] else ""
    out.print(f"{summary['train_seconds']:.1f} {unit} of training{rate}, {summary['wall_seconds']:.1f} s in all")


def _main_waits(waits: Mapping[str, float], seconds: float) -> str:
    shares = sorted(((s / seconds, reason) for reason, s in waits.items()), reverse=True) if seconds else []
    return ", ".join(f"{reason} {share:.0%}" for share, reason in shares[:2] if share >= 0.005)
