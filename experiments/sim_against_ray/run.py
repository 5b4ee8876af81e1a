"""Run the same asynchronous training in `sim` and in `ray`, and compare accuracy; watch the memory of the Ray runs."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
from scipy import stats

HERE = Path(__file__).parent
MARK = "ASYNCDGL_EXPERIMENT"  # an environment variable that a run's processes inherit
POLL_S = 2.0
SAMPLES = 5


def memory_of_run(mark: str) -> int:
    """Bytes that all processes of a run hold, the object store's pages included, each shared page counted once."""
    total = 0
    for p in psutil.process_iter():
        try:
            if p.environ().get(MARK) == mark:
                lines = Path(f"/proc/{p.pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (psutil.Error, OSError, StopIteration):
            continue
    return total


def epochs_done(run: Path, stages: int) -> int:
    """Epochs that every stage has completed."""
    done = dict.fromkeys(range(1, stages + 1), 0)
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        for line in metrics.read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "epoch":
                done[record["stage"]] = record["epoch"]
    return min(done.values())


def one_run(runtime: str, seed: int, data: Path, out: Path) -> dict[str, Any]:
    """One run in a process of its own; returns its figures."""
    run = out / f"{runtime}-{seed}"
    command = ["asyncdgl", "run", "--config", str(HERE / "config.yaml"), "--runtime", runtime, "--seed", str(seed)]
    command += ["--data-dir", str(data), "--out", str(run)]
    process = subprocess.Popen(command, env={**os.environ, MARK: str(run)}, stdout=subprocess.DEVNULL)
    samples: list[int] = []
    while process.poll() is None:
        time.sleep(POLL_S)
        done = epochs_done(run, 6)
        if runtime == "ray" and 1 <= done < 3 and process.poll() is None:
            samples.append(memory_of_run(str(run)))
    summary = json.loads((run / "summary.json").read_text())
    return {
        "runtime": runtime,
        "seed": seed,
        "status": summary["status"],
        "test_accuracy": summary["test_accuracy"],
        "ensemble_test_accuracy": summary["ensemble_test_accuracy"],
        "heads": [s["test_accuracy"] for s in summary["stages"]],
        "staleness": [s["staleness"]["mean"] for s in summary["stages"]],
        "train_seconds": summary["train_seconds"],
        # Medians of ten seconds: what is on the wire at one instant comes and goes.
        "memory_after_epoch_1": statistics.median(samples[:SAMPLES]) if samples else None,
        "memory_at_end": statistics.median(samples[-SAMPLES:]) if samples else None,
    }


def main() -> None:
    """All runs, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--out", type=Path, required=True, help="where the run directories go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("sim", "ray"), help="one run of this runtime, with the last seed; prints it")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only:
        print(json.dumps(one_run(options.only, options.seeds - 1, options.data_dir, options.out), indent=2))
        return
    runs = [
        one_run(runtime, seed, options.data_dir, options.out)
        for seed in range(options.seeds)
        for runtime in ("sim", "ray")
    ]
    accuracy = {runtime: [r["test_accuracy"] for r in runs if r["runtime"] == runtime] for runtime in ("sim", "ray")}
    differences = [ray - sim for sim, ray in zip(accuracy["sim"], accuracy["ray"], strict=True)]
    mean = sum(differences) / len(differences)
    half = math.nan
    if len(differences) > 1:
        half = float(stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1))
    growth = [r["memory_at_end"] / r["memory_after_epoch_1"] for r in runs if r["memory_at_end"]]
    result = {"runs": runs, "difference_ray_minus_sim": mean, "half_width_95": half, "memory_growth": growth}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    for r in runs:
        print(f"{r['runtime']:4} seed {r['seed']}: {r['test_accuracy']:.4f}, {r['train_seconds']:.0f} s")
    print(f"ray - sim: {mean:+.4f} +- {half:.4f} (95 %, paired, {len(differences)} seeds)")
    print("memory at the end over that after epoch 1:", " ".join(f"{g:.3f}" for g in growth))


if __name__ == "__main__":
    main()
