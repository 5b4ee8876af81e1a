"""Repeats a run from its trace: asynchronous as it was, what each pass read stands there, and so do the losses.

The passes are made in one process in the order of their dependencies, not of their times: a pass needs the one before
it of its own stage, and the one that made what it read. Everything else about the run (delays, buffers, samplers,
losses, waits) decided only who read what, and is not repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.codecs import Payload
from asyncdgl.buffers.entry import Entry, PassName
from asyncdgl.data.dataset import open_dataset
from asyncdgl.engine.build import make_passes
from asyncdgl.engine.passes import StagePasses
from asyncdgl.errors import ConfigError, ReplayMismatch
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.rundir.checkpoint import StagePosition
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord


@dataclass(frozen=True)
class StageReplay:
    """How far one stage was repeated.

    Attributes:
        stage: its number.
        passes: repeated, each with the loss of the trace.
        recorded: passes in the trace; more than repeated only where a stopped run lacks what they read.
        state_equal: whether the final state has the hash of the summary; None where there is none to compare with.
    """

    stage: int
    passes: int
    recorded: int
    state_equal: bool | None


class Replay:
    """One repetition of a run.

    Args:
        run: what it left.
        data: folder of the decoded data set.
        check: called between passes; raises where the replay is to stop.

    Raises:
        ConfigError: the run has nothing that could be repeated.
    """

    def __init__(self, run: Run, data: Path, check: Callable[[], None] = lambda: None) -> None:
        config = run.config
        if not config.has_tensors:
            raise ConfigError(f"{run.path} computed nothing (virtual.train false): there is nothing to replay")
        if not run.records:
            raise ConfigError(f"{run.path} has no passes in its trace: there is nothing to replay")
        set_up_torch(config)
        self._run = run
        self._check = check
        dataset = open_dataset(config, data)
        self._numbers = range(1, config.trained_stages + 1)
        self._passes = {j: make_passes(config, dataset, j, lambda: 0.0) for j in self._numbers}
        recorded = run.passes
        self._recorded = {j: recorded.get(j, []) for j in self._numbers}
        self._readers = Counter(_source(r) for r in run.records if r.stage > 1)
        self._entries: dict[PassName, Entry[Payload]] = {}  # made, and still to be read
        self._given: Counter[tuple[int, PassName]] = Counter()  # how often, to which stage
        self._done = dict.fromkeys(self._numbers, 0)  # passes of the trace that were repeated
        # Where an incarnation began: its state is the one that the stage had there before.
        self._begins = {
            j: {r.step for before, r in pairwise(own) if r.incarnation > before.incarnation}
            for j, own in self._recorded.items()
        }
        self._states: dict[tuple[int, int], tuple[StagePosition, dict[str, Any]]] = {}  # by stage and step

    def run(self) -> list[StageReplay]:
        """Repeat every pass, comparing as it goes.

        Raises:
            ReplayMismatch: names the first pass, or the first stage's final state, that differs.
        """
        while (j := self._next_stage()) is not None:
            self._check()
            self._repeat(j, self._recorded[j][self._done[j]])
            self._done[j] += 1
        return [self._result(j) for j in self._numbers]

    def _next_stage(self) -> int | None:
        """The last stage that can make its next pass: so each entry is soon read and let go."""
        for j in reversed(self._numbers):
            done, recorded = self._done[j], self._recorded[j]
            if done < len(recorded) and (j == 1 or _source(recorded[done]) in self._entries):
                return j
        return None

    def _repeat(self, j: int, record: PassRecord) -> None:
        passes = self._passes[j]
        self._take_place(passes, record)
        name = passes.next_name
        if (record.stage, record.incarnation, record.step) != name:
            raise ReplayMismatch(f"stage {j}: the trace has step {record.step} where step {name.step} is due")
        updates, an_epoch = passes.learner.updates, passes.updates_per_epoch
        was_done = updates > 0 and updates % an_epoch == 0  # with a quota that was raised later
        if record.kind != (TRAIN if passes.is_training else FORWARD) and not (record.kind == FORWARD and was_done):
            raise _differs(record, "kind", TRAIN if passes.is_training else FORWARD, record.kind)
        sample = self._sample(record) if j > 1 else None
        if j == 1 and record.batch != passes.next_batch:
            raise _differs(record, "batch", passes.next_batch, record.batch)
        torch.set_num_threads(self._run.config.threads_of(j))
        passed = passes.run(record.kind, sample, None, {})
        if passed.record.loss != record.loss:
            raise _differs(record, "loss", passed.record.loss, record.loss)
        if passed.entry is not None and self._readers[name]:
            self._entries[name] = passed.entry

    def _take_place(self, passes: StagePasses, record: PassRecord) -> None:
        """Where the pass is the first of an incarnation, go back to where that began."""
        j = passes.number
        if passes.step in self._begins[j]:
            state = passes.learner.state_dict()
            self._states[j, passes.step] = passes.position(state["optimizer"]), state
        follows = record.incarnation == passes.incarnation + 1 and self._may_go_back(j)
        if follows and (j, record.step) in self._states:
            position, state = self._states[j, record.step]
            passes.learner.load_state_dict(state)
            passes.go_on(position)
            passes.incarnation = record.incarnation

    def _may_go_back(self, stage: int) -> bool:
        """Whether a stage ever went on from a checkpoint, as far as the run could say that."""
        summary = self._run.summary
        return summary is None or any(fault.process == f"stage {stage}" for fault in summary.faults)

    def _sample(self, record: PassRecord) -> Sample[Payload]:
        """What the pass read; what the trace says of it must be true of it."""
        source = _source(record)
        entry = self._entries[source]
        self._given[record.stage, source] += 1
        summary = self._run.summary
        given = self._given[record.stage, source]  # what a process that died had read is not in every trace
        if summary is None or summary.faults:
            given = record.times_sampled or 0
        for what, is_so, said in (
            ("batch", entry.source.batch, record.batch),
            ("source_update", entry.source.update, record.source_update),
            ("times_sampled", given, record.times_sampled),
        ):
            if is_so != said:
                raise _differs(record, what, is_so, said)
        self._readers[source] -= 1
        if not self._readers[source]:
            del self._entries[source]
        return Sample(entry.source, entry.payload, record.times_sampled or 1)

    def _result(self, j: int) -> StageReplay:
        passes, recorded, summary = self._passes[j], self._recorded[j], self._run.summary
        complete = summary is not None and summary.status == "completed"
        if self._done[j] < len(recorded):
            record = recorded[self._done[j]]
            source = _source(record)
            made = self._recorded[j - 1][: self._done[j - 1]]
            last = max((r.step for r in made if r.incarnation == source.incarnation), default=-1)
            known = max((r.incarnation for r in self._recorded[j - 1]), default=0)
            could_be = source.incarnation <= known or self._may_go_back(j - 1)
            behind_the_end = source.step > last and could_be
            if complete or not behind_the_end:
                raise ReplayMismatch(
                    f"stage {j}, step {record.step}: it read what step {source.step} of stage {j - 1} made, "
                    "which the trace does not have"
                )
        line = next((s for s in summary.stages if s.stage == j), None) if summary is not None else None
        state_equal = None
        # A stopped run's stage may have gone on for a moment after the last line of its trace.
        if line is not None and line.state_sha256 is not None and line.updates == passes.learner.updates:
            state_equal = line.state_sha256 == passes.learner.state_sha256()
            if not state_equal:
                raise ReplayMismatch(
                    f"stage {j}: every loss is equal, but its state after {line.updates} updates is not"
                )
        elif complete:
            raise ReplayMismatch(
                f"stage {j}: the trace has {passes.learner.updates} updates, but the summary "
                f"{line.updates if line is not None else 'none'}"
            )
        forwards = passes.step - passes.learner.updates
        if complete and line is not None and line.forward_passes != forwards:  # the last ones may have no reader
            raise ReplayMismatch(
                f"stage {j}: the trace has {forwards} forward-only passes, but the summary {line.forward_passes}"
            )
        return StageReplay(j, self._done[j], len(recorded), state_equal)


def _source(record: PassRecord) -> PassName:
    return PassName(
        record.stage - 1, record.source_incarnation or 0, -1 if record.source_step is None else record.source_step
    )


def _differs(record: PassRecord, what: str, repeated: object, said: object) -> ReplayMismatch:
    return ReplayMismatch(
        f"stage {record.stage}, step {record.step} ({record.kind}): {what} is {repeated}, but the trace says {said}"
    )
