"""What a person sees of a run while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from asyncdgl.cli.tables import MOST_ROWS, Column, console, fitted, number
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.observer import Progress
from asyncdgl.rundir.records import EpochLine, EvaluationLine, Fault
from asyncdgl.rundir.trace import TRAIN, PassRecord

RECENT_PASSES = 200


class RunDisplay:
    """Observer of a run: shows how it goes.

    Args:
        config: the run.
    """

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._console = console()
        self._live: Live | None = None
        self._notice = ""
        self._faults: list[Fault] = []
        self._began = time.monotonic()
        self._progress: dict[int, Progress] = {}
        self._evaluation: EvaluationLine | None = None
        self._shown = range(1, min(config.trained_stages, MOST_ROWS) + 1)
        self._busy_s = dict.fromkeys(self._shown, 0.0)
        self._last_s = 0.0
        self._update_ends: dict[int, list[float]] = {j: [] for j in self._shown}
        self._streamed: list[tuple[float, int]] = []
        """When stage 1 completed which batch."""
        self._recent: dict[int, deque[PassRecord]] = {j: deque(maxlen=RECENT_PASSES) for j in self._shown}
        self._seen: dict[int, set[int]] = {j: set() for j in self._shown}
        self._newest = dict.fromkeys(self._shown, -1)

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

    def began(self, path: Path) -> None:
        """See ``Observer``."""
        self.say(f"run directory: {path}")

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        if self._live is not None:
            for r in records:
                self._count(r)

    def _count(self, r: PassRecord) -> None:
        self._last_s = max(self._last_s, r.end_s)
        if r.stage == 1:
            self._streamed.append((r.end_s, r.batch))
        if r.stage not in self._busy_s:
            return
        self._busy_s[r.stage] += r.end_s - r.start_s
        if r.kind == TRAIN:
            self._update_ends[r.stage].append(r.end_s)
            self._seen[r.stage].add(r.batch)
            self._newest[r.stage] = max(self._newest[r.stage], r.batch)
            if r.sampled_s is not None and r.source_update is not None:
                self._recent[r.stage].append(r)

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``."""
        self._progress[stage] = progress
        self._notice = "training"

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""
        self._evaluation = line
        if self._live is None:
            heads = " ".join(f"{a:.4f}" for a in line.test_accuracy)
            stage = "" if line.stage is None else f"stage {line.stage}, "
            held_out = "" if line.validation_accuracy is None else f"; validation {line.validation_accuracy[-1]:.4f}"
            which = f"test accuracy of heads 1 to {len(line.test_accuracy)}"
            self.say(f"{stage}epoch {line.epoch:3d}  {which}: {heads}{held_out}")

    def faulted(self, faults: Sequence[Fault]) -> None:
        """See ``Observer``."""
        self._faults = list(faults)

    def noticed(self, message: str) -> None:
        """See ``Observer``. What happens while stages train stays on the screen: it is nothing of every day."""
        self._notice = message
        if self._progress:
            self.say(message)

    # --- Live table

    def _staleness(self, stage: int) -> list[float]:
        """Of the last passes that the producer's reports reach already: they come in a moment apart."""
        ends = self._update_ends.get(stage - 1, [])
        known = [r for r in self._recent[stage] if ends and r.sampled_s is not None and r.sampled_s <= ends[-1]]
        return [bisect_right(ends, r.sampled_s or 0.0) - (r.source_update or 0) - 1 for r in known]

    def _batch_age(self, stage: int) -> list[float]:
        made = self._streamed
        known = [r for r in self._recent[stage] if made and r.sampled_s is not None and r.sampled_s <= made[-1][0]]
        places = [(bisect_right(made, r.sampled_s or 0.0, key=lambda of: of[0]), r.batch) for r in known]
        return [made[place - 1][1] - batch for place, batch in places if place]

    def _table(self) -> Table:
        elapsed = time.monotonic() - self._began
        stages = [(j, p) for j, p in sorted(self._progress.items()) if j in self._shown]
        test = self._evaluation.test_accuracy if self._evaluation else None
        held_out = self._evaluation.validation_accuracy if self._evaluation else None

        def column(name: str, rank: int, cells: list[str]) -> Column:
            return Column(name, cells, rank)

        columns = [
            column("stage", 0, [str(j) for j, _ in stages]),
            column("epoch", 1, [f"{p.epoch}/{self._config.epochs}" for _, p in stages]),
            column("updates", 8, [str(p.updates) for _, p in stages]),
            column("loss", 7, [number(p.loss, ".4f") for _, p in stages]),
            column("train acc.", 9, [number(p.accuracy, ".3f") for _, p in stages]),
            column("test acc.", 2, [number(test[j - 1] if test else None, ".4f") for j, _ in stages]),
            column("val. acc.", 3, [number(held_out[j - 1] if held_out else None, ".4f") for j, _ in stages]),
            column("busy", 11, [f"{self._busy_s[j] / self._last_s:.0%}" if self._last_s else "" for j, _ in stages]),
            column("staleness", 6, [_mean(self._staleness(j)) for j, _ in stages]),
            column("batch age", 4, [_mean(self._batch_age(j)) for j, _ in stages]),
            column("unseen", 5, [self._unseen(j) for j, _ in stages]),
            column("", 10, [self._state(p) for _, p in stages]),
        ]
        title = f"{self._config.name}: {self._notice}, {elapsed:.0f} s"
        if self._faults:
            many = f"{len(self._faults)} faults, the last: " if len(self._faults) > 1 else ""
            title += f"\n{many}{described(self._faults[-1])}"
        if not stages:
            return Table(title=title, title_justify="left", box=None)
        return fitted(self._console, columns, title, names_dropped=False)

    def _unseen(self, stage: int) -> str:
        return f"{1 - len(self._seen[stage]) / (self._newest[stage] + 1):.0%}" if self._seen[stage] else ""

    def _state(self, progress: Progress) -> str:
        return "stopped" if progress.stopped else "forwards only" if progress.epoch >= self._config.epochs else ""


def described(fault: Fault) -> str:
    """A fault, in a line."""
    text = f"{fault.process} died at {fault.at_s:.1f} s"
    if fault.again_s is not None:
        text += f", works again since {fault.again_s:.1f} s"
    if fault.passes_again:
        text += f", {fault.passes_again} passes again"
    return text + (f", {fault.lost_passes} passes lost" if fault.lost_passes else "")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else ""
