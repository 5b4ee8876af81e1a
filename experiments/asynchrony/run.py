"""Measure that stages run at their own speeds: overlap, a stopped stage, relative speeds under both paces."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.trace import PassRecord, by_stage, overlap

HERE = Path(__file__).parent
# Passes of 30 ms and more, so that messages between processes (1 to 3 ms) hardly count.
LARGE = ["--dataset", "synthetic", "--set", "data.image_size=32", "--batch-size", "64", "--threads", "1"]
SIX_BLOCKS = ["--set", "model.blocks=6", "--width", "16"]
SMALL = ["--dataset", "synthetic", "--width", "8", "--threads", "1"]


def run(out: Path, *options: str, during: Callable[[Path, subprocess.Popen[bytes]], None] | None = None) -> Run:
    """One run in a process of its own."""
    process = subprocess.Popen(["asyncdgl", "run", *options, "--out", str(out)], stdout=subprocess.DEVNULL)
    if during is not None:
        during(out, process)
    if process.wait() != 0:
        raise RuntimeError(f"asyncdgl run {' '.join(options)} ended with {process.returncode}")
    return read_run(out)


def common_window(stages: dict[int, list[PassRecord]]) -> tuple[float, float]:
    """The time in which all stages train, without its first tenth and last twentieth."""
    trained = [[r for r in passes if r.kind == "train"] for passes in stages.values()]
    begin, end = max(p[0].start_s for p in trained), min(p[-1].end_s for p in trained)
    return begin + 0.1 * (end - begin), end - 0.05 * (end - begin)


def rates(stages: dict[int, list[PassRecord]], start: float, end: float) -> dict[int, float]:
    """Passes per second of each stage."""
    return {j: sum(start <= r.end_s < end for r in passes) / (end - start) for j, passes in stages.items()}


def measure_overlap(out: Path) -> dict[str, Any]:
    """J = 2: the share of the time in which both stages compute."""
    results = {}
    for pace in ("free", "profile"):
        trace = run(
            out / f"overlap-{pace}", *LARGE, *SIX_BLOCKS, "--stages", "2", "--epochs", "6", "--pace", pace
        ).records
        stages = by_stage(trace)
        start, end = common_window(stages)
        inside = {j: [r for r in passes if r.start_s >= start and r.end_s <= end] for j, passes in stages.items()}
        results[pace] = {
            "both_compute": overlap(inside[1], inside[2]) / (end - start),
            "busy": [sum(r.end_s - r.start_s for r in inside[j]) / (end - start) for j in (1, 2)],
            "pass_ms": [1000 * statistics.mean(r.end_s - r.start_s for r in inside[j]) for j in (1, 2)],
        }
    return results


def measure_stopped_stage(out: Path) -> dict[str, Any]:
    """J = 3, pace free: SIGSTOP stage 2 for 5 s."""
    moments: dict[str, float] = {}

    def stop_stage_2(path: Path, process: subprocess.Popen[bytes]) -> None:
        while not (path / "trace.jsonl").exists() or (path / "trace.jsonl").stat().st_size < 400_000:
            time.sleep(0.1)
        environment = json.loads((path / "environment.json").read_text())
        pid = next(p["pid"] for p in environment["processes"] if p["name"] == "stage 2")
        moments["stopped_at"] = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(pid, signal.SIGCONT)
        moments["stopped_s"] = time.monotonic() - moments["stopped_at"]

    result = run(out / "stopped", *SMALL, "--stages", "3", "--epochs", "60", "--pace", "free", during=stop_stage_2)
    stages = by_stage(result.records)
    # The gap in stage 2's passes is the stop, on the trace's own clock.
    ends = [r.end_s for r in stages[2]]
    gap, at = max((b - a, a) for a, b in itertools.pairwise(ends))
    before, during = rates(stages, at - 3, at), rates(stages, at + 0.5, at + gap - 0.5)
    reuse = [r.times_sampled or 0 for r in stages[3] if at + 0.5 <= r.end_s < at + gap - 0.5]
    return {
        "gap_s": gap,
        "rate_before": before,
        "rate_while_stopped": during,
        "kept": {j: during[j] / before[j] for j in (1, 3)},
        "stage_3_times_sampled": {
            "before": 1.0 * statistics.mean(r.times_sampled or 0 for r in stages[3] if at - 3 <= r.end_s < at),
            "at_end": reuse[-1],
        },
        "status": result.summary.status if result.summary else None,
        "test_accuracy": result.summary.test_accuracy if result.summary else None,
    }


def measure_pace_profile(out: Path) -> list[dict[str, Any]]:
    """Pace profile: stage 2's speed over that of the others, and each of the others' over their mean."""
    results = []
    for stages, slowdown in ((4, 2.0), (4, 1.11), (6, 2.0), (6, 1.11)):
        path = out / f"profile-{stages}-{slowdown}"
        blocks = ["--set", f"model.blocks={stages}", "--stages", str(stages), "--epochs", "8"]
        trace = by_stage(
            run(path, *SMALL, *blocks, "--delay-profile", "slow_stage2", "--slowdown", str(slowdown)).records
        )
        start, end = common_window(trace)
        counts = {j: sum(start <= r.end_s < end for r in passes) for j, passes in trace.items()}
        others = statistics.mean(count for j, count in counts.items() if j != 2)
        results.append(
            {
                "stages": stages,
                "slowdown": slowdown,
                "passes": counts,
                "stage_2_over_others": counts[2] / others,
                "expected": 1 / slowdown,
                "error": counts[2] / others * slowdown - 1,
                "others_spread": max(abs(c / others - 1) for j, c in counts.items() if j != 2),
            }
        )
    return results


def measure_pace_free(out: Path) -> list[dict[str, Any]]:
    """Pace free: a slowed stage's period without other waits, over its own computing time."""
    results = []
    for slowdown in (1.11, 1.5, 2.0, 4.0):
        path = out / f"free-{slowdown}"
        options = ["--stages", "2", "--epochs", "3", "--pace", "free", "--delay-profile", "slow_stage2"]
        passes = by_stage(run(path, *LARGE, *SIX_BLOCKS, *options, "--slowdown", str(slowdown)).records)[2][5:]
        waits = sum(s for r in passes[1:] for reason, s in r.waits.items() if reason != "slowdown")
        period = passes[-1].start_s - passes[0].start_s - waits
        ratio = period / sum(r.end_s - r.start_s for r in passes[:-1])
        results.append({"slowdown": slowdown, "period_over_computing": ratio, "error": ratio / slowdown - 1})
    return results


def main() -> None:
    """Measure all of it; print, and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the run directories go")
    parts: dict[str, Callable[[Path], Any]] = {
        "overlap": measure_overlap,
        "stopped_stage": measure_stopped_stage,
        "pace_profile": measure_pace_profile,
        "pace_free": measure_pace_free,
    }
    parser.add_argument("--only", choices=parts, help="measure one part again; the others stay as they are")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = HERE / "results" / "results.json"
    results.parent.mkdir(exist_ok=True)
    result = json.loads(results.read_text()) if options.only else {}
    for name in [options.only] if options.only else parts:
        result[name] = parts[name](options.out)
        print(name, json.dumps(result[name], indent=2))
    results.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
