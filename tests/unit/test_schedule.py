"""Algorithm 2's draws: which stage has its turn, lost turns included."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import scipy.stats

from asyncdgl.config_file import parse_config
from asyncdgl.runtime.simulator import drawn_turns

DRAWS = 100_000
ALPHA = 1e-4

SLOWDOWNS = {
    "equal": [1, 1, 1, 1],
    "one slow": [1, 2, 1, 1],
    "slightly slow": [1, 1, 1.11, 1],
    "all different": [1, 1.5, 3, 8],
}


def config_of(slowdowns: list[float], seed: int = 0):
    stages = {j: {"slowdown": s} for j, s in enumerate(slowdowns, 1)}
    tree = {"runtime": "sim", "stages": len(slowdowns), "seed": seed, "threads": 1}
    return parse_config({**tree, "delays": {"profile": {"name": "made", "stages": stages}}})


def p_value(counts: Counter[int], slowdowns: list[float]) -> float:
    weights = 1 / np.array(slowdowns)
    drawn = np.array([counts[j] for j in range(1, len(slowdowns) + 1)])
    return float(scipy.stats.chisquare(drawn, drawn.sum() * weights / weights.sum()).pvalue)


@pytest.mark.parametrize("name", SLOWDOWNS)
def test_stages_are_drawn_with_the_profiles_distribution(name) -> None:
    slowdowns = SLOWDOWNS[name]
    everyone = list(range(1, len(slowdowns) + 1))
    turns = list(islice(drawn_turns(config_of(slowdowns), lambda: everyone), DRAWS))
    counts = Counter(stage for stage, _ in turns)
    assert p_value(counts, slowdowns) > ALPHA
    if name == "slightly slow":  # the test would see a slowdown of 1.11 that is ignored
        assert p_value(counts, [1, 1, 1, 1]) < ALPHA
    # Each draw advances the time by 1 / sum(1 / S_i) steps.
    assert turns[-1][1] == pytest.approx(DRAWS / sum(1 / s for s in slowdowns))


def test_who_has_stopped_is_drawn_no_more() -> None:
    slowdowns = [1.0, 2.0, 1.0, 4.0]
    turns = islice(drawn_turns(config_of(slowdowns), lambda: [1, 2]), DRAWS)
    counts = Counter(stage for stage, _ in turns)
    assert set(counts) == {1, 2}
    assert p_value(counts, slowdowns[:2]) > ALPHA


def test_lost_turns_belong_to_the_distribution(small_config, simulate, one_thread) -> None:
    """Turns taken and lost together are what was drawn, over runs in which many are lost."""
    drawn: Counter[int] = Counter()
    lost = 0
    slowdowns = [1.0, 2.0, 1.0]
    for seed in range(12):
        profile = {"name": "lossy and slow", "stages": {2: {"slowdown": 2}}, "every_link": {"loss": 0.3}}
        config = small_config(seed=seed, epochs=6, buffer={"max_reuse": 1}, delays={"profile": profile})
        run = simulate(config)
        # While all three have not stopped, all are drawn: stage 3 is the last to stop, so that is the whole run.
        for j, end in run.outcome.ends.items():
            turns_lost = sum(end.lost_turns.values())
            lost += turns_lost
            drawn[j] += end.updates + end.forward_passes + turns_lost
        drawn.subtract({1: 2, 2: 2, 3: 2})  # the warm-up is not drawn
    assert lost > 0.2 * drawn.total()
    assert p_value(drawn, slowdowns) > ALPHA
    assert p_value(drawn, [1.0, 1.5, 1.0]) < ALPHA
