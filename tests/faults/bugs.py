"""Mistakes that recovery could have: each is planted into the real classes, and the universe has to find it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from asyncdgl.buffers.buffer import ReplayBuffer
from asyncdgl.buffers.given import Given
from asyncdgl.buffers.link import _Steps
from asyncdgl.engine import restart
from asyncdgl.engine.history import Completeness, History
from asyncdgl.engine.passes import StagePasses
from asyncdgl.engine.past import go_on
from asyncdgl.engine.reports import Reports
from asyncdgl.on_ray import run as on_ray_run
from asyncdgl.on_ray import stage as on_ray_stage
from asyncdgl.on_ray.buffer import BufferActor, Reply
from asyncdgl.on_ray.ends import Inbox, Outbox
from asyncdgl.on_ray.evaluator import EvaluatorClient
from asyncdgl.on_ray.pace import Caller, PaceActor
from asyncdgl.on_ray.silence import Silence
from asyncdgl.on_ray.stage import StageInPlace
from asyncdgl.on_ray.transport.calls import Lost
from asyncdgl.on_ray.transport.memory import EntryMemory, Stored
from asyncdgl.rundir import arrays

BUGS: dict[str, tuple[Any, str, Any]] = {}
"""By name: the class or module, the attribute, and what takes its place."""


def bug(owner: Any, attribute: str) -> Callable[[Any], Any]:
    """The decorated function takes the place of an attribute; its docstring names the mistake."""

    def plant(wrong: Any) -> Any:
        BUGS[wrong.__name__] = owner, attribute, wrong
        return wrong

    return plant


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """With a bug; without one for None."""
    if name is None:
        yield
        return
    owner, attribute, wrong = BUGS[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(owner, attribute, wrong))
        if name == "a_checkpoint_counts_before_what_it_rests_on":
            stack.enter_context(patch.object(restart, "whole_passes", _all_passes))
        yield


def _all_passes(passes: Any) -> dict[int, int]:
    return {j: len(restart.lineage(own)) for j, own in passes.items()}


_add = _Steps.add
_keep = StageInPlace._keep
_drops = Outbox._drops
_reserve = Outbox.reserve
_write = Reports.write
_replace = PaceActor._replace
_plan = restart.plan_restart
_again = Given.again
_count = Given.count
_insert = BufferActor.insert
_connect = Inbox._connect
_evaluate = EvaluatorClient.evaluate
_init = StageInPlace.__init__
_begin = BufferActor.begin
_begin_reading = BufferActor.begin_reading


@bug(_Steps, "add")
def a_repeated_entry_is_taken(self: _Steps, step: int) -> bool:
    _add(self, step)
    return True


@bug(BufferActor, "insert")
async def an_insert_is_answered_before_it_is_done(self: BufferActor, life: int, *args: Any) -> int | None:
    self._check(life)
    following = self._lend(args[1].nbytes) if isinstance(args[1], Stored) else None

    async def later() -> None:
        await asyncio.sleep(0.02)
        place = await _insert(self, life, *args)
        if place is not None:
            self._lent.discard(place)
            self._memory.give_back(place)

    asyncio.get_running_loop().create_task(later())
    return following


@bug(StageInPlace, "_keep")
def a_checkpoint_comes_before_its_entries_are_sent(self: StageInPlace) -> None:
    with patch.object(Outbox, "flush", lambda out: None):
        _keep(self)


@bug(PaceActor, "release")
async def a_stage_that_waits_wakes_nobody(self: PaceActor, caller: Caller) -> bool:
    stage = self._admit(caller)
    self._pace.release(stage)
    return self._training.later_than(stage)


@bug(StageInPlace, "__init__")
def the_clock_is_not_restored(self: StageInPlace, *args: Any) -> None:
    _init(self, *args)
    self._turn.v = 0.0


@bug(Given, "again")
def what_is_given_again_counts_as_used_again(self: Given[Any], number: int) -> Any:
    reply = _again(self, number)
    if not isinstance(reply, Reply) or reply.sample is None:
        return reply
    return Reply(reply.sample._replace(times_sampled=reply.sample.times_sampled + 1), reply.sampled_at)


@bug(Given, "again")
def what_is_given_again_is_the_one_after(self: Given[Any], number: int) -> Any:
    return _again(self, number if number + 1 >= self.number else number + 1)


@bug(restart, "plan_restart")
def a_stage_goes_on_as_the_same_incarnation(run: Any, kept: Any) -> Any:
    planned = _plan(run, kept)
    for stage in planned.stages.values():
        object.__setattr__(stage, "incarnation", 0)
    return planned


@bug(on_ray_stage, "go_on")
def momentum_is_not_restored(passes: StagePasses, kept: Any) -> None:
    position = kept.of(passes.number).model_copy(update={"optimizer": ()})
    whole = kept.position.model_copy(update={"stages": (position,)})
    go_on(passes, type(kept)(whole, kept.arrays))


@bug(StagePasses, "go_on")
def the_step_is_not_restored(self: StagePasses, position: Any) -> None:
    self._entry_bytes = position.entry_bytes
    self.meter.load(position.epoch_updates, position.epoch_loss, position.epoch_correct)


@bug(History, "_compare")
def passes_made_again_are_not_compared(self: History, record: Any) -> None:
    pass


@bug(Completeness, "of")
def a_checkpoint_counts_before_what_it_rests_on(self: Completeness, stage: int) -> int:
    return 10**9


@bug(Outbox, "_drops")
def a_later_process_says_nothing_of_what_it_drops(self: Outbox) -> Any:
    drops = _drops(self)
    return [] if self._life else drops


@bug(ReplayBuffer, "begin_sampling")
def the_number_of_the_draw_is_not_restored(self: Any, number: int) -> None:
    pass


@bug(on_ray_run.RayRun, "_is_there_again")
def another_pace_keeper_is_not_told_who_has_trained(self: Any, name: str, greeting: Any) -> None:
    self._greeted(name, greeting)


@bug(PaceActor, "gone")
async def a_dead_stage_holds_others(self: PaceActor, caller: Caller) -> None:
    stage, self._lives[caller.stage] = caller
    self._starts[stage] += 1
    self._wake()


@bug(EntryMemory, "let_go")
def a_place_is_free_though_another_needs_it(self: EntryMemory, place: int) -> None:
    if self._holders.pop(place, None) is not None:
        self.give_back(place)


@bug(Inbox, "_connect")
def what_was_fetched_of_a_dead_buffer_is_waited_for(self: Inbox) -> None:
    fetching = list(self._fetching)
    _connect(self)
    self._fetching.extend(fetching)


@bug(Given, "count")
def one_too_many_is_let_go(self: Given[Any], step: int) -> None:
    _count(self, step + self._least)


@bug(EvaluatorClient, "evaluate")
def an_evaluation_is_not_asked_for_again(self: EvaluatorClient, evaluation: Any) -> None:
    if not self._died:
        _evaluate(self, evaluation)


@bug(History, "completes")
def an_epoch_is_told_twice(self: History, epoch: int) -> bool:
    self.epochs = max(self.epochs, epoch)
    return True


@bug(Silence, "look")
def nobody_ends_who_is_deaf(self: Silence, stages: Any) -> None:
    pass


@bug(arrays, "_sha256")
def a_damaged_checkpoint_is_read(about: Any, named: Any) -> str:
    return ""


@bug(BufferActor, "_check")
def inserts_of_an_older_life_are_taken(self: BufferActor, life: int) -> None:
    pass


# --- Those that were there, until the universe found them


@bug(Outbox, "send_on")
def what_waits_keeps_the_place_it_waits_for(self: Outbox) -> None:
    pass


@bug(Reports, "made")
def what_was_read_was_not_made(self: Reports, stage: int) -> int:
    return self.histories[stage].made


@bug(on_ray_run, "once_there")
def a_buffer_that_starts_again_has_no_books(ref: Any, ask: Any, get: Any, deadline: float) -> Any:
    return get(ref)


@bug(BufferActor, "begin_reading")
async def what_is_not_kept_is_asked_for_again(self: BufferActor, number: int) -> tuple[int, int]:
    return 0, (await _begin_reading(self, number))[1]


@bug(Outbox, "reserve")
def a_place_is_not_reserved_again(self: Outbox, name: Any, wait: bool) -> bool:
    has_place = _reserve(self, name, wait)
    self._reserved.clear()
    return has_place


@bug(Reports, "write")
def the_run_goes_on_from_other_bits(self: Reports, stage: int, chunk: Any, is_last: bool = False) -> None:
    self.histories[stage].repeats = True
    _write(self, stage, chunk, is_last)


@bug(PaceActor, "_replace")
def a_late_word_counts_again(self: PaceActor, caller: Caller) -> None:
    stage, life = caller
    is_late = life == self._lives[stage] > 0
    _replace(self, caller)
    self._starts[stage] += is_late


@bug(StageInPlace, "_trained")
def a_stage_has_trained_before_that_is_reported(self: StageInPlace, _: None) -> None:
    with contextlib.suppress(Lost):
        self._pace._calls.ask("have_trained", [self._number])
    self._has_news = True


@bug(BufferActor, "begin")
async def an_older_life_begins_once_more(self: BufferActor, life: int, following: Any) -> None:
    self._producer = min(self._producer, life)
    await _begin(self, life, following)
