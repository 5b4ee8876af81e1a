"""Fixtures shared by all tests. Nothing here imports torch or ray, so that tests which need neither start quickly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest

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
    """``small_config(stages=2, buffer={"size": 3})``: a checked configuration of a small run."""
    from asyncdgl.config.defaults import merged
    from asyncdgl.config.yaml import parse_config

    def make(**over: Any) -> Any:
        return parse_config(merged(copy.deepcopy(SMALL), over))

    return make


@pytest.fixture(scope="session")
def digits_folder(cache_folder: Path) -> Path:
    """The decoded digits."""
    from asyncdgl.config.model import DataConfig
    from asyncdgl.data.cache import prepare

    return prepare(DataConfig())


@dataclass
class Recorder:
    """An observer that keeps all that it is told."""

    trace: list[Any] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    progress: list[tuple[int, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    on_pass: Callable[[], None] | None = None

    def passed(self, records: Any) -> None:
        self.trace.extend(records)
        if self.on_pass is not None:
            self.on_pass()

    def progressed(self, stage: int, progress: Any) -> None:
        self.progress.append((stage, progress))

    def epoch_completed(self, line: dict[str, Any]) -> None:
        self.epochs.append(line)

    def evaluated(self, line: dict[str, Any]) -> None:
        self.evaluations.append(line)

    def noticed(self, message: str) -> None:
        self.notices.append(message)


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
        from asyncdgl.data.cache import prepare
        from asyncdgl.engine import sim as simulator

        draw = simulator.drawn_turns

        def some_turns(*arguments: Any) -> Iterator[tuple[int, float]]:
            for number, turn in enumerate(draw(*arguments)):
                if number == MOST_TURNS:
                    ends = simulation.outcome().ends
                    pytest.fail(f"the run does not end: {[(e.updates, dict(e.lost_turns)) for e in ends.values()]}")
                yield turn

        recorder = Recorder()
        simulation = simulator.Simulation(config, prepare(config.data), recorder)
        if on_pass is not None:
            recorder.on_pass = lambda: on_pass(simulation)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulator, "drawn_turns", some_turns)
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


@pytest.fixture
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one's own can be named as ``own_parts:name``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "parts"))
