"""Step times of the virtual runtime, measured: a process for each stage, all computing at once. Starts processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import psutil
import pytest

from asyncdgl.config.sections import PassTimes
from asyncdgl.errors import StageFailed
from asyncdgl.plan import step_times
from asyncdgl.plan.step_times import measure_step_times

# A process imports torch first, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def config(small_config) -> Any:
    return small_config(
        runtime="virtual", stages=2, batch_size=32, model={"blocks": 2, "width": 4}, virtual={"step_times": "measure"}
    )


class Children:
    """A check that a measurement calls while it waits: remembers the processes, and does something to them once."""

    def __init__(self, then: Any = None) -> None:
        self.seen: dict[int, psutil.Process] = {}
        self.calls = 0
        self._then = then

    def __call__(self) -> None:
        self.calls += 1
        for child in sorted(multiprocessing.active_children(), key=lambda child: int(child.name.split("-")[1])):
            self.seen.setdefault(child.pid, psutil.Process(child.pid))
        if self._then is not None:
            self._then(self)

    def assert_gone(self) -> None:
        assert len(self.seen) == 2
        assert multiprocessing.active_children() == []
        assert not [child for child in self.seen.values() if child.is_running()]


def test_times_of_two_stages(config, digits_folder) -> None:
    for _ in range(2):  # a second time where something else took the cores in one half of the first
        children = Children()
        times = measure_step_times(config, digits_folder, children)
        children.assert_gone()
        assert children.calls > 2 * step_times.MEASURE_S, "both kinds are measured for so many seconds"
        if all(t.forward < t.train for t in times):
            break
    assert [type(t) for t in times] == [PassTimes, PassTimes]
    for t in times:
        # Some millions of multiplications take from a tenth of a millisecond to a few.
        assert 1e-5 < t.forward < t.train < 0.5
    # What is measured is what config.yaml then says, and a run takes it as it is.
    assert config.replace(virtual={"step_times": times}).virtual.step_times == times


def test_the_only_process_dies(small_config, digits_folder, monkeypatch) -> None:
    monkeypatch.setattr(step_times, "_measure", os.getpid)  # called with arguments, which it refuses
    with pytest.raises(StageFailed, match="stage 1: its process died"):
        measure_step_times(small_config(stages=1), digits_folder, lambda: None)
    assert multiprocessing.active_children() == []


def test_a_stage_raises(config, digits_folder, monkeypatch) -> None:
    monkeypatch.setattr(step_times, "_measure", os.getpid)
    with pytest.raises(StageFailed, match=r"stage [12]: its process died"):
        measure_step_times(config, digits_folder, lambda: None)


@pytest.mark.parametrize("index", [0, 1])
def test_a_stage_is_killed(config, digits_folder, index) -> None:
    """Whichever it is: it is named, and the other, which waits for it, ends too."""
    children = Children(kill(index))
    with pytest.raises(StageFailed, match=f"stage {index + 1}: its process died"):
        measure_step_times(config, digits_folder, children)
    children.assert_gone()


class Hung(Exception):
    """The measurement goes on without noticing."""


def kill(index: int) -> Any:
    """Kill one of the stages' processes, the first ones first; a second later it should have been noticed."""

    def then(children: Children) -> None:
        if children.calls == 1:
            list(children.seen.values())[index].kill()
        if children.calls > 10:
            raise Hung

    return then


class Interrupt(Exception):
    """What a signal raises in a check."""


@pytest.mark.parametrize("at_call", [1, 5])
def test_an_interrupt_leaves_no_process_behind(config, digits_folder, at_call) -> None:
    def interrupt(children: Children) -> None:
        if children.calls == at_call:
            raise Interrupt

    children = Children(interrupt)
    began = time.monotonic()
    with pytest.raises(Interrupt):
        measure_step_times(config, digits_folder, children)
    children.assert_gone()
    assert children.calls == at_call
    assert time.monotonic() - began < 30, "it does not wait for what the processes do"
