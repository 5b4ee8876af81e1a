"""Runs on Ray whose processes are killed at random moments: what becomes of each, and whether its bits are repeated.

Stages, buffers, the pace keeper, the evaluator, Ray's own processes and the main process get SIGKILL. A run that ends
with an error, or is killed as a whole, is gone on with by `asyncdgl resume`, up to a number of times. In the end
`asyncdgl replay` repeats it, and nothing of it may be left on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
CONFIGS: dict[str, list[str]] = {
    "async": [],
    "async, no checkpoint soon": ["--set", "checkpoint.every=1000"],
    "slow stage, uniform": ["--delay-profile", "slow_stage2", "--sampler", "uniform"],
    "blocking, int8": [
        *("--max-reuse", "2", "--codec", "int8", "--set", "buffer.on_full=block"),
        *("--set", "buffer.size=4", "--sampler", "fifo"),
    ],
    "wan": ["--delay-profile", "wan"],
    "sync-dgl": ["--algorithm", "sync-dgl"],
}
BASE = ["--stages", "3", "--width", "4", "--epochs", "20", "--set", "checkpoint.every=20", "--set", "ray.deaf_s=10"]
KINDS = {"stage": "StageActor", "buffer": "BufferActor", "pace": "PaceActor", "evaluator": "EvaluationActor"}
WEIGHTS = {"stage": 8, "buffer": 3, "pace": 2, "evaluator": 1, "driver": 2}
OF_RAY = {"raylet": 1, "gcs_server": 1}
MOST_RESUMES = 8
HANG_S = 60.0


def processes(driver: psutil.Process, kind: str) -> list[psutil.Process]:
    """Those of a run, of one kind."""
    if kind == "driver":
        return [driver]
    found = []
    for process in driver.children(recursive=True):
        try:
            command = " ".join(process.cmdline()[:1])
        except psutil.Error:
            continue
        if KINDS.get(kind, kind) in command or (kind in ("raylet", "gcs_server") and process.name() == kind):
            found.append(process)
    return found


def watch(
    command: list[str], draws: random.Random, kills: int, log: Path, weights: dict[str, int]
) -> tuple[int | None, list[str], list[int]]:
    """Run a command and kill some of its processes; None for one that hangs.

    Returns:
        Its exit code, what was killed, and what lived on after it.
    """
    killed: list[str] = []
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    driver = psutil.Process(process.pid)
    known: dict[int, psutil.Process] = {}
    next_kill = time.monotonic() + draws.uniform(4, 14) if "raylet" in weights else None  # in the start, too
    alive_since = time.monotonic()
    trace = log.parent / "run" / "trace.jsonl"
    last_size = trace.stat().st_size if trace.exists() else -1
    while process.poll() is None:
        time.sleep(0.05)
        try:
            known.update({child.pid: child for child in driver.children(recursive=True)})
            if next_kill is None and last_size > 0:
                next_kill = time.monotonic() + draws.uniform(0, 2)
            if len(killed) < kills and next_kill is not None and time.monotonic() >= next_kill:
                kind = draws.choices(list(weights), list(weights.values()))[0]
                if victims := processes(driver, kind):
                    draws.choice(victims).send_signal(signal.SIGKILL)
                    killed.append(kind)
                    next_kill = time.monotonic() + draws.choice([0.0, draws.uniform(0, 2), draws.uniform(0, 12)])
        except psutil.Error:
            continue
        size = trace.stat().st_size if trace.exists() else 0
        if size != last_size:
            last_size, alive_since = size, time.monotonic()
        if time.monotonic() - alive_since > HANG_S:
            process.kill()
            process.wait()
            return None, killed, []
    ended = time.monotonic()
    left = list(known.values())
    while left and time.monotonic() - ended < HANG_S:
        _, left = psutil.wait_procs(left, timeout=1)
    return process.returncode, killed, [p.pid for p in left]


def is_complete(run: Path) -> bool:
    """Whether it has said so."""
    summary = run / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "completed"


def one_run(seed: int, folder: Path, kills: int, weights: dict[str, int]) -> dict[str, Any]:
    """One run from its start to its repetition."""
    draws = random.Random(seed)
    name = draws.choice(list(CONFIGS))
    script = [sys.executable, "-m", "asyncdgl"]
    log, run = folder / "log.txt", folder / "run"
    command = [*script, "run", *BASE, *CONFIGS[name], "--seed", str(seed), "--out", str(run)]
    result: dict[str, Any] = {"seed": seed, "config": name, "killed": [], "ends": [], "left": 0}
    for attempt in range(MOST_RESUMES + 1):
        quota = max(0, kills - len(result["killed"])) if attempt < MOST_RESUMES else 0
        code, killed, left = watch(command, draws, quota, log, weights)
        result["killed"] += killed
        result["ends"].append("hang" if code is None else code)
        result["left"] += len(left)
        if code == 0 or code is None or is_complete(run):  # its main process may be killed after its last word
            break
        command = [*script, "resume", str(run)]
        if not (run / "config.yaml").exists():  # it was killed before it began
            command = [*script, "run", *BASE, *CONFIGS[name], "--seed", str(seed), "--out", str(run)]
            subprocess.run(["rm", "-rf", str(run)], check=True)
    replayed = subprocess.run([*script, "replay", str(run)], capture_output=True, text=True, check=False)
    result["replay"] = replayed.returncode
    result["said"] = (replayed.stdout + replayed.stderr).replace(str(run), "RUN").strip().splitlines()[-1:]
    result["errors"] = [line for line in log.read_text().splitlines() if line.startswith("Error:")]
    faults = json.loads((run / "summary.json").read_text())["faults"] if (run / "summary.json").exists() else []
    result["complete"] = is_complete(run)
    result["recovery_s"] = [f["again_s"] - f["at_s"] for f in faults if f["again_s"] is not None]
    return result


def main() -> None:
    """Kill, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=4, help="of each run")
    parser.add_argument("--of-ray", action="store_true", help="Ray's own processes, too, and while it starts")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after so long")
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    results, began = [], time.monotonic()
    weights = {**WEIGHTS, **(OF_RAY if arguments.of_ray else {})}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.runs):
        if arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes:
            break
        with tempfile.TemporaryDirectory() as folder:
            results.append(one_run(seed, Path(folder), arguments.kills, weights))
        print(json.dumps(results[-1]), flush=True)
    figures = {
        "runs": len(results),
        "kills": dict(Counter(kind for r in results for kind in r["killed"])),
        "complete at once": sum(r["complete"] and len(r["ends"]) == 1 for r in results),
        "complete after resume": sum(r["complete"] and len(r["ends"]) > 1 for r in results),
        "not complete": sum(not r["complete"] for r in results),
        "repeated bit for bit": sum(r["replay"] == 0 for r in results),
        "hangs": sum("hang" in r["ends"] for r in results),
        "processes left": sum(r["left"] for r in results),
    }
    print(json.dumps(figures, indent=1))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps({**figures, "each": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
