"""A run on Ray in which a process gets SIGKILL every few seconds: how fast is it beside one that is left alone?

Three modes of the same run take turns, in segments: quiet, kills, and kills with a spare process. Stages and buffers
are killed in turn. Each segment ends by SIGINT; those with kills are repeated by `asyncdgl replay` afterwards.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).parent
STAGES = 4
MODES = {"quiet": 0, "kills": 0, "kills, spare": 1}
"""With how many spares."""

SCRIPT = [sys.executable, "-m", "asyncdgl"]
CONFIG = [
    *("--stages", str(STAGES), "--width", "64", "--lr", "0.01", "--epochs", "1000000"),
    *("--set", "data.augment=true", "--set", "optim.schedule=constant", "--set", "evaluation.every=1000000"),
]
START_S, STOP_S = 180.0, 60.0
AFTER_S = 0.95
"""Of the time between two kills: none comes so late that the segment ends before the next would."""


def victims(seed: int) -> Iterator[str]:
    """Stages and buffers in turn, each of them as often as the others."""
    draws = random.Random(seed)

    def shuffled(kind: str, count: int) -> Iterator[str]:
        while True:
            yield from (f"{kind} {j}" for j in draws.sample(range(1, count + 1), count))

    return itertools.chain.from_iterable(zip(shuffled("stage", STAGES), shuffled("buffer", STAGES - 1), strict=False))


class Processes:
    """Who is who among a run's processes. The run says it of the first ones; each later one takes a known place.

    Args:
        driver: the main process.
        names: by number, as environment.json has them.
        spares: how many wait.
    """

    def __init__(self, driver: psutil.Process, names: dict[int, str], spares: int) -> None:
        self._driver = driver
        self._names = {pid: name for pid, name in names.items() if name.startswith(("stage", "buffer"))}
        self._missing: dict[str, list[str]] = {"StageActor": ["spare"] * spares, "BufferActor": []}

    def look(self) -> None:
        """Give new processes the names that are missing."""
        for process in self._driver.children(recursive=True):
            try:
                command = " ".join(process.cmdline()[:1])
            except psutil.Error:
                continue
            for kind, missing in self._missing.items():
                if process.pid not in self._names and missing and kind in command:
                    self._names[process.pid] = missing.pop(0)

    def kill(self, name: str) -> bool:
        """Kill it; returns whether it was there."""
        pid = next((pid for pid, known in self._names.items() if known == name), None)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        del self._names[pid]
        if name.startswith("buffer"):
            self._missing["BufferActor"].append(name)
            return True
        spare = next((pid for pid, known in self._names.items() if known == "spare"), None)
        if spare is not None:
            self._names[spare] = name
        self._missing["StageActor"].append(name if spare is None else "spare")
        return True


def segment(mode: str, seed: int, seconds: float, every_s: float, run: Path) -> dict[str, Any]:
    """One run, from its start to SIGINT."""
    spares = ["--set", f"ray.spares={MODES[mode]}"] if MODES[mode] else []
    with (run.parent / f"{run.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*SCRIPT, "run", *CONFIG, *spares, "--seed", str(seed), "--out", str(run)], stdout=log, stderr=log
        )
    trace, began = run / "trace.jsonl", time.monotonic()
    while not (trace.exists() and trace.stat().st_size):
        if process.poll() is not None or time.monotonic() > began + START_S:
            process.kill()
            raise RuntimeError(f"the run did not begin: {(run.parent / f'{run.name}.log').read_text()}")
        time.sleep(0.02)
    began = time.monotonic()
    names = {p["pid"]: p["name"] for p in json.loads((run / "environment.json").read_text())["processes"]}
    known, killed = Processes(psutil.Process(process.pid), names, MODES[mode]), []
    order, next_kill = victims(seed), every_s if mode != "quiet" else float("inf")
    name = next(order)
    while process.poll() is None and (now := time.monotonic() - began) < seconds:
        known.look()
        if next_kill <= now and next_kill < seconds - AFTER_S * every_s and known.kill(name):
            killed.append(name)
            name, next_kill = next(order), next_kill + every_s
        time.sleep(0.05)
    lived = process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        code: int | None = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = None
    return {"mode": mode, "seed": seed, "killed": killed, "lived": lived, "exit": code, **measured(run, seconds)}


def measured(run: Path, seconds: float) -> dict[str, Any]:
    """What the run directory says of the first so many seconds of training, in its own clock."""
    ends: dict[int, list[float]] = {j: [] for j in range(1, STAGES + 1)}
    with (run / "trace.jsonl").open() as file:
        for line in file:
            record = json.loads(line)
            ends[record["stage"]].append(record["end_s"])
    summary = run / "summary.json"
    faults = json.loads(summary.read_text())["faults"] if summary.exists() else []  # a run that hung has none
    hits = [fault["at_s"] for fault in faults if fault["at_s"] < seconds]
    minutes = seconds / 60
    result: dict[str, Any] = {
        "faults": faults,
        "passes_per_minute": {j: sum(end < seconds for end in own) / minutes for j, own in ends.items()},
        "after": [],
    }
    for fault, until in zip(faults, [*hits[1:], seconds], strict=False):
        at, hit = fault["at_s"], fault["process"]
        counts = {j: bisect.bisect(own, until) - bisect.bisect(own, at) for j, own in ends.items()}
        after: dict[str, Any] = {
            "process": hit,
            "passes_per_minute": {j: 60 * n / (until - at) for j, n in counts.items()},
        }
        if hit.startswith("stage"):
            own = [0.0, *ends[int(hit.split()[1])]]
            # The pass before the fault and the next one that was made for the first time: what the stage stood still.
            after["stood_still_s"] = max(
                (b - a for a, b in itertools.pairwise(own) if b > at - 1 and a < until), default=None
            )
        result["after"].append(after)
    return result


def figures_of(mode: str, segments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one mode, beside the quiet segments of the same rounds."""
    own = [s for s in segments if s["mode"] == mode]
    quiet = {s["seed"]: s["passes_per_minute"] for s in segments if s["mode"] == "quiet"}
    faults = [fault for s in own for fault in s["faults"]]
    shares: dict[str, list[float]] = {"the stage that was hit": [], "the others": [], "all, a buffer was hit": []}
    for s in own:
        for after in s["after"]:
            kind, _, number = after["process"].partition(" ")
            for j, rate in after["passes_per_minute"].items():
                share = rate / quiet[s["seed"]][j]
                if kind == "buffer":
                    shares["all, a buffer was hit"].append(share)
                elif kind == "stage":
                    shares["the stage that was hit" if j == int(number) else "the others"].append(share)
    rates = [sum(s["passes_per_minute"].values()) for s in own]
    beside = [sum(quiet[s["seed"]].values()) for s in own]
    return {
        "passes per minute": rates,
        "share of quiet": sum(rates) / sum(beside),
        "share of quiet, by round": [rate / base for rate, base in zip(rates, beside, strict=True)],
        "kills": sum(len(s["killed"]) for s in own),
        "noticed as planned": all([f["process"] for f in s["faults"]] == s["killed"] for s in own),
        "lived to the end": all(s["lived"] for s in own),
        "not recovered": sum(fault["again_s"] is None for fault in faults),
        "recovery_s": {kind: spread(recoveries(faults, kind)) for kind in ("stage", "buffer")},
        "stood_still_s": spread([a["stood_still_s"] for s in own for a in s["after"] if a.get("stood_still_s")]),
        "share until the next kill": {who: statistics.mean(values) for who, values in shares.items() if values},
        "repeated bit for bit": sum(s.get("replay") == 0 for s in own),
        "segments": len(own),
    }


