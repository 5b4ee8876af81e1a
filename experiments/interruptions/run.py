"""Stop runs by Ctrl-C, SIGTERM and SIGKILL at five moments each: what is left, how soon, and with which exit code."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LIMIT_S = 5.0
# Evaluation takes seconds here, so that a signal can meet it.
SLOW_EVALUATION = ["--dataset", "synthetic", "--set", "data.image_size=32", "--width", "64", "--epochs", "1"]


def descendants(mark: str) -> list[psutil.Process]:
    """All processes that carry the environment of one run, wherever they hang in the process tree."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("INTERRUPTED_RUN") == mark and p.status() != psutil.STATUS_ZOMBIE:
                found.append(p)
        except (psutil.Error, OSError):
            continue
    return found


def training(run: Path) -> bool:
    """Every stage has made passes."""
    trace = run / "trace.jsonl"
    return trace.exists() and trace.stat().st_size > 20_000


def evaluating(run: Path) -> bool:
    """Every stage has done its quota, and the final evaluation is not written."""
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return len({line["stage"] for line in lines if line["kind"] == "epoch"}) == 4


MOMENTS: dict[str, tuple[list[str], Callable[[Path, float], bool]]] = {
    "start-up": ([], lambda run, seconds: run.exists()),
    "Ray starting": ([], lambda run, seconds: run.exists() and seconds > 3),
    "actors starting": ([], lambda run, seconds: seconds > 7),
    "training": ([], lambda run, seconds: training(run)),
    "evaluation": (SLOW_EVALUATION, lambda run, seconds: evaluating(run)),
}


def one_case(number: signal.Signals, moment: str, folder: Path) -> dict[str, Any]:
    """Start a run, send the signal at the moment, and watch what is left."""
    options, has_come = MOMENTS[moment]
    run = folder / f"{number.name}-{moment.replace(' ', '-')}"
    mark = f"{os.getpid()}-{run.name}"
    process = subprocess.Popen(
        ["asyncdgl", "run", *options, "--out", str(run)],
        env={**os.environ, "INTERRUPTED_RUN": mark},
        stdout=(folder / f"{run.name}.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    began = time.monotonic()
    while not has_come(run, time.monotonic() - began):
        if process.poll() is not None:
            raise RuntimeError(f"{run.name} ended with {process.returncode} before its moment came")
        time.sleep(0.02)
    process.send_signal(number)
    sent = time.monotonic()
    while (process.poll() is None or descendants(mark)) and time.monotonic() - sent < 30:
        time.sleep(0.05)
    gone_after = time.monotonic() - sent
    summary = run / "summary.json"
    return {
        "signal": number.name,
        "moment": moment,
        "exit_code": process.returncode,
        "gone_after_s": round(gone_after, 2),
        "status": json.loads(summary.read_text())["status"] if summary.exists() else None,
    }


def is_good(case: dict[str, Any]) -> bool:
    """Within 5 s no process is left; what can be caught leaves a summary and its exit code."""
    expected = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGKILL": (-9, None)}
    return case["gone_after_s"] <= LIMIT_S and (case["exit_code"], case["status"]) == expected[case["signal"]]


def main() -> int:
    """All cases, as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(MOMENTS), help="one moment only")
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for moment in [options.only] if options.only else MOMENTS:
            for number in SIGNALS:
                case = one_case(number, moment, Path(folder))
                cases.append(case)
                good = "" if is_good(case) else "  <-- not as it should be"
                print(
                    f"{case['signal']:8} {moment:16} exit {case['exit_code']:4} status {case['status'] or '-':12} "
                    f"all gone after {case['gone_after_s']:.2f} s{good}",
                    flush=True,
                )
                if good:
                    print((Path(folder) / f"{number.name}-{moment.replace(' ', '-')}.log").read_text()[-3000:])
    if not options.only:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "results.json").write_text(json.dumps(cases, indent=2) + "\n")
    return 0 if all(map(is_good, cases)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
