"""How close asyncdgl comes to what the machine can do, and to what else there is: a table of ratios, side by side.

Everything is measured in turn, repetition after repetition; a ratio is the median over the repetitions, with a 95 %
bootstrap interval. Ends with 0 only if the near end of each interval meets its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from in_turn import BATCHES
from scipy.stats import bootstrap

from asyncdgl.config.defaults import merged
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.plan.balance import best_cut
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.records import TRACE
from asyncdgl.rundir.trace import TRAIN, by_stage, read_trace

HERE = Path(__file__).parent
ASYNCDGL = ["asyncdgl"]
REPETITIONS = 7
SECONDS = 4.0
TURNS = 8
"""Times that `sim` and the bare loop make a few batches each."""

SETTLES_S = 1.5
"""A run's first seconds, in which memory is touched for the first time, don't count."""

BOUNDS = {
    "ray, 2 balanced stages / the same stages without transport (the slower one's rate)": 0.95,
    "ray, 6 stages / the same stages without transport, same pace (all updates)": 0.90,
    "ray, 2 stages / torch.distributed.pipelining, 1F1B (images per second)": 1.3,
    "sim, sync-dgl / a bare loop of the same updates": 0.97,
    "sim, backprop / a bare loop of the same updates": 0.98,
    "sim, sync-dgl / the same training in float32, one image at a time": 3.0,
    "the data stream / stage 1 of six alone (batches per second)": 5.0,
    "a bare script on Ray / asyncdgl run, until the last of four stages has stepped": 1 / 1.25,
}


class Answering:
    """A script of this folder that waits, and answers each line that it is given."""

    def __init__(self, script: str, config: Path) -> None:
        command = [sys.executable, str(HERE / script), str(config)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words: Any) -> Any:
        """One line in, one line out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """It reads the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def subset(source: Path, folder: Path, train: int, test: int) -> Path:
    """A few images of each class, so that a run is short."""
    for split, count in (("train", train), ("test", test)):
        for one in sorted((source / split).iterdir()):
            (folder / split / one.name).mkdir(parents=True)
            for file in sorted(one.iterdir())[:count]:
                (folder / split / one.name / file.name).symlink_to(file.resolve())
    return folder


def rates_of_run(command: list[str], config: Path, folder: Path) -> list[float]:
    """Updates per second of each stage of a run by this `asyncdgl`, of any version, while all train."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        path = Path(out) / "run"
        settings = ["--config", str(config), "--out", str(path)]
        subprocess.run([*command, "run", *settings], check=True, stdout=subprocess.DEVNULL)
        passes = by_stage(read_trace(path / TRACE))
    begin = max(made[0].start_s for made in passes.values()) + SETTLES_S
    end = min(max(r.end_s for r in made if r.kind == TRAIN) for made in passes.values())
    rates = []
    for made in passes.values():
        ends = [r.end_s for r in made if r.kind == TRAIN and begin <= r.end_s <= end]
        rates.append((len(ends) - 1) / (ends[-1] - ends[0]))
    return rates


def beside(stepping: Answering, config: Path, folder: Path) -> tuple[list[float], list[float]]:
    """Each stage's rate in a run, and alone: half before the run and half after, so that a drift meets both."""
    before = stepping.ask(SECONDS / 2)
    ours = rates_of_run(ASYNCDGL, config, folder)
    after = stepping.ask(SECONDS / 2)
    return ours, [(a + b) / 2 for a, b in zip(before, after, strict=True)]


def until_last_stage_stepped(command: list[str], folder: Path) -> float:
    """Seconds from the command to the first update of stage 4 in the trace."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        path = Path(out) / "run"
        began = time.monotonic()
        process = subprocess.Popen([*command, "run", "--out", str(path)], stdout=subprocess.DEVNULL)
        trace = path / "trace.jsonl"
        while not (trace.exists() and '"stage":4,"incarnation":0,"step":0,"kind":"train"' in trace.read_text()):
            time.sleep(0.02)
            assert process.poll() is None
        seconds = time.monotonic() - began
        process.terminate()
        process.wait(30)
    return seconds


def until_bare_script_stepped() -> float:
    """Seconds from the command to its word."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, str(HERE / "start_up.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stepped\n"
    seconds = time.monotonic() - began
    process.wait(30)
    return seconds


