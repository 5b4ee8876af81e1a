"""What is decided by cost: the best cut, and the best sharing of the cores, against all that there are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import parse_config
from asyncdgl.errors import ConfigError
from asyncdgl.nets.base import make_networks
from asyncdgl.nets.shape import cut
from asyncdgl.plan.balance import best_cut, best_parts, by_cost, parts_of, share_out, times_of_cut
from asyncdgl.plan.resolve import planned


@given(
    stages=st.integers(1, 6),
    costs=st.lists(st.integers(1, 20), min_size=6, max_size=8),
    heads=st.lists(st.integers(0, 9), min_size=8, max_size=8),
)
def test_no_other_cut_has_a_faster_slowest_stage(stages, costs, heads) -> None:
    """A part takes what its blocks take and what the auxiliary network after its last block does."""

    def seconds(part: tuple[int, int]) -> float:
        first, last = part
        return sum(costs[first - 1 : last]) + heads[last - 1]

    blocks = len(costs)
    found = best_parts(blocks, stages, seconds)
    assert [first for first, _ in found] == [1, *(last + 1 for _, last in found[:-1])]
    assert (len(found), found[-1][1]) == (stages, blocks)
    slowest = []
    for ends in itertools.combinations(range(1, blocks), stages - 1):
        bounds = [0, *ends, blocks]
        slowest.append(max(seconds((a + 1, b)) for a, b in itertools.pairwise(bounds)))
    assert max(map(seconds, found)) == min(slowest)


def test_only_parts_of_some_cut_are_measured() -> None:
    asked = set()

    def seconds(part: tuple[int, int]) -> float:
        asked.add(part)
        return 1.0

    best_parts(6, 2, seconds)
    assert asked == {(1, last) for last in range(1, 6)} | {(first, 6) for first in range(2, 7)}


def test_a_cut_is_taken_as_it_is(small_config) -> None:
    config = small_config(stages=3, model={"blocks": 6, "cut": (1, 5)})
    assert cut(6, 3, (1, 5)) == [range(0, 1), range(1, 5), range(5, 6)]
    assert parts_of(config, 6) == [(1, 1), (2, 5), (6, 6)]


@pytest.mark.parametrize("wrong", [(1, 2), (4,), (0,), (), (-1,)])
def test_a_cut_that_does_not_fit_is_refused(small_config, wrong) -> None:
    with pytest.raises(ConfigError) as error:
        small_config(stages=2, model={"blocks": 4, "cut": wrong})
    assert "model.cut" in str(error.value)


def test_measured_here(small_config) -> None:
    """Which cut is the best depends on the machine; what is said of it does not."""
    config = small_config(stages=2, runtime="sim", model={"blocks": 4, "balance": "cost"})
    chosen = best_cut(config, (1, 8, 8), 10)
    assert chosen.cut in {(1,), (2,), (3,)}
    assert len(chosen.pass_seconds) == 2
    assert min(chosen.pass_seconds) > 0
    assert chosen.updates_per_second == 1 / max(chosen.pass_seconds)
    assert chosen.efficiency == sum(chosen.pass_seconds) / 2 / max(chosen.pass_seconds)
    assert times_of_cut(config.replace(model={"cut": (3,)}), (1, 8, 8), 10).cut == (3,), "a given cut stays"


@given(
    cores=st.integers(1, 12),
    pass_seconds=st.lists(st.integers(1, 20), min_size=1, max_size=4),
)
def test_no_other_sharing_of_the_cores_has_a_faster_slowest_stage(cores, pass_seconds) -> None:
    threads = share_out(cores, pass_seconds)
    assert sum(threads) == max(cores, len(pass_seconds))
    others = [
        counts
        for counts in itertools.product(range(1, cores + 1), repeat=len(pass_seconds))
        if sum(counts) <= max(cores, len(pass_seconds))
    ]
    slowest = [max(s / n for s, n in zip(pass_seconds, counts, strict=True)) for counts in [threads, *others]]
    assert slowest[0] == min(slowest)


def small(**over: Any) -> RunConfig:
    return parse_config({"batch_size": 32, **over, "model": {"width": 4, **over["model"]}})


def test_threads_by_cost(monkeypatch) -> None:
    """With a cut that stays as it is unless that is open too."""
    monkeypatch.setattr("asyncdgl.plan.balance.available_cores", lambda: 5)
    unasked = small(stages=3, model={"blocks": 6})
    asked = unasked.replace(ray={"threads": "cost"})
    config, measured = by_cost(asked, planned(asked), (1, 8, 8), 10)
    assert measured is not None
    assert measured.cut == config.model.cut == (2, 4), "nobody asked for another cut"
    assert config.ray.threads == share_out(5, measured.pass_seconds)
    assert [config.threads_of(j) for j in (1, 2, 3)] == list(config.ray.threads)
    assert by_cost(config, config, (1, 8, 8), 10) == (config, None)
    config = planned(unasked)
    assert by_cost(unasked, config, (1, 8, 8), 10) == (config, None)
    assert [config.threads_of(j) for j in (1, 2, 3)] == [config.threads] * 3


def test_cut_and_threads_by_cost(monkeypatch) -> None:
    monkeypatch.setattr("asyncdgl.plan.balance.available_cores", lambda: 7)
    asked = small(stages=2, model={"blocks": 4, "balance": "cost"}, ray={"threads": "cost"})
    config, measured = by_cost(asked, planned(asked), (1, 8, 8), 10)
    assert measured is not None
    assert (config.model.cut, config.ray.threads) == (measured.cut, share_out(7, measured.pass_seconds))


def test_a_stage_is_measured_alone_whatever_is_said_stage_by_stage() -> None:
    """Delays, threads and step times of stages that the measured network does not have."""
    asked = small(
        stages=4,
        model={"blocks": 4},
        ray={"threads": [1, 1, 1, 2]},
        delays={"profile": {"stages": {4: {"slowdown": 2}}, "links": {3: {"loss": 0.5}}}},
    )
    assert len(times_of_cut(planned(asked), (1, 8, 8), 10).pass_seconds) == 4


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"ray": {"threads": "cost", "address": "10.0.0.5:6379"}}, "on a cluster give a list"),
        ({"ray": {"threads": "cost"}, "device": "cuda"}, "the stages compute on a GPU"),
        ({"model": {"balance": "cost"}, "device": "cuda"}, "this machine has no NVIDIA GPU"),
    ],
)
def test_what_this_machine_cannot_decide_is_refused(monkeypatch, tree, says) -> None:
    monkeypatch.setattr("asyncdgl.plan.machine.visible_gpus", lambda: 1)
    monkeypatch.setattr("asyncdgl.plan.balance.visible_gpus", lambda: int("model" not in tree))
    asked = parse_config({"stages": 2, **tree})
    with pytest.raises(ConfigError, match=says):
        by_cost(asked, planned(asked), (1, 8, 8), 10)


def test_the_stages_are_cut_there(small_config) -> None:
    config = small_config(stages=3, model={"blocks": 5, "cut": (1, 4)})
    assert [len(net.module) for net in make_networks(config, (1, 8, 8), 10)] == [1, 3, 1]
