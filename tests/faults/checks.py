"""What has to be so, at each step and at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from faults.hashing import State, data
from faults.schedule import Plan

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.build import make_clock
from asyncdgl.on_ray.buffer import BufferActor
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.records import EpochLine, EvaluationLine
from asyncdgl.rundir.trace import TRAIN, PassRecord, by_stage

OF_A_LIFE = {"begin", "places", "reserve", "insert", "drop"}
"""What only the newest process of a producer may ask a buffer for."""


class Broken(AssertionError):
    """Something is not as it has to be."""


def demand(holds: bool, what: object) -> None:
    if not holds:
        raise Broken(what)


def check_clock(config: ResolvedConfig, stage: int, step: int, v: float) -> None:
    """A stage's clock is never behind what its passes took (rule 17)."""
    clock, in_steps = make_clock(config, stage), config.profile.unit == "steps"
    lengths = [clock.length(made) for made in range(step)]
    least = sum(length.step + (length.pause if in_steps else 0.0) for length in lengths)
    demand(v >= least - 1e-6, f"stage {stage}: its clock shows {v} after {step} passes that took {least}")


def check_pace(actor: Any) -> None:
    """Nobody waits who may go."""
    for stage, (may_go, future) in actor._waiting.items():
        demand(future.done() or not may_go(), f"the pace keeper: nobody wakes stage {stage}")


def check_call(actor: Any, method: str, args: Sequence[Any], producer: int) -> None:
    """What has to be so once a call was served."""
    if method == "gone":
        demand(actor._pace._moving.get(args[0].stage) is None, f"stage {args[0].stage} is gone, and holds others")
    elif method == "through_ray" and isinstance(actor, BufferActor) and args[1] in OF_A_LIFE:
        demand(args[2][0] >= producer, f"{args[1]} of life {args[2][0]} was taken after that of a later one")


def check_buffer(name: str, actor: Any) -> None:
    """Rule 15 and the bounds of a buffer, and that nothing lies where something else may be written."""
    buffer, link = actor._buffer, actor._buffer._link
    held, on_the_way = buffer._held, len(link)
    demand(buffer.inserted == len(held) + buffer.retired + buffer.overwritten_unused, f"{name}: inserted")
    demand(link.sent == buffer.inserted + on_the_way + link.lost + link.dropped, f"{name}: sent")
    demand(len(held) <= buffer._config.size, f"{name}: holds {len(held)}")
    if buffer._config.on_full == "block":
        demand(len(held) + on_the_way <= buffer._config.size, f"{name}: holds and awaits more than its size")
    demand(buffer.sampled == actor._given.number, f"{name}: draws as if {buffer.sampled} samplings had been")
    free = actor._memory._free
    if free:
        places = {entry.payload.place for entry in buffer.readable}
        demand(not places.intersection(free), f"{name}: an entry lies in a free place")
        demand(len(set(free)) == len(free) and not actor._lent.intersection(free), f"{name}: a place is free twice")


def replayed(plan: Plan, passes: Mapping[int, Sequence[PassRecord]]) -> dict[int, State]:
    """The state that each stage comes to if it makes the passes of the trace, each of which must be what it says."""
    seed, quota = plan.config.seed, plan.config.epochs * plan.per_epoch
    outputs: dict[int, dict[tuple[Any, Any], tuple[int, int, int]]] = defaultdict(dict)
    ends = {}
    for j in range(1, plan.config.stages + 1):
        live: list[tuple[int, State]] = []
        for r in passes.get(j, []):
            while live and live[-1][0] >= r.step:
                live.pop()
            demand((live[-1][0] if live else -1) == r.step - 1, f"{r[:3]}: what it rests on is missing")
            before = live[-1][1] if live else State.first(seed, j)
            if j == 1:
                demand(r.batch == r.step, f"{r[:3]}: reads batch {r.batch}")
                x = data(seed, r.batch)
            else:
                demand((r.source_incarnation, r.source_step) in outputs[j - 1], f"{r[:3]}: reads what nobody made: {r}")
                x, batch, update = outputs[j - 1][r.source_incarnation, r.source_step]
                demand((r.batch, r.source_update) == (batch, update), f"{r[:3]}: comes from another pass than it says")
            demand((r.kind == TRAIN) == (before.updates < quota), f"{r[:3]}: {r.kind} after {before.updates} updates")
            if r.kind == TRAIN:
                after, output, loss = before.trained(x)
                demand(r.loss == loss, f"{r[:3]}: its loss is not that of its pass made again")
            else:
                after, output = before, before.forwarded(x)
            outputs[j][r.incarnation, r.step] = output, r.batch, before.updates
            live.append((r.step, after))
        ends[j] = live[-1][1] if live else State.first(seed, j)
    return ends