def main() -> int:
    """Measure, show and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.data_dir, Path(folder))
    figures["minutes"] = (time.monotonic() - began) / 60
    print("\n| ratio | median | 95 % interval | bound | met |\n|---|---|---|---|---|")
    for name, bound in BOUNDS.items():
        found = figures["ratios"][name]
        low, high = found["interval"]
        found.update(bound=bound, met=low >= bound)
        print(f"| {name} | {found['median']:.3f} | {low:.3f} to {high:.3f} | {bound:g} | {found['met']} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(found["met"] for found in figures["ratios"].values()) else 1


def measure(data: Path, folder: Path) -> dict[str, Any]:
    """All raw figures, and their ratios."""
    short = subset(data, folder / "short", 800, 20)
    base = load_yaml(HERE / "config.yaml")

    def config(name: str, **settings: Any) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(merged(merged(base, {"data": {"data_dir": str(short)}}), settings)))
        return path

    two = config("two", stages=2, threads=1)
    resolved = planned(parse_config(load_yaml(two)))
    set_up_torch(resolved)
    cut = best_cut(resolved, (3, 32, 32), 10).cut
    two = config("two", stages=2, threads=1, model={"cut": list(cut)})
    six = config("six", stages=6, threads=1)
    alone = config("alone", stages=6, threads=2)
    stepping2, stepping6 = Answering("stepping.py", two), Answering("stepping.py", six)
    pipelining, in_turn, usual = (
        Answering("pipelining.py", two),
        Answering("in_turn.py", alone),
        Answering("usual.py", alone),
    )
    stream = Answering("stream.py", six)
    microbatches = {n: pipelining.ask(2.0, n) for n in (2, 4, 8)}
    best = max(microbatches, key=lambda n: microbatches[n])
    raw: dict[str, list[Any]] = {name: [] for name in ("two", "stepping two", "six", "stepping six", "pipelining")}
    raw |= {name: [] for name in ("sync-dgl", "backprop", "usual", "stream", "start", "bare start")}
    for repetition in range(REPETITIONS):
        for name, path, stepping in (("two", two, stepping2), ("six", six, stepping6)):
            ours, alone = beside(stepping, path, folder)
            raw[name].append(ours)
            raw[f"stepping {name}"].append(alone)
        raw["pipelining"].append(pipelining.ask(SECONDS, best))
        for algorithm in ("sync-dgl", "backprop"):
            raw[algorithm].append(in_turn.ask(algorithm, TURNS))
        raw["usual"].append(usual.ask(SECONDS))
        raw["stream"].append(stream.ask(20))
        raw["start"].append(until_last_stage_stepped(ASYNCDGL, folder))
        raw["bare start"].append(until_bare_script_stepped())
        print(repetition, {name: values[-1] for name, values in raw.items()}, flush=True)
    for process in (stepping2, stepping6, pipelining, in_turn, usual, stream):
        process.end()
    batch = resolved.batch_size
    sim = [TURNS * BATCHES * batch / ours for ours, _ in raw["sync-dgl"]]
    ratios = dict(
        zip(
            BOUNDS,
            (
                [min(r) / min(s) for r, s in zip(raw["two"], raw["stepping two"], strict=True)],
                [sum(r) / sum(s) for r, s in zip(raw["six"], raw["stepping six"], strict=True)],
                [min(r) * batch / p for r, p in zip(raw["two"], raw["pipelining"], strict=True)],
                [bare / ours for ours, bare in raw["sync-dgl"]],
                [bare / ours for ours, bare in raw["backprop"]],
                [ours / other for ours, other in zip(sim, raw["usual"], strict=True)],
                [step / get for get, step in raw["stream"]],
                [bare / ours for ours, bare in zip(raw["start"], raw["bare start"], strict=True)],
            ),
            strict=True,
        )
    )
    return {
        "ratios": {
            name: {"each": each, "median": median(each), "interval": interval(each)} for name, each in ratios.items()
        },
        "raw": raw,
        "cut": cut,
        "precision": resolved.precision,
        "microbatches": {"images_per_second": microbatches, "best": best},
    }


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    found = bootstrap((np.array(values),), np.median, method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


if __name__ == "__main__":
    raise SystemExit(main())
