"""asyncdgl.run() and what it leaves: from a notebook's point of view, how it ends, and the model that is kept."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import asyncdgl
from asyncdgl.config.yaml import dump_config, parse_config
from asyncdgl.data.dataset import open_dataset
from asyncdgl.data.stream import in_order
from asyncdgl.errors import ConfigError, DataError, ReplayMismatch, RunFailed
from asyncdgl.rundir.model import MODEL

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
"""A tenth of a second on the digits."""

OWN = {name: value for name, value in SMALL.items() if name != "model"}
"""The same for a network of one's own."""

TRAIN, TEST = range(0, 1500), range(1500, 1797)


class Digits:
    """The digits as a map-style data set, images of bytes or vectors of floats."""

    def __init__(self, rows: range, vectors: bool = False) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._x, self._y, self._rows, self._vectors = digits.images, digits.target, rows, vectors

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._x[self._rows[index]]
        if self._vectors:
            return torch.tensor(image.ravel() / 16 - 0.5), int(self._y[self._rows[index]])
        return (image * 15).astype("uint8"), int(self._y[self._rows[index]])


def vectors() -> tuple[Digits, Digits]:
    return Digits(TRAIN, vectors=True), Digits(TEST, vectors=True)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(64 if n == 0 else 32, 32), nn.ReLU()) for n in range(3)))


def small(**over: Any) -> dict[str, Any]:
    return copy.deepcopy({**SMALL, **over})


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdgl.report.figures.draw_figures", lambda run: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with everything that a run leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        patch.delenv("RAY_ADDRESS", raising=False)
        run = asyncdgl.run(SMALL, name="first")
        return asyncdgl.load_run(run.path.absolute())


@pytest.fixture
def copied(finished: Any, tmp_path: Path) -> Path:
    """A copy of its model and configuration, to damage."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("config.yaml", MODEL):
        (folder / name).write_bytes((finished.path / name).read_bytes())
    return folder


def accuracy(model: nn.Module, config: Any, given: Any = None, bf16: bool = False) -> float:
    """On the run's own test set, as anybody would measure it."""
    from asyncdgl.data.cache import prepare
    from asyncdgl.registry import handed_over

    with handed_over(given or {}):
        dataset = open_dataset(config, prepare(config.data))
    right = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for batch in in_order(dataset, dataset.test, 250):
            right += int((model(batch.x).argmax(1) == batch.y).sum())
    return right / len(dataset.test)


# --- What can be given ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_mapping_a_file_a_configuration_and_keywords_are_one_run(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(parse_config(small())))
    runs = [
        asyncdgl.run(SMALL),
        asyncdgl.run(tmp_path / "run.yaml"),
        asyncdgl.run(str(tmp_path / "run.yaml")),
        asyncdgl.run(asyncdgl.RunConfig(**small())),
        asyncdgl.run(**SMALL),
        asyncdgl.run({**SMALL, "epochs": 1}, epochs=2, out=tmp_path / "out"),
    ]
    assert len({tuple(stage.state_sha256 for stage in run.summary.stages) for run in runs}) == 1
    assert runs[-1].path == tmp_path / "out"
    assert len({run.path for run in runs}) == len(runs)
    assert all(run.path.parent.name == "runs" for run in runs[:-1])
    again = asyncdgl.run(runs[0].config)  # what one run decided, for another
    assert again.config == runs[0].config


@pytest.mark.usefixtures("no_figures")
def test_keywords_change_only_what_they_name() -> None:
    run = asyncdgl.run(SMALL, model={"width": 5}, data={"validation": 0.1}, epochs=1)
    assert (run.config.model.width, run.config.model.blocks) == (5, 3)
    assert run.config.data.validation == 0.1
    assert run.summary.validation_accuracy is not None


