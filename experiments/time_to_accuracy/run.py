"""Seconds until the last head reaches an accuracy: `ray` with two stages beside `backprop` with two threads.

Both evaluate after each epoch; the time at which the accuracy was reached is interpolated between the evaluations
around it. Times are those of the run, without its start; in `sim` without evaluation, in `ray` evaluation runs beside
the training and takes its share of the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
TARGET = 0.75
SIDES = {
    "ray": ["--runtime", "ray", "--stages", "2", "--threads", "1", "--set", "model.balance=cost"],
    "backprop": ["--runtime", "sim", "--algorithm", "backprop", "--threads", "2"],
}


def one_run(side: str, seed: int, data: Path, out: Path) -> dict[str, Any]:
    """One run in a process of its own: its evaluations, and when it reached the target."""
    run = out / f"{side}-{seed}"
    command = ["asyncdgl", "run", "--config", str(HERE / "config.yaml"), "--data-dir", str(data), "--seed", str(seed)]
    process = subprocess.Popen([*command, *SIDES[side], "--out", str(run)], stdout=subprocess.DEVNULL)
    lines: list[dict[str, Any]] = []
    while process.poll() is None:  # what comes after the target is of no interest
        time.sleep(1)
        lines = read(run / "metrics.jsonl")
        if any(line["kind"] == "evaluation" and line["test_accuracy"][-1] >= TARGET for line in lines):
            process.terminate()
            process.wait(60)
    lines = read(run / "metrics.jsonl")
    epochs = [line["end_s"] for line in lines if line["kind"] == "epoch" and line["stage"] == max_stage(lines)]
    accuracies = [line["test_accuracy"][-1] for line in lines if line["kind"] == "evaluation"]
    summary = json.loads((run / "summary.json").read_text())
    return {
        "side": side,
        "seed": seed,
        "epoch_end_s": epochs,
        "accuracy": accuracies,
        "seconds": reached(epochs, accuracies),
        "epochs": reached(list(np.arange(1.0, len(epochs) + 1)), accuracies),
        "images_per_second": summary["images_per_second"],
    }


def read(metrics: Path) -> list[dict[str, Any]]:
    """The complete lines of a file that may still grow."""
    text = metrics.read_text() if metrics.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def max_stage(lines: list[dict[str, Any]]) -> int:
    """The last stage: its epochs' ends are when the weights that are evaluated were there."""
    return max(line["stage"] for line in lines if line["kind"] == "epoch")


def reached(times: list[float], accuracies: list[float]) -> float | None:
    """When the target was first reached, by linear interpolation; None if it was not."""
    before, lower = 0.0, 0.1
    for end, accuracy in zip(times, accuracies, strict=False):  # the last stage may be an epoch further
        if accuracy >= TARGET:
            return before + (end - before) * (TARGET - lower) / (accuracy - lower)
        before, lower = end, accuracy
    return None


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    runs = []
    for seed in arguments.seeds:
        for side in SIDES:
            runs.append(one_run(side, seed, arguments.data_dir, arguments.out))
            print(json.dumps(runs[-1]), flush=True)
    figures: dict[str, Any] = {"target": TARGET, "runs": runs}
    for what in ("seconds", "epochs"):
        found = {side: [r[what] for r in runs if r["side"] == side] for side in SIDES}
        if all(value is not None for values in found.values() for value in values):
            ratios = [r / b for r, b in zip(found["ray"], found["backprop"], strict=True)]
            half = stats.t.ppf(0.975, len(ratios) - 1) * stats.sem(ratios) if len(ratios) > 1 else float("nan")
            figures[f"ray / backprop, {what}"] = {"each": ratios, "mean": mean(ratios), "half_95": half}
            print(f"ray / backprop, {what}: {mean(ratios):.2f} ± {half:.2f}")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
