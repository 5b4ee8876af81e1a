"""The README's first command, over several seeds: accuracy, time, and whether a process is left."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent
MARK = "ASYNCDGL_EXPERIMENT"


def processes_left(mark: str) -> int:
    """Processes that a run started and that still live."""
    left = 0
    for p in psutil.process_iter():
        try:
            left += p.environ().get(MARK) == mark and p.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue
    return left


def main() -> None:
    """All seeds, then median and worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the run directories go")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        path = options.out / f"seed-{seed}"
        command = ["asyncdgl", "run", "--delay-profile", "slow_stage2", "--seed", str(seed), "--out", str(path)]
        began = time.monotonic()
        done = subprocess.run(command, env={**os.environ, MARK: str(path)}, stdout=subprocess.DEVNULL, check=False)
        seconds = time.monotonic() - began
        left = processes_left(str(path))
        summary = json.loads((path / "summary.json").read_text())
        runs.append(
            {
                "seed": seed,
                "exit_code": done.returncode,
                "seconds": round(seconds, 1),
                "processes_left": left,
                "test_accuracy": summary["test_accuracy"],
                "ensemble_test_accuracy": summary["ensemble_test_accuracy"],
                "busy": [round(s["busy_fraction"], 3) for s in summary["stages"]],
                "staleness": [s["staleness"]["mean"] for s in summary["stages"]],
            }
        )
        print(runs[-1], flush=True)
    accuracies = [r["test_accuracy"] for r in runs]
    result = {"runs": runs, "median": statistics.median(accuracies), "worst": min(accuracies)}
    print(f"test accuracy: median {result['median']:.4f}, worst {result['worst']:.4f}")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    (HERE / "figures").mkdir(exist_ok=True)
    for figure in ("timeline.png", "learning_curves.png", "staleness.png"):
        shutil.copy(options.out / "seed-0" / "figures" / figure, HERE / "figures" / figure)


if __name__ == "__main__":
    main()
