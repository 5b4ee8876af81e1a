"""Identity d: `virtual` with exponential passes and no window agrees with Algorithm 2 in staleness and reuse.

Both sides run their real loops (`VirtualRun`, `Simulation`), buffers and links; only the arithmetic is left out, for
long traces: `virtual` with ``virtual.train: false``, and the simulator without data (a test below holds that against
the simulator as it is). `sim` draws from the key "turns" and `virtual`
from "clock": equal seeds give independent runs.

Passes of one run are correlated. Therefore a run is one observation: the mean over its passes (Welch's test over runs),
and its histogram (total variation distance between the pooled histograms, against the distances that there are when
runs change sides at random). Both at `ALPHA`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from asyncdgl.config.yaml import parse_config
from asyncdgl.engine import sim as simulator
from asyncdgl.engine.virtual import VirtualRun
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.trace import TRAIN, by_stage, staleness

ALPHA = 1e-3
SEEDS = 20
EPOCHS = 4
UPDATES = 100 * EPOCHS
"""Of each stage: 100 batches an epoch, the default of virtual.batches."""

MOST = 120
"""Histograms count 0 … MOST; what is more goes with MOST."""

RANDOM = {"name": "exponential", "every_stage": {"step_law": "exponential"}, "window": 0}

SIZES = pytest.mark.parametrize("size", [1, 5, 30])
STAGES = pytest.mark.parametrize("stages", [2, 4])
MEASURES = ("staleness", "times_sampled", "forward_passes")


def settings(stages: int, size: int, seed: int, profile: Any, **over: Any) -> dict[str, Any]:
    return {
        "stages": stages,
        "epochs": EPOCHS,
        "seed": seed,
        "device": "cpu",
        "model": {"blocks": 4},
        "buffer": {"size": size},
        "delays": {"profile": profile},
        **over,
    }


@contextmanager
def no_arithmetic() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        ticks = itertools.count()
        # Times only order what happens; each one asked for is later than the one before.
        patch.setattr(simulator, "time", SimpleNamespace(perf_counter=lambda: next(ticks) * 1e-6))
        yield


@pytest.fixture(scope="module")
def simulated(make_recorder):
    """``simulated(stages, size, seed)``: the trace of Algorithm 2, without arithmetic."""

    def run(stages: int, size: int, seed: int, profile: Any = "random") -> Any:
        recorder = make_recorder()
        config = planned(parse_config(settings(stages, size, seed, profile, runtime="sim")))
        with no_arithmetic():
            simulator.Simulation(config, None, recorder).run()
        return by_stage(recorder.trace)

    return run


@pytest.fixture(scope="module")
def in_virtual_time(make_recorder):
    """``in_virtual_time(stages, size, seed)``: the trace of the virtual runtime, without arithmetic."""

    def run(stages: int, size: int, seed: int, profile: Any = RANDOM) -> Any:
        recorder = make_recorder()
        tree = settings(stages, size, seed, profile, runtime="virtual", virtual={"train": False})
        VirtualRun(planned(parse_config(tree)), None, recorder).run()
        return by_stage(recorder.trace)

    return run


def measured(trace: Any, link: int, size: int) -> dict[str, np.ndarray]:
    """Of the training passes that read link ``link``, once its buffer is as full as it will be.

    And how many forward-only passes the producer made at the end: stages of equal speed go on for as long.
    """
    producer, reader = trace[link], trace[link + 1]
    values = {
        "staleness": staleness(reader, producer),
        "times_sampled": np.array([r.times_sampled for r in reader if r.kind == TRAIN]),
    }
    after = {what: value[5 * size :] for what, value in values.items()}
    return {**after, "forward_passes": np.array([len(producer) - UPDATES])}


@pytest.fixture(scope="module")
def observed(simulated, in_virtual_time):
    """``observed(side, stages, size)``: what was measured, a list over seeds for each link. Made once."""

    @functools.cache
    def of(side: str, stages: int, size: int) -> dict[int, list[dict[str, np.ndarray]]]:
        run = simulated if side == "sim" else in_virtual_time
        traces = [run(stages, size, seed) for seed in range(SEEDS)]
        return {link: [measured(trace, link, size) for trace in traces] for link in range(1, stages)}

    return of


def means(runs: list[dict[str, np.ndarray]], what: str) -> np.ndarray:
    return np.array([run[what].mean() for run in runs])


def chance_of_means(one: list[Any], other: list[Any], what: str) -> float:
    """Welch's test: how probable so large a difference of the means over seeds is if there is none."""
    first, second = means(one, what), means(other, what)
    if np.ptp(first) == np.ptp(second) == 0:  # no variation: M = 1 has staleness 0 throughout, constant steps too
        return float(first[0] == second[0])
    one_side, other_side = ((m.mean(), m.std(ddof=1), len(m)) for m in (first, second))
    return float(scipy.stats.ttest_ind_from_stats(*one_side, *other_side, equal_var=False).pvalue)