def check_trace(plan: Plan, records: Sequence[PassRecord], died: Sequence[str], keeps_reader: bool) -> dict[int, State]:
    """The trace of a run that is complete.

    Args:
        plan: of the run.
        records: as they stand in the file.
        died: names of what died.
        keeps_reader: whether nothing but stages, the pace keeper and the evaluator died.
    """
    names = Counter(r[:3] for r in records)
    demand(len(names) == len(records), f"recorded twice: {[name for name, count in names.items() if count > 1]}")
    passes = by_stage(records)
    buffer = plan.config.buffer
    for j, own in passes.items():
        if j == 1:
            continue
        # Who makes its passes again sends them again: a buffer that has died meanwhile does not know that it gave them.
        if {f"stage {j - 1}", f"buffer {j - 1}"} <= {*died}:
            continue
        used: dict[tuple[Any, Any], list[int]] = defaultdict(list)
        newest: dict[tuple[Any, Any], int] = {}
        for r in own:
            used[r.source_incarnation, r.source_step].append(r.times_sampled or 0)
            if buffer.sampler == "fifo":
                before = newest.get((r.incarnation, r.source_incarnation), -1)
                demand((r.source_step or 0) >= before, f"{r[:3]}: reads step {r.source_step} after {before}")
                newest[r.incarnation, r.source_incarnation] = r.source_step or 0
            if plan.config.algorithm == "sync-dgl":
                demand(r.source_step == r.step, f"{r[:3]}: reads step {r.source_step}")
        for name, times in used.items():
            demand(len(set(times)) == len(times), f"stage {j}: {name} was given twice as the same use: {times}")
            demand(max(times) <= (buffer.max_reuse or max(times)), f"stage {j}: {name} was given {times}")
            if keeps_reader:
                demand(sorted(times) == list(range(1, len(times) + 1)), f"stage {j}: {name} was given {times}")
    return replayed(plan, passes)


def check_end(
    plan: Plan,
    records: Sequence[PassRecord],
    lines: Sequence[EpochLine | EvaluationLine],
    outcome: Outcome,
    died: Sequence[str],
    resumed: int,
    stopped: bool,
) -> None:
    """A run that is complete.

    Args:
        plan: of the run.
        records: of its trace.
        lines: of its metrics.
        outcome: what its last process handed back.
        died: names of what died.
        resumed: how often it was gone on with.
        stopped: whether a process was, as by SIGSTOP.
    """
    config, numbers = plan.config, range(1, plan.config.stages + 1)
    keeps = not resumed and not any(name.startswith("buffer") for name in died)
    states = check_trace(plan, records, died, keeps)
    for j, state in states.items():
        demand(state.updates == config.epochs * plan.per_epoch, f"stage {j}: {state.updates} updates")
        demand(outcome.ends[j].state_sha256 == str(state), f"stage {j}: its state is not that of its replay")
    epochs = [(line.stage, line.epoch) for line in lines if isinstance(line, EpochLine)]
    demand(sorted(epochs) == [(j, e) for j in numbers for e in range(1, config.epochs + 1)], f"epochs: {epochs}")
    evaluated = [line for line in lines if isinstance(line, EvaluationLine)]
    found = [(line.final, line.epoch) for line in evaluated]
    demand(sum(line.final for line in evaluated) == 1 and found[-1][0], f"evaluations: {found}")
    demand(len(set(found)) == len(found), f"evaluations: {found}")
    if not resumed:
        demand(len(found) == config.epochs, f"evaluations: {found}")
    demand(evaluated[-1].test_accuracy == tuple(states[j].accuracy for j in numbers), "the final evaluation")
    silent = {int(name.split()[1]) for name in died if name.startswith("buffer")}  # at its end it may say nothing
    if config.algorithm == "async-dgl" and not stopped:
        silent.clear()
    demand({b.after_stage for b in outcome.buffers} | silent >= {*numbers[:-1]}, "a buffer's books are missing")
    for b in outcome.buffers:
        demand(b.inserted == b.left + b.retired + b.overwritten_unused, f"the books of {b}")
        demand(b.sent == b.inserted + b.on_the_way + b.lost + b.dropped + b.lost_in_fault, f"the books of {b}")
        demand(b.sampled >= outcome.ends[b.after_stage + 1].passes, f"the books of {b}")
        demand(not keeps or not b.lost_in_fault, f"lost in no fault: {b}")
    known = {fault.process for fault in outcome.faults}
    demand(resumed or known <= {*died}, f"did not die: {known - {*died}}")
