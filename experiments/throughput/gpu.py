"""The paper's asynchronous study on one GPU: `sim`, and `ray` with two and six stages, against a bare backprop loop.

The same network, batches in memory, bfloat16; all in turn, repetition after repetition. The images are noise, since
what they show decides no time. Prints a table of ratios and what 50 epochs would take.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from in_turn import BATCHES
from run import Answering, interval, rates_of_run

BATCH, EPOCH, EPOCHS = 128, 390, 50
TURNS, RUN_EPOCHS = 6, 25


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        speeds = measure(arguments.device, arguments.width, arguments.repetitions, Path(folder))
    print(f"| | images/s | / backprop | 95 % interval | {EPOCHS} epochs, minutes |\n|---|---|---|---|---|")
    for name, values in speeds.items():
        ratios = [v / b for v, b in zip(values, speeds["bare backprop"], strict=True)]
        low, high = interval(ratios)
        minutes = EPOCHS * EPOCH * BATCH / median(values) / 60
        print(f"| {name} | {median(values):.0f} | {median(ratios):.2f} | {low:.2f} to {high:.2f} | {minutes:.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(speeds, indent=1) + "\n")


def measure(device: str, width: int, repetitions: int, folder: Path) -> dict[str, list[float]]:
    """Images per second of everything, in each repetition."""
    study = {
        "data": {"dataset": "synthetic", "image_size": 32, "augment": True},
        "model": {"blocks": 6, "width": width, "downsample": [3, 5], "aux": "mlp-sr"},
        "batch_size": BATCH,
        "precision": "bf16",
        "device": device,
        "evaluation": {"every": 1000},
    }

    def config(name: str, **settings: Any) -> Path:
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**study, **settings}))
        return path

    alone = Answering("in_turn.py", config("alone", stages=6))
    runs = {
        "sim async-dgl": config("sim", stages=6, epochs=RUN_EPOCHS, runtime="sim"),
        **{f"ray, {j} stages": config(f"ray-{j}", stages=j, epochs=RUN_EPOCHS, runtime="ray") for j in (2, 6)},
    }
    speeds: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for algorithm in ("backprop", "sync-dgl"):
            for side, seconds in zip(("sim", "bare"), alone.ask(algorithm, TURNS), strict=True):
                speeds.setdefault(f"{side} {algorithm}", []).append(TURNS * BATCHES * BATCH / seconds)
        for name, path in runs.items():
            speeds.setdefault(name, []).append(min(rates_of_run(path, folder)) * BATCH)
    alone.end()
    return speeds


if __name__ == "__main__":
    main()