def chance_of_histograms(one: list[Any], other: list[Any], what: str, exchanges: int = 4000) -> float:
    """How often the pooled histograms differ by as much as they do, when runs change sides at random."""
    counts = np.array([np.bincount(np.minimum(run[what], MOST), minlength=MOST + 1) for run in [*one, *other]])
    sides = np.array([1.0] * len(one) + [0.0] * len(other))
    random = np.random.default_rng(0)
    first = np.vstack([sides, random.permuted(np.tile(sides, (exchanges, 1)), axis=1)])
    pooled = [side @ counts for side in (first, 1 - first)]
    shares = [p / p.sum(axis=1, keepdims=True) for p in pooled]
    distances = np.abs(shares[0] - shares[1]).sum(axis=1) / 2  # total variation
    # The real sides are one of the exchanges. The small number is for rounding.
    return float(np.mean(distances >= distances[0] - 1e-12))


# --- The tools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["random", "lossy"])
def test_a_simulation_without_arithmetic_is_the_simulation(small_config, digits_folder, make_recorder, profile) -> None:
    """But for losses and wall times."""
    config = small_config(
        epochs=1,
        batch_size=14,
        data={"validation": 0.02},  # 1,408 images to train on: 100 batches, as those of virtual.batches
        buffer={"size": 2, "max_reuse": 2},
        delays={"profile": profile},
    )
    real, bare = make_recorder(), make_recorder()
    simulator.Simulation(config, digits_folder, real).run()
    with no_arithmetic():
        simulator.Simulation(config, None, bare).run()

    def passes(recorder: Any) -> list[Any]:
        return [r._replace(sampled_s=None, start_s=0.0, end_s=0.0, loss=None) for r in recorder.trace]

    assert len(bare.trace) >= 300
    assert passes(real) == passes(bare)


def test_both_tests_reject_as_often_as_they_say() -> None:
    """On two groups of correlated runs of one law: at a level of 5 % about one in twenty."""
    random = np.random.default_rng(1)

    def group() -> list[dict[str, np.ndarray]]:
        # Runs differ among themselves by more than chance from pass to pass would make them.
        rates = random.gamma(20, 0.1, SEEDS)
        return [{"staleness": random.poisson(rate, 100)} for rate in rates]

    pairs = [(group(), group()) for _ in range(300)]
    for chance in (chance_of_means, functools.partial(chance_of_histograms, exchanges=200)):
        rejected = sum(chance(one, other, "staleness") < 0.05 for one, other in pairs)
        assert 4 <= rejected <= 28, "15 are expected, 3.8 is the standard deviation"


# --- Identity d -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MEASURES)
@STAGES
@SIZES
def test_virtual_agrees_with_algorithm_2(observed, size, stages, what) -> None:
    sim, virtual = (observed(side, stages, size) for side in ("sim", "virtual"))
    for link in range(1, stages):
        one, other = sim[link], virtual[link]
        assert what == "forward_passes" or min(len(run[what]) for run in [*one, *other]) > UPDATES / 3
        mean = (float(means(one, what).mean()), float(means(other, what).mean()))
        assert chance_of_means(one, other, what) > ALPHA, f"link {link}: means {mean}"
        assert chance_of_histograms(one, other, what) > ALPHA, f"link {link}: means {mean}"


# --- What the comparison tells apart ----------------------------------------------------------------------------------

OTHERS = {
    "slow_stage2": {**RANDOM, "stages": {2: {"slowdown": 2, "step_law": "exponential"}}},
    "window-of-half-a-step": {**RANDOM, "window": 0.5},
    "window-of-two-steps": {**RANDOM, "window": 2},
    "constant-steps": {"name": "constant", "window": 0},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_delays_are_told_apart(observed, in_virtual_time, name) -> None:
    """The same two tests, at the same level, on runs that are not Algorithm 2's."""
    size = 5
    sim = observed("sim", 2, size)[1]
    other = [measured(in_virtual_time(2, size, seed, OTHERS[name]), 1, size) for seed in range(SEEDS)]
    told_by = {
        what
        for what in MEASURES
        if chance_of_means(sim, other, what) <= ALPHA and chance_of_histograms(sim, other, what) <= ALPHA
    }
    assert "staleness" in told_by
    if name in {"slow_stage2", "constant-steps"}:
        assert "times_sampled" in told_by
