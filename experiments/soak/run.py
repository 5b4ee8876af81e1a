"""A long run on Ray in which some process is killed every minute: does memory grow, do descriptors?

A short run before it tells how many epochs it takes to last so long. Its processes are looked at every few seconds;
then it is repeated by `asyncdgl replay`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from scipy.stats import linregress

HERE = Path(__file__).parent
STAGES, BATCHES = 4, 1437 // 128
SCRIPT = [sys.executable, "-m", "asyncdgl"]
CONFIG = ["--stages", str(STAGES), "--width", "64", "--set", "data.augment=true", "--set", "evaluation.every=50"]
KINDS = {
    "ray::StageActor": "stage",
    "ray::BufferActor": "buffer",
    "ray::PaceActor": "pace keeper",
    "ray::EvaluationActor": "evaluator",
    "ray::DashboardAgent": "dashboard agent",
    "ray::RuntimeEnvAgent": "runtime environment agent",
    "raylet": "raylet",
    "gcs_server": "GCS",
}
VICTIMS = ("stage", "stage", "buffer", "buffer", "pace keeper", "evaluator")
LOOK_S, SETTLED_S, YOUNG_S = 5.0, 600.0, (30.0, 90.0)
CALIBRATION_S = 60.0


class Look(NamedTuple):
    """What one process took at one moment.

    Attributes:
        at_s: since training began.
        pid, kind: who it is.
        age_s: since it was first seen.
        bytes: that are its own.
        descriptors: that it has open.
    """

    at_s: float
    pid: int
    kind: str
    age_s: float
    bytes: int
    descriptors: int


def processes(driver: psutil.Process) -> Iterator[tuple[psutil.Process, str]]:
    """The main process of a run, and those that it has started, as far as they are known by name."""
    yield driver, "main process"
    for child in driver.children(recursive=True):
        try:
            command = (child.cmdline() or [""])[0]
        except psutil.Error:
            continue
        kind = next((kind for name, kind in KINDS.items() if command.startswith(name) or command.endswith(name)), None)
        if kind is not None:
            yield child, kind


def look(driver: psutil.Process, seen: dict[int, float], now: float) -> list[Look]:
    """All of them at one moment."""
    looks = []
    for process, kind in processes(driver):
        try:
            born = seen.setdefault(process.pid, now)
            uss = process.memory_full_info().uss
            looks.append(Look(now, process.pid, kind, now - born, uss, process.num_fds()))
        except psutil.Error:
            continue
    return looks


def begin(out: Path, epochs: int, log: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start a run, and wait until it trains."""
    with log.open("w") as file:
        command = [*SCRIPT, "run", *CONFIG, "--epochs", str(epochs), "--out", str(out)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    trace = out / "trace.jsonl"
    while not (trace.exists() and trace.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(f"the run did not begin: {log.read_text()}")
        time.sleep(0.1)
    return process, time.monotonic()


def epochs_for(minutes: float, folder: Path) -> int:
    """As many as a run without kills would make in that time."""
    process, began = begin(folder / "calibration", 1_000_000, folder / "calibration.log")
    time.sleep(CALIBRATION_S)
    process.send_signal(signal.SIGINT)
    seconds = time.monotonic() - began
    process.wait(60)
    with (folder / "calibration" / "trace.jsonl").open() as file:
        updates = sum('"stage":1,' in line for line in file)
    return max(1, round(updates / BATCHES * minutes * 60 / seconds))


def soak(out: Path, epochs: int, every_s: float, seed: int) -> tuple[list[Look], int, int]:
    """The run: what was seen, how many were killed, and its exit code."""
    process, began = begin(out, epochs, out.with_suffix(".log"))
    driver, draws = psutil.Process(process.pid), random.Random(seed)
    seen: dict[int, float] = {}
    looks: list[Look] = []
    next_look, next_kill, kills = 0.0, every_s, 0
    while process.poll() is None:
        now = time.monotonic() - began
        if now >= next_look:
            looks += look(driver, seen, now)
            next_look += LOOK_S
        if now >= next_kill:
            kind = draws.choice(VICTIMS)
            victims = [p for p, its in processes(driver) if its == kind and now - seen.get(p.pid, now) > LOOK_S]
            if victims:
                os.kill(draws.choice(victims).pid, signal.SIGKILL)
                kills += 1
                next_kill += every_s
        time.sleep(0.2)
    return looks, kills, process.returncode


def slope(times: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Percent of the mean in an hour: its best estimate, and a 95 % interval."""
    fit, mean = linregress(times, values), statistics.mean(values)
    percent = 100 * 3600 / mean
    return {
        "percent_an_hour": percent * fit.slope,
        "low": percent * (fit.slope - 1.96 * fit.stderr),
        "high": percent * (fit.slope + 1.96 * fit.stderr),
        "mean": mean,
        "n": len(values),
    }


def figures_of(looks: Sequence[Look]) -> dict[str, Any]:
    """Growth of each kind of process after the first ten minutes.

    One that lives through the run is followed; of those that are killed, each is looked at at the same age, so that
    what is handed from one to the next shows.
    """
    lives: dict[int, list[Look]] = defaultdict(list)
    for one in looks:
        if one.at_s > SETTLED_S:
            lives[one.pid].append(one)
    end = max(one.at_s for one in looks)
    figures: dict[str, Any] = {}
    for kind in sorted({one.kind for one in looks}):
        own = [life for life in lives.values() if life and life[0].kind == kind]
        followed = [life for life in own if life[0].at_s < SETTLED_S + 2 * LOOK_S and life[-1].at_s > end - 4 * LOOK_S]
        young = [
            (at[0].at_s, at)
            for life in own
            if len(at := [one for one in life if YOUNG_S[0] <= one.age_s <= YOUNG_S[1]]) >= 3
        ]
        of_kind: dict[str, Any] = {"processes": len({one.pid for one in looks if one.kind == kind})}
        for what in ("bytes", "descriptors"):
            if followed:
                of_kind[what] = slope(*zip(*((o.at_s, getattr(o, what)) for o in followed[0]), strict=True))
            elif len(young) > 2:
                means = [(at_s, statistics.mean(getattr(o, what) for o in at)) for at_s, at in young]
                of_kind[f"{what}, by time of birth"] = slope(*zip(*means, strict=True))
        figures[kind] = of_kind
    return figures


def main() -> None:
    """Run, kill, look, repeat, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        epochs = epochs_for(arguments.minutes, Path(folder))
        began = time.monotonic()
        looks, kills, code = soak(out, epochs, arguments.every, arguments.seed)
        minutes = (time.monotonic() - began) / 60
        summary = json.loads((out / "summary.json").read_text())
        left = sorted({one.pid for one in looks if psutil.pid_exists(one.pid)})
        result = {
            "minutes": minutes,
            "epochs": epochs,
            "kills": kills,
            "exit": code,
            "status": summary["status"],
            "passes": sum(stage["updates"] + stage["forward_passes"] for stage in summary["stages"]),
            "passes made again": sum(fault["passes_again"] for fault in summary["faults"]),
            "processes left": len(left),
            "growth": figures_of(looks),
        }
        keep(result)  # to repeat it takes as long again
        replayed = subprocess.run([*SCRIPT, "replay", str(out)], capture_output=True, text=True, check=False)
        result["replay"] = (replayed.stdout + replayed.stderr).strip().splitlines()[-1]
        keep(result)
    print(json.dumps(result, indent=1))


def keep(result: Mapping[str, Any]) -> None:
    """In results/results.json."""
    kept = HERE / "results" / "results.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
