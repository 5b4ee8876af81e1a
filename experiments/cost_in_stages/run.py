"""CPU seconds of each update, by the number of tiny stages: `ray` beside `sim`.

Of a run in the middle of its training, what all its processes use, and how many updates they make.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
MARK = "ASYNCDGL_EXPERIMENT"  # an environment variable that a run's processes inherit
SETTLES_S = 4.0


def processes(mark: str) -> dict[psutil.Process, str]:
    """A run's processes and their kind."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found[process] = kind(process.cmdline())
        except psutil.Error:
            continue
    return found


def kind(command: list[str]) -> str:
    """What a process is there for."""
    line = " ".join(command)
    actor = re.search(r"ray::(\w+)Actor", line)
    if actor:
        return f"{actor[1].lower()}s"
    return "driver" if "asyncdgl" in line and "ray" not in command[0] and "/ray/" not in line else "Ray itself"


def cpu(found: dict[psutil.Process, str]) -> Counter[str]:
    """CPU seconds so far, by kind."""
    used: Counter[str] = Counter()
    for process, what in found.items():
        try:
            times = process.cpu_times()
            used[what] += times.user + times.system
        except psutil.Error:
            continue
    return used


def updates(trace: Path) -> int:
    """Updates in a run's trace so far."""
    return trace.read_text().count('"kind":"train"') if trace.exists() else 0


def measure(runtime: str, stages: int, seconds: float) -> dict[str, Any]:
    """One run, for so long."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["asyncdgl", "run", "--stages", str(stages), "--runtime", runtime, "--threads", "1"]
        command += ["--set", f"model.blocks={stages}", "--set", "model.width=4", "--set", "model.downsample=[2]"]
        command += ["--epochs", "100000", "--set", "evaluation.every=100000", "--out", str(run)]
        environment = {**os.environ, MARK: folder, "RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        trace = run / "trace.jsonl"
        while updates(trace) < stages:
            assert process.poll() is None
            time.sleep(0.2)
        time.sleep(SETTLES_S)
        found = processes(folder)
        before, made, began = cpu(found), updates(trace), time.monotonic()
        time.sleep(seconds)
        after, made = cpu(found), updates(trace) - made
        wall = time.monotonic() - began
        process.terminate()
        process.wait(60)
    each = {what: (after[what] - before[what]) / made for what in after}
    return {
        "runtime": runtime,
        "stages": stages,
        "updates_per_second": made / wall,
        "cpu_ms_per_update": 1000 * sum(each.values()),
        "by_kind_ms": {what: 1000 * value for what, value in each.items()},
        "processes": len(found),
    }


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--repetitions", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for _ in range(arguments.repetitions):
        for stages in arguments.stages:
            for runtime in ("sim", "ray"):
                rows.append(measure(runtime, stages, arguments.seconds))
                print(json.dumps(rows[-1]), flush=True)
                (HERE / "results").mkdir(exist_ok=True)
                (HERE / "results" / "results.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