@pytest.mark.usefixtures("no_figures")
def test_what_is_not_given_is_the_command_lines_default() -> None:
    run = asyncdgl.run(runtime="virtual", virtual={"train": False, "batches": 3})
    assert run.config.stages == asyncdgl.RunConfig().stages
    assert run.config.runtime == "virtual"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"buffer_size": 3}, "buffer.size"),
        ({"data": 3}, "pair"),
        ({"data": (Digits(TRAIN),)}, "pair"),
        ({"net": nn.Linear(64, 10), "model": {}}, "Linear"),
        ({"stages": 5}, "stages"),
        ({"runtime": "sim", "algorithm": "sgd"}, "algorithm"),
    ],
)
def test_a_wrong_setting_leaves_nothing(tmp_path, given, message) -> None:
    base = OWN if "net" in given else SMALL
    with pytest.raises(ConfigError, match=message):
        asyncdgl.run({**base, **{k: v for k, v in given.items() if k not in ("net", "data")}}, **_parts(given))
    assert list(tmp_path.iterdir()) == []


def _parts(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("net", "data") if name in given}


def test_wrong_data_leaves_nothing(tmp_path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError):
        asyncdgl.run({**OWN, "data": {"dataset": "image-folder", "data_dir": str(empty)}})
    with pytest.raises(DataError, match="batch"):
        asyncdgl.run({**SMALL, "batch_size": 5000})
    with pytest.raises(ConfigError, match=r"no such file|not found|No such"):
        asyncdgl.run(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="not empty"):
        asyncdgl.run(SMALL, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# --- What one notices of it -------------------------------------------------------------------------------------------


def signals_now() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_nothing_is_printed_and_no_signal_is_taken(capfd) -> None:
    before, wakeup = signals_now(), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    heard = asyncdgl.Recorder()
    run = asyncdgl.run(SMALL, observer=heard)
    assert signals_now() == before
    assert signal.set_wakeup_fd(-1) == wakeup
    assert capfd.readouterr() == ("", "")
    assert run.summary.status == "completed"
    assert len(heard.trace) == len(run.trace())
    assert heard.path.resolve() == run.path.resolve()


def test_every_name_of_the_package_is_what_it_says() -> None:
    """None of them turns into a module once another one was used."""
    import asyncdgl.sweeps.results

    for name in asyncdgl.__all__:
        assert callable(getattr(asyncdgl, name)), name
    assert dir(asyncdgl) == sorted({*vars(asyncdgl), *asyncdgl.__all__})


def test_frames_and_figures(finished) -> None:
    trace, metrics = finished.trace(), finished.metrics()
    trained = trace[trace["kind"] == "train"].groupby("stage").size()
    assert dict(trained) == {stage.stage: stage.updates for stage in finished.summary.stages}
    assert trace[trace["stage"] == 1]["source_update"].isna().all()
    epochs, evaluations = (metrics[metrics["kind"] == kind] for kind in ("epoch", "evaluation"))
    assert len(epochs) == 3 * 2
    last = evaluations[evaluations["final"].astype(bool) & (evaluations["stage"] == 3)]
    assert list(last["test_accuracy"]) == [finished.summary.test_accuracy]
    figures = finished.figures()
    assert {"learning_curves", "timeline", "staleness"} <= set(figures)
    for picture in figures.values():
        assert picture._repr_png_().startswith(b"\x89PNG\r\n\x1a\n")
        assert picture._repr_png_() == picture.path.read_bytes()


def test_a_run_is_repeated_from_its_trace(finished, copied) -> None:
    stages = asyncdgl.replay(finished)
    assert [stage.state_equal for stage in stages] == [True] * 3
    assert stages == asyncdgl.replay(str(finished.path))
    for name in ("summary.json", "environment.json", "metrics.jsonl"):
        (copied / name).write_bytes((finished.path / name).read_bytes())
    lines = (finished.path / "trace.jsonl").read_text().splitlines()
    lines[5] = lines[5].replace('"loss": ', '"loss": 1').replace('"loss":', '"loss":1', 1)
    (copied / "trace.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ReplayMismatch, match="stage"):
        asyncdgl.replay(copied)


# --- How it ends ------------------------------------------------------------------------------------------------------


class At(asyncdgl.NullObserver):
    """Raises once so many passes were made."""

    def __init__(self, passes: int, error: BaseException) -> None:
        self._left, self._error = passes, error

    def passed(self, records: Any) -> None:
        self._left -= len(records)
        if self._left <= 0:
            raise self._error


def test_an_interrupted_run_leaves_what_there_is(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(SMALL, out=tmp_path / "run", observer=At(20, KeyboardInterrupt()))
    left = asyncdgl.load_run(tmp_path / "run")
    assert left.summary.status == "interrupted"
    assert left.summary.error is None
    assert len(left.trace()) == 20
    assert 0 < sum(stage.updates for stage in left.summary.stages) <= 20
    assert left.model()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert [stage.passes for stage in asyncdgl.replay(left)] == [
        int((left.trace()["stage"] == j).sum()) for j in (1, 2, 3)
    ]


def test_a_failed_run_says_why_and_leaves_what_there_is() -> None:
    with pytest.raises(RunFailed, match="RuntimeError: the observer broke") as failed:
        asyncdgl.run(SMALL, observer=At(5, RuntimeError("the observer broke")))
    left = failed.value.run
    assert left.summary.status == "failed"
    assert "the observer broke" in left.summary.error
    assert asyncdgl.load_run(left.path).summary == left.summary
    assert "the observer broke" in (left.path / "logs" / "traceback.log").read_text()


def test_a_diverged_run_is_a_failure_with_a_run() -> None:
    with pytest.raises(RunFailed, match="the loss is") as failed:
        asyncdgl.run(SMALL, optim={"lr": 1e30})
    left = failed.value.run
    assert left.summary.status == "diverged"
    assert left.summary.error == str(failed.value)
    assert left.summary.test_accuracy is None


# --- The model --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "over",
    [
        {},
        {"algorithm": "backprop"},
        {"algorithm": "sync-dgl"},
        {"algorithm": "sequential-dgl"},
        {"runtime": "virtual"},
        {"model": {"aux": "mlp-sr", "head": "aux", "blocks": 4, "width": 4, "cut": [1, 3]}},
    ],
    ids=lambda over: "-".join(map(str, over.values())) or "async-dgl",
)
def test_the_model_is_as_good_as_the_summary_says(over) -> None:
    run = asyncdgl.run(small(**over))
    model = run.model()
    assert type(model) is nn.Sequential
    assert not any(module.training for module in model.modules())
    assert accuracy(model, run.config) == run.summary.test_accuracy
    again = asyncdgl.load_run(run.path).model()
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(again(x), model(x))
    by_head = run.evaluations[-1].test_accuracy
    for head, right in enumerate(by_head, 1):
        assert accuracy(run.model(head=head), run.config) == right
    for head in (0, len(by_head) + 1):
        with pytest.raises(ValueError, match=f"from 1 to {len(by_head)}"):
            run.model(head=head)


@pytest.mark.usefixtures("no_figures")
def test_the_model_of_a_run_in_bfloat16() -> None:
    run = asyncdgl.run(small(precision="bf16"))
    assert accuracy(run.model(), run.config, bf16=True) == run.summary.test_accuracy
    assert abs(accuracy(run.model(), run.config) - run.summary.test_accuracy) < 0.05
    assert list(asyncdgl.evaluate(run)["accuracy"]) == list(run.evaluations[-1].test_accuracy)


@pytest.mark.usefixtures("no_figures")
def test_own_network_and_data_are_handed_over_again() -> None:
    net, data = mlp(), vectors()
    before = copy.deepcopy(net.state_dict())
    run = asyncdgl.run(OWN, net=net, data=data, model={"aux": "mlp"}, optim={"lr": 0.05}, epochs=5)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert run.summary.test_accuracy > 0.5
    assert accuracy(run.model(), run.config, run.given) == run.summary.test_accuracy
    asyncdgl.replay(run)
    left = asyncdgl.load_run(run.path)
    with pytest.raises(ConfigError, match="hand it over again"):
        left.model()
    with pytest.raises(ConfigError, match="hand it over again"):
        asyncdgl.replay(left)
    with pytest.raises(ConfigError, match="hand it over again"):
        asyncdgl.evaluate(run.path, net=net)
    with pytest.raises(ConfigError, match="hand it over again"):
        asyncdgl.run(run.path / "config.yaml", net=net)
    x = torch.rand(3, 64)
    assert torch.equal(asyncdgl.load_run(run.path, net=mlp()).model()(x), run.model()(x))
    assert all(stage.state_equal for stage in asyncdgl.replay(run.path, net=net, data=data))
    assert list(asyncdgl.evaluate(left, net=net, data=data)["accuracy"]) == list(run.evaluations[-1].test_accuracy)


@pytest.mark.usefixtures("no_figures")
def test_a_model_of_another_network_is_refused() -> None:
    run = asyncdgl.run(OWN, net=mlp(), data=vectors(), model={"aux": "mlp"})
    other = nn.Sequential(*(nn.Sequential(nn.Linear(64 if n == 0 else 16, 16), nn.ReLU()) for n in range(3)))
    with pytest.raises(DataError, match="does not fit the network: stage 1"):
        asyncdgl.load_run(run.path, net=other).model()


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def damages() -> list[Any]:
    def flipped(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
        def flip(content: bytes) -> bytes:
            changed = bytearray(content)
            changed[at(len(content))] ^= 4
            return bytes(changed)

        return flip

    return [
        pytest.param(lambda content: content[:-7], id="cut"),
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content + b"more", id="longer"),
        pytest.param(flipped(lambda size: size - 3), id="bit of the last weight"),
        pytest.param(flipped(lambda size: size // 2), id="bit in the middle"),
        pytest.param(flipped(lambda size: 0), id="bit of the header's length"),
        pytest.param(flipped(lambda size: 20), id="bit of the header"),
        pytest.param(lambda content: content.replace(b"[1, 8, 8]", b"[1, 8, 9]"), id="another shape"),
        pytest.param(lambda content: content.replace(b"[1, 8, 8]", b"3        "), id="no shape"),
    ]


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_model_is_one_message(copied, damage) -> None:
    before = (copied / MODEL).read_bytes()
    (copied / MODEL).write_bytes(damage(before))
    assert damage(before) != before
    with pytest.raises(DataError, match=MODEL):
        asyncdgl.load_run(copied).model()


def test_every_bit_counts(copied) -> None:
    """One bit at each of many places, in the header and in the weights."""
    before = (copied / MODEL).read_bytes()
    left = asyncdgl.load_run(copied)
    for at in range(0, len(before), max(1, len(before) // 150)):
        changed = bytearray(before)
        changed[at] ^= 1 << (at % 8)
        (copied / MODEL).write_bytes(bytes(changed))
        with pytest.raises(DataError, match=MODEL):
            left.model()
    (copied / MODEL).write_bytes(before)
    left.model()


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_model_file_runs_no_code(copied, tmp_path, write) -> None:
    with (copied / MODEL).open("wb") as file:
        write({"stage1.module.0": Trap(tmp_path / "trapped")}, file)
    for use in (lambda: asyncdgl.load_run(copied).model(), lambda: asyncdgl.evaluate(copied)):
        with pytest.raises(DataError, match=MODEL):
            use()
    assert not (tmp_path / "trapped").exists()


def test_weights_of_somebody_elses_are_refused(copied) -> None:
    save_file(load_file(copied / MODEL), copied / MODEL, {"format": "pt"})
    with pytest.raises(DataError, match="no file of a run"):
        asyncdgl.load_run(copied).model()


@pytest.mark.usefixtures("no_figures")
def test_the_model_is_kept_whole_or_not_at_all(monkeypatch) -> None:
    from asyncdgl.engine import sim

    monkeypatch.setattr(sim, "weights_of", lambda passes: {1: passes[1].learner.published()})
    run = asyncdgl.run(SMALL)
    assert not [path.name for path in run.path.iterdir() if "model" in path.name]
    with pytest.raises(DataError, match=r"has no model\.safetensors"):
        run.model()


@pytest.mark.usefixtures("no_figures")
def test_a_run_whose_model_has_no_room_is_completed_once_there_is_some() -> None:
    import safetensors.numpy

    def full(arrays: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", full)
        with pytest.raises(RunFailed, match="can't be written: No space left on device") as failed:
            asyncdgl.run(SMALL)
    left = failed.value.run
    assert left.summary.status == "failed"
    assert asyncdgl.load_run(left.path).summary == left.summary
    assert not [path.name for path in left.path.iterdir() if "model" in path.name]
    run = asyncdgl.resume(left.path)
    assert [s.state_sha256 for s in run.summary.stages] == [s.state_sha256 for s in left.summary.stages]
    assert run.summary.status == "completed"
    run.model()


@pytest.mark.usefixtures("no_figures")
def test_where_nothing_is_computed_there_is_no_model() -> None:
    run = asyncdgl.run(runtime="virtual", virtual={"train": False, "batches": 3})
    with pytest.raises(DataError, match=r"has no model\.safetensors"):
        run.model()


# --- On Ray -----------------------------------------------------------------------------------------------------------


ON_RAY = """
import os
import signal
import sys

import psutil
import pytest
import ray  # before the run has made its settings, which Ray reads at its import

sys.path.insert(0, sys.argv[1])
from test_run import At, ConfigError, OWN, accuracy, asyncdgl, mlp, signals_now, vectors


PAUSES = {1: {"pause": {"probability": 1.0, "length": 0.01}}, 3: {"slowdown": 5.0}}


def of_ray():
    return {name: value for name, value in os.environ.items() if "RAY" in name or name == "PYTHONBREAKPOINT"}


def mine(number, frame):
    raise AssertionError("nobody sent a signal")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, mine)
    before = signals_now()
    environment = of_ray()
    given = {"net": mlp(), "data": vectors(), "model": {"aux": "mlp"}}
    for _ in range(2):
        run = asyncdgl.run(OWN, runtime="ray", **given)
        assert signals_now() == before
        assert of_ray() == environment
        assert accuracy(run.model(), run.config, run.given) == run.summary.test_accuracy
        assert all(stage.state_equal for stage in asyncdgl.replay(run))
        assert psutil.Process().children(recursive=True) == []
        # A cell of the notebook is stopped: the next one begins as if nothing had been.
        with pytest.raises(KeyboardInterrupt):
            asyncdgl.run(OWN, runtime="ray", epochs=1000, observer=At(20, KeyboardInterrupt()), **given)
        assert psutil.Process().children(recursive=True) == []
    # A stage that pauses after every pass hears, too, that nobody reads any more.
    # It is done long before the last one, and makes forward-only passes until that one is done, too.
    run = asyncdgl.run(OWN, runtime="ray", pace="free", delays={"profile": {"stages": PAUSES}}, **given)
    assert run.summary.stages[0].forward_passes > 0
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with pytest.raises(ConfigError, match="in a Ray cluster already.*call ray.shutdown"):
        asyncdgl.run(OWN, runtime="ray", **given)
    assert ray.is_initialized()
"""


@pytest.mark.ray
def test_two_runs_on_ray_in_one_process_are_as_quiet(tmp_path) -> None:
    """In a process of its own, as a notebook is: here another test may have joined Ray."""
    script = tmp_path / "notebook.py"
    script.write_text(ON_RAY)
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, script, Path(__file__).parent]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
