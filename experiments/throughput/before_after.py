"""Is a version slower than the one before? Two commands make the same runs in turn, repetition after repetition.

    python before_after.py --before 'OLD/bin/asyncdgl' --after 'NEW/bin/asyncdgl' --data-dir CIFAR10_FOLDER

Two and six stages on Ray, `sync-dgl` in one process, and the start; each ratio is after / before (above 1: faster), the
median over the repetitions with a 95 % bootstrap interval. Which version goes first changes from one to the next.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from run import HERE, interval, rates_of_run, subset, until_last_stage_stepped

from asyncdgl.config.defaults import merged
from asyncdgl.config.yaml import load_yaml

RUNS: dict[str, dict[str, Any]] = {
    "ray, 2 stages: updates per second of the slower one": {
        "stages": 2,
        "threads": 1,
        "model": {"cut": [3]},
    },
    "ray, 6 stages: updates per second of all": {"stages": 6, "threads": 1},
    "sim, sync-dgl: updates per second": {"runtime": "sim", "algorithm": "sync-dgl", "stages": 6, "threads": 2},
}
START = "the start: 1 / seconds until stage 4's first update stands in the trace"


def measure(commands: dict[str, list[str]], data: Path, repetitions: int, folder: Path) -> dict[str, Any]:
    """All raw figures, and their ratios."""
    short = subset(data, folder / "short", 800, 20)
    configs = {}
    for number, (name, settings) in enumerate(RUNS.items()):
        configs[name] = folder / f"{number}.yaml"
        base = merged(load_yaml(HERE / "config.yaml"), {"data": {"data_dir": str(short)}})
        configs[name].write_text(json.dumps(merged(base, settings)))
    each: dict[str, dict[str, list[float]]] = {name: {"before": [], "after": []} for name in (*RUNS, START)}
    for repetition in range(repetitions):
        order = ["before", "after"] if repetition % 2 == 0 else ["after", "before"]
        for name, config in configs.items():
            for version in order:
                found = rates_of_run(commands[version], config, folder)
                each[name][version].append(min(found) if "slower" in name else sum(found))
        for version in order:
            each[START][version].append(1 / until_last_stage_stepped(commands[version], folder))
        print(repetition, {name: (v["before"][-1], v["after"][-1]) for name, v in each.items()}, flush=True)
    result = {}
    for name, found in each.items():
        ratios = [after / before for before, after in zip(found["before"], found["after"], strict=True)]
        result[name] = {**found, "ratio": median(ratios), "interval": interval(ratios)}
    return result


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="command of the old asyncdgl")
    parser.add_argument("--after", required=True, help="command of the new asyncdgl")
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    commands = {"before": shlex.split(arguments.before), "after": shlex.split(arguments.after)}
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(commands, arguments.data_dir, arguments.repetitions, Path(folder))
    print("\n| after / before | median | 95 % interval |\n|---|---|---|")
    for name, found in figures.items():
        low, high = found["interval"]
        print(f"| {name} | {found['ratio']:.3f} | {low:.3f} to {high:.3f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
