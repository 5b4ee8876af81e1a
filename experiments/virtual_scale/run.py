"""How large a network `virtual` moves without arithmetic, and whether the cost of an event depends on its size."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncdgl.config.yaml import parse_config
from asyncdgl.engine.virtual import VirtualRun
from asyncdgl.observer import NullObserver
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.trace import PassRecord

HERE = Path(__file__).parent
REPEATS = 5
SMALL, LARGE = 64, 1024


class Counter(NullObserver):
    """Counts passes and keeps nothing."""

    passes = 0

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        self.passes += len(records)


def engine(stages: int, batches: int) -> tuple[int, float]:
    """Passes, and seconds of processor time that the event queue takes for them, without files."""
    tree = {"runtime": "virtual", "stages": stages, "epochs": 1, "virtual": {"train": False, "batches": batches}}
    observer = Counter()
    run = VirtualRun(planned(parse_config(tree)), None, observer)
    began = time.process_time()
    run.run()
    return observer.passes, time.process_time() - began


def command(stages: int, profile: str) -> dict[str, Any]:
    """The whole command: seconds and peak memory, with its run directory, summary and figures."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        process = subprocess.Popen(
            [
                "asyncdgl",
                "run",
                "--runtime",
                "virtual",
                "--set",
                "virtual.train=false",
                "--stages",
                str(stages),
                "--set",
                "virtual.batches=100",
                "--epochs",
                "1",
                "--delay-profile",
                profile,
                "--out",
                f"{folder}/run",
            ],
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        with (Path(folder) / "run" / "trace.jsonl").open("rb") as trace:
            passes = sum(1 for _ in trace)
    found = {"stages": stages, "profile": profile, "exit_code": os.waitstatus_to_exitcode(status), "passes": passes}
    return {**found, "seconds": round(seconds, 2), "peak_mb": usage.ru_maxrss // 1024}


def main() -> None:
    """Cost of an event, small and large in turn; then the whole command."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    costs: dict[int, list[float]] = {SMALL: [], LARGE: []}
    seconds = []
    for _ in range(REPEATS):
        # The same number of mini-batches for the large one as asked; as many passes as can be for the small one.
        for stages, batches in ((SMALL, 2000), (LARGE, 100)):
            passes, taken = engine(stages, batches)
            costs[stages].append(taken / passes * 1e6)
            if stages == LARGE:
                seconds.append(taken)
    ratios = [large / small for small, large in zip(costs[SMALL], costs[LARGE], strict=True)]
    commands = [command(LARGE, profile) for profile in ("none", "slow_stage2", "random")]
    results = {
        "engine_seconds_1024_stages": seconds,
        "microseconds_per_event": costs,
        "ratio_1024_to_64": {"each": ratios, "median": statistics.median(ratios)},
        "commands": commands,
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
