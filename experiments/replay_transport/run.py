"""asyncdgl's replay buffer beside torchrl's and Reverb's: medians of each, in turn, at three sizes."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import bootstrap

HERE = Path(__file__).parent
SIZES = {"64 kB": 64_000, "4 MB": 4_000_000, "32 MB": 32_000_000}
REPETITIONS = 7
EACH = 12
"""Inserts and samples of one repetition; its median counts."""

WHAT = ("blocked", "until_sampled", "sample", "sample_ahead")


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median; of one value, that."""
    if len(values) == 1:
        return values[0], values[0]
    found = bootstrap((np.array(values),), np.median, method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="Python with asyncdgl and torchrl")
    parser.add_argument("--reverb-python", required=True, help="Python with dm-reverb")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    arguments = parser.parse_args()
    programs = {
        "asyncdgl": [arguments.python, "ours.py"],
        "torchrl": [arguments.python, "torchrl_replay.py"],
        "reverb": [arguments.reverb_python, "reverb_replay.py"],
    }
    medians: dict[str, dict[str, dict[str, list[float]]]] = {
        size: {name: {what: [] for what in WHAT} for name in programs} for size in SIZES
    }
    for _ in range(arguments.repetitions):
        for size, nbytes in SIZES.items():
            for name, command in programs.items():
                done = subprocess.run(
                    [*command, str(nbytes), str(EACH)], cwd=HERE, check=True, capture_output=True, text=True
                )
                found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
                for what in WHAT:
                    if found[what]:
                        medians[size][name][what].append(1000 * median(found[what]))
                print(size, name, {what: round(1000 * median(v), 2) for what, v in found.items() if v}, flush=True)
        keep(medians)


def keep(medians: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """What there is so far: each program's median, and the median ratio to asyncdgl's."""
    table: list[dict[str, Any]] = []
    for size, by_name in medians.items():
        for name, times in by_name.items():
            for what, values in times.items():
                if values:
                    ratios = [v / o for v, o in zip(values, by_name["asyncdgl"][what], strict=True)]
                    row = {"size": size, "what": what, "program": name, "ms": median(values), "ratio": median(ratios)}
                    table.append({**row, "interval": interval(ratios), "each_ms": values})
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
