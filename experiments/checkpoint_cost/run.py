"""What do checkpoints cost? In one run they are kept as by default, and not at all, a few seconds each in turn.

A machine's speed drifts by more than what is asked about: windows beside each other meet the same drift.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import bootstrap

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from switch import WINDOW_S, is_on  # noqa: E402

import asyncdgl  # noqa: E402
from asyncdgl.observer import NullObserver  # noqa: E402
from asyncdgl.rundir.trace import TRAIN, PassRecord  # noqa: E402

EDGE_S = 1.0
"""At each end of a window nothing is counted."""

SETTLES_S = 20.0
MODEL = {"width": 32}
COMMON = {
    **{"runtime": "ray", "stages": 4, "threads": 1, "epochs": 1000, "batch_size": 128, "model": MODEL},
    **{"optim": {"schedule": "switch:constant"}, "evaluation": {"every": 1000}},
}


class Listener(NullObserver):
    """Keeps the passes, and when training began on this machine's clock; ends the run.

    Args:
        minutes: after which it does.
    """

    def __init__(self, minutes: float) -> None:
        self.records: list[PassRecord] = []
        self.origin = float("inf")
        self._until = time.monotonic() + 60 * minutes

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        self.records.extend(records)
        for record in records:
            self.origin = min(self.origin, time.monotonic() - record.end_s)
        if time.monotonic() > self._until:
            raise KeyboardInterrupt


def rate(ends: list[float], begin: float, end: float) -> float:
    """Of what ended then, per second."""
    own = [at for at in ends if begin <= at <= end]
    return (len(own) - 1) / (own[-1] - own[0])


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--minutes", type=float, default=8)
    arguments = parser.parse_args()
    listener = Listener(arguments.minutes)
    data = {"dataset": "image-folder", "image_size": 32, "augment": True, "data_dir": str(arguments.data_dir)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncdgl.run({**COMMON, "data": data}, observer=listener, out=Path(folder) / "run")
        except KeyboardInterrupt:
            kept = sorted(path.name for path in (Path(folder) / "run" / "checkpoints").glob("*/*"))
    origin = listener.origin
    ends: dict[int, list[float]] = {}
    for record in listener.records:
        if record.kind == TRAIN:
            ends.setdefault(record.stage, []).append(record.end_s + origin)
    first, last = origin + SETTLES_S, min(max(own) for own in ends.values())
    number = int(first / WINDOW_S) + 1
    rates: dict[bool, list[float]] = {True: [], False: []}
    while (number + 1) * WINDOW_S < last:
        begin, end = number * WINDOW_S + EDGE_S, (number + 1) * WINDOW_S - EDGE_S
        rates[is_on(begin)].append(sum(rate(own, begin, end) for own in ends.values()))
        number += 1
    pairs = min(map(len, rates.values()))
    ratios = [on / off for on, off in zip(rates[True][:pairs], rates[False][:pairs], strict=True)]
    found = bootstrap((ratios,), np.median, random_state=0).confidence_interval
    result = {
        "updates per second of all stages, with checkpoints": rates[True],
        "without": rates[False],
        "ratio": median(ratios),
        "interval": [found.low, found.high],
        "on the disk at the end": kept,
    }
    print(json.dumps({k: result[k] for k in ("ratio", "interval")}), f"{pairs} pairs of windows")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