def recoveries(faults: Sequence[dict[str, Any]], kind: str) -> list[float]:
    """Seconds from noticing a death to another process at work."""
    return [f["again_s"] - f["at_s"] for f in faults if f["process"].startswith(kind) and f["again_s"] is not None]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and number."""
    if not values:
        return {"count": 0}
    median, p99 = np.percentile(values, [50, 99])
    return {"median": round(float(median), 3), "p99": round(float(p99), 3), "count": len(values)}


def main() -> None:
    """Measure, repeat, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="of each mode")
    parser.add_argument("--segment-minutes", type=float, default=5)
    parser.add_argument("--every", type=float, default=15, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "results.json")
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    rounds = max(1, round(arguments.minutes / arguments.segment_minutes))
    segments: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            modes = list(MODES)
            shift = number % len(modes)
            for mode in modes[shift:] + modes[:shift]:  # a drift of the machine meets all alike
                run = Path(folder) / f"run{len(segments)}"
                seed = arguments.seed + number
                segments.append(segment(mode, seed, 60 * arguments.segment_minutes, arguments.every, run))
                print(json.dumps({k: v for k, v in segments[-1].items() if k not in ("after", "faults")}), flush=True)
        keep(arguments, segments)  # to repeat the runs takes as long again, and comes last: it would take their machine
        for number, s in enumerate(segments):
            run = Path(folder) / f"run{number}"
            if s["mode"] != "quiet":
                done = subprocess.run([*SCRIPT, "replay", str(run)], capture_output=True, text=True, check=False)
                s["replay"] = done.returncode
                s["said"] = (done.stdout + done.stderr).strip().splitlines()[-1:]
                print(s["mode"], s["said"], flush=True)
            shutil.rmtree(run)
    print(json.dumps(keep(arguments, segments), indent=1))
    bad = [s for s in segments if not s["lived"] or s.get("replay", 0) != 0]
    sys.exit(1 if bad else 0)


def keep(arguments: argparse.Namespace, segments: list[dict[str, Any]]) -> dict[str, Any]:
    """In the file of the results; returns the figures."""
    figures = {mode: figures_of(mode, segments) for mode in MODES}
    settings = {"config": CONFIG, "minutes": arguments.minutes, "segment_minutes": arguments.segment_minutes}
    settings["every_s"] = arguments.every
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps({"settings": settings, "figures": figures, "each": segments}, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
