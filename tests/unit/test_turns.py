"""Algorithm 2's turns are drawn in proportion to 1/S_j, and a run takes or loses each turn that was drawn.

Chi-squared tests at `ALPHA`. A run ends when its last stage has done its quota, so that the number of its draws is no
constant; for hundreds of draws the statistic has the same law.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import scipy.stats

from asyncdgl.algorithms import async_dgl
from asyncdgl.algorithms.async_dgl import drawn_turns
from asyncdgl.engine.sim import Simulation

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHA = 1e-3
DRAWS = 100_000

PROFILES = {
    "none": ("none", [1, 1]),
    "random": ("random", [1, 1, 1]),
    "slow_stage2": ("slow_stage2", [1, 2, 1, 1]),
    "barely-slow": ({"stages": {2: {"slowdown": 1.11}}}, [1, 1.11, 1, 1]),
    "all-differ": (
        {
            "every_stage": {"slowdown": 1.2, "step_law": "exponential"},
            "stages": {1: {"slowdown": 20}, 3: {}, 4: {"slowdown": 3, "pause": {"probability": 0.5, "length": 9}}},
            "every_link": {"loss": 0.5, "latency": {"mean": 30}},
        },
        [20, 1.2, 1, 3, 1.2],
    ),
}
"""A profile, and S_j of every stage."""


@pytest.fixture(scope="module")
def counted(small_config):
    """``counted(name, seed)``: how often each stage was drawn."""

    @functools.cache
    def count(name: str, seed: int = 0) -> list[int]:
        profile, slowdowns = PROFILES[name]
        stages = len(slowdowns)
        config = small_config(stages=stages, model={"blocks": stages}, seed=seed, delays={"profile": profile})
        running = list(range(1, stages + 1))
        turns = Counter(j for j, _ in itertools.islice(drawn_turns(config, lambda: running), DRAWS))
        return [turns[j] for j in running]

    return count


def chance(turns: list[int], slowdowns: list[float]) -> float:
    """How probable so large a deviation from 1/S_j is, if the turns are drawn so."""
    speeds = [1 / s for s in slowdowns]
    return float(scipy.stats.chisquare(turns, [sum(turns) * speed / sum(speeds) for speed in speeds]).pvalue)


@pytest.mark.parametrize("name", PROFILES)
def test_100_000_draws_follow_the_profile(counted, name) -> None:
    turns = counted(name)
    assert sum(turns) == DRAWS
    assert chance(turns, PROFILES[name][1]) > ALPHA


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param("barely-slow", [1, 1, 1, 1], id="slowdown-of-a-tenth-ignored"),
        pytest.param("slow_stage2", [1, 2.1, 1, 1], id="a-twentieth-too-slow"),
        pytest.param("slow_stage2", [1, 1, 2, 1], id="another-stage"),
        pytest.param("slow_stage2", [1, 4, 1, 1], id="squared"),
        pytest.param("all-differ", [20, 1.2, 1.2, 3, 1.2], id="a-listed-stage-as-every-stage"),
        pytest.param("all-differ", [1 / 20, 1 / 1.2, 1, 1 / 3, 1 / 1.2], id="slower-is-drawn-more-often"),
    ],
)
def test_wrong_weights_are_rejected(counted, name, wrong) -> None:
    assert chance(counted(name), wrong) <= ALPHA


# --- The account of a run ---------------------------------------------------------------------------------------------

RUN = {
    "batch_size": 16,
    "epochs": 1,
    "model": {"width": 2},
    "buffer": {"max_reuse": 1, "size": 3},
    "delays": {
        "profile": {"name": "lossy", "every_link": {"loss": 0.3}, "stages": {3: {"slowdown": 2}}},
    },
}
SLOWDOWNS = [1.0, 1.0, 2.0]


class Account:
    """A run of Algorithm 2: the turns drawn, the passes made by draws and in the warm-up, and the turns lost."""

    def __init__(self, config: Any, folder: Any, recorder: Any) -> None:
        self.drawn: list[int] = []
        self.running: set[tuple[int, ...]] = set()
        self.warm_up: Counter[int] = Counter()

        def counted(config: Any, running: Any) -> Any:
            self.warm_up = Counter(r.stage for r in recorder.trace)
            for turn in drawn_turns(config, running):
                self.drawn.append(turn[0])
                self.running.add(tuple(running()))
                yield turn

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(async_dgl, "drawn_turns", counted)
            simulation = Simulation(config, folder, recorder)
            simulation.run()
        ends = simulation.outcome().ends
        self.taken = Counter(r.stage for r in recorder.trace)
        self.taken.subtract(self.warm_up)
        self.lost = {j: Counter(end.lost_turns) for j, end in ends.items()}

    @property
    def turns(self) -> list[int]:
        """Of stages 1 to J, taken and lost."""
        return [self.taken[j] + self.lost[j].total() for j in sorted(self.lost)]


@pytest.fixture(scope="module")
def account(small_config, digits_folder, make_recorder) -> Account:
    return Account(small_config(**RUN), digits_folder, make_recorder())


def test_a_run_takes_or_loses_every_turn(account) -> None:
    assert account.turns == [account.drawn.count(j) for j in (1, 2, 3)]
    # Turns of the warm-up are not drawn, and not counted where they are lost: here stage 3 was passed over once.
    assert account.warm_up == {1: 2, 2: 2, 3: 1}
    # It is a run that loses many turns, since an entry is used once and may not come at all.
    assert account.lost[1].total() == 0
    assert account.lost[2]["reused_up"] > 50
    assert account.lost[3]["reused_up"] > 5


def test_turns_taken_and_lost_follow_the_profile(account) -> None:
    assert account.running == {(1, 2, 3)}, "the slow last stage is the last to train: nobody stops before it"
    assert sum(account.turns) > 400
    assert chance(account.turns, SLOWDOWNS) > ALPHA
    # What would not do: passes without lost turns; lost turns with equal speeds.
    assert chance([account.taken[j] for j in (1, 2, 3)], SLOWDOWNS) <= ALPHA
    assert chance(account.turns, [1, 1, 1]) <= ALPHA


def test_a_blocked_producer_loses_turns_too(small_config, digits_folder, make_recorder) -> None:
    config = small_config(**{**RUN, "buffer": {"max_reuse": 1, "size": 2, "on_full": "block"}})
    account = Account(config, digits_folder, make_recorder())
    assert account.turns == [account.drawn.count(j) for j in (1, 2, 3)]
    assert account.lost[1]["full"] > 50
    assert account.lost[2].keys() == {"full", "reused_up"}
    assert account.running == {(1, 2, 3)}
    assert chance(account.turns, SLOWDOWNS) > ALPHA
