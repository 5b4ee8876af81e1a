"""Fixtures shared by all tests. Nothing here imports torch or ray, so that tests which need neither start quickly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from asyncdgl.observer import Recorder

# Fixed examples and no time limit for one: the same result on every machine, however slow.
hypothesis.settings.register_profile("asyncdgl", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("asyncdgl")

SMALL = {
    "runtime": "sim",
    "stages": 3,
    "epochs": 2,
    "batch_size": 128,
    "threads": 1,
    "device": "cpu",
    "precision": "float32",
    "model": {"blocks": 3, "width": 4, "downsample": [2]},
}
"""A run on the digits that takes a tenth of a second: 11 updates an epoch."""


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded data sets of the whole session; the user's own cache stays as it is."""
    folder = tmp_path_factory.mktemp("asyncdgl-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYNCDGL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_usage_reports() -> Iterator[None]:
    """Ray sends nothing anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture
def one_thread() -> None:
    """Bits depend on the number of threads; and two threads on a busy core wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_config() -> Callable[..., Any]:
    """``small_config(stages=2, buffer={"size": 3})``: a resolved configuration of a small run.

    What has no effect on it passes: a run that only moves entries has the width and the batches of one that computes.
    """
    from asyncdgl.config.defaults import merged
    from asyncdgl.config.model import RunConfig
    from asyncdgl.plan.resolve import planned

    def make(**over: Any) -> Any:
        tree = merged(copy.deepcopy(SMALL), over)
        if over.get("model", {}).get("name", "conv") != "conv":
            tree["model"] = over["model"]  # blocks and width are the built-in network's
        return planned(RunConfig.checked(tree))

    return make


@pytest.fixture(scope="session")
def digits_folder(cache_folder: Path) -> Path:
    """The decoded digits."""
    from asyncdgl.config.sections import DataConfig
    from asyncdgl.data.cache import prepare

    return prepare(DataConfig())


@pytest.fixture(scope="session")
def make_recorder() -> type[Recorder]:
    """The class of observers that keep all that they are told."""
    return Recorder


@dataclass
class SimRun:
    """A finished run of the simulator."""

    config: Any
    outcome: Any
    recorder: Recorder

    @property
    def trace(self) -> list[Any]:
        return self.recorder.trace

    @property
    def hashes(self) -> dict[int, str]:
        return {j: end.state_sha256 for j, end in self.outcome.ends.items()}


MOST_TURNS = 10_000
"""Draws after which a small run of Algorithm 2 is taken to never end; it needs some hundreds."""


@pytest.fixture(scope="session")
def simulate(cache_folder: Path) -> Callable[..., SimRun]:
    """``simulate(config)``: run the simulator to the end; ``on_pass(simulation)`` is called after each pass."""

    def run(config: Any, on_pass: Callable[[Any], None] | None = None) -> SimRun:
        from asyncdgl.algorithms import async_dgl
        from asyncdgl.data.cache import prepare
        from asyncdgl.engine.sim import Simulation

        draw = async_dgl.drawn_turns

        def some_turns(*arguments: Any) -> Iterator[tuple[int, float]]:
            for number, turn in enumerate(draw(*arguments)):
                if number == MOST_TURNS:
                    ends = simulation.outcome().ends
                    pytest.fail(f"the run does not end: {[(e.updates, dict(e.lost_turns)) for e in ends.values()]}")
                yield turn

        recorder = Recorder()
        simulation = Simulation(config, prepare(config.data), recorder)
        if on_pass is not None:
            recorder.on_passes = lambda _: on_pass(simulation)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(async_dgl, "drawn_turns", some_turns)
            simulation.run()
        return SimRun(config, simulation.outcome(), recorder)

    return run


@pytest.fixture
def record() -> Callable[..., Any]:
    """``record(stage, step, end_s, ...)``: a line of a hand-made trace, a training pass unless said otherwise."""
    from asyncdgl.rundir.trace import PassRecord

    def make(stage: int, step: int, end_s: float, **over: Any) -> Any:
        values: dict[str, Any] = {
            "incarnation": 0,
            "kind": "train",
            "batch": step,
            "source_incarnation": None,
            "source_step": None,
            "source_update": None,
            "times_sampled": None,
            "sampled_s": None,
            "start_s": end_s - 0.5,
            "waits": {},
            "loss": 1.0,
        }
        return PassRecord(stage=stage, step=step, end_s=end_s, **{**values, **over})

    return make


@pytest.fixture(scope="session")
def evaluation_of() -> Callable[..., Any]:
    """``evaluation_of(accuracies)``: an evaluation with these test accuracies of the heads."""
    from asyncdgl.rundir.records import EvaluationLine

    def make(accuracies: Sequence[float], **over: Any) -> Any:
        values = tuple(accuracies)
        shared = {"epoch": 1, "epochs": (1,) * len(values), "final": True, "end_s": 1.0}
        measured = {"test_accuracy": values, "test_ensemble_accuracy": values, "test_loss": (1.0,) * len(values)}
        return EvaluationLine.model_validate({**shared, **measured, **over})

    return make


@pytest.fixture(scope="session")
def summary_of() -> Callable[..., Any]:
    """``summary_of(test_accuracy=0.5)``: the summary of a completed run of two stages, unless said otherwise."""
    from asyncdgl.rundir.records import BufferSummary, Distribution, StageSummary, Summary

    def make(**over: Any) -> Any:
        known = Distribution(mean=2.5, p50=2.0, p95=4.0, max=5.0)
        shared = {"updates": 30, "forward_passes": 0, "epochs": 1, "busy_fraction": 0.5, "wait_seconds": {}}
        of_stage = {"test_accuracy": 0.5, "validation_accuracy": None, "state_sha256": None, **shared}
        measured = {"staleness": known, "batch_age": known, "times_sampled": known, "batches_unseen": 0.25}
        nothing = dict.fromkeys(("staleness", "batch_age", "times_sampled"), Distribution())
        counts = dict.fromkeys(BufferSummary.model_fields, 0)
        whole = {
            "status": "completed",
            "algorithm": "async-dgl",
            "runtime": "ray",
            "time_unit": "seconds",
            "test_accuracy": 0.5,
            "ensemble_test_accuracy": 0.625,
            "validation_accuracy": None,
            "ensemble_validation_accuracy": None,
            "wall_seconds": 9.0,
            "train_seconds": 7.5,
            "images_per_second": 100.0,
            "stages": (
                StageSummary(stage=1, batches_unseen=0.0, **nothing, **of_stage),
                StageSummary(stage=2, **measured, **of_stage),
            ),
            "buffers": (BufferSummary(**{**counts, "after_stage": 1, "mean_held": 1.5}),),
        }
        return Summary.model_validate({**whole, **over})

    return make


@pytest.fixture
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one's own can be named as ``own_parts:name``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "parts"))
