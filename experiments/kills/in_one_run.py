"""One run whose stages get 25 SIGKILLs at seeded moments: are its bits those that it would have had?

`sync-dgl` is compared with `sim` without any kill, stage by stage; each other run with its own replay.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
SYNC = ["--algorithm", "sync-dgl", "--epochs", "2"]
LONGER = ["--epochs", "60"]  # the others go on while one is dead, and would have done their quota soon
CONFIGS: dict[str, list[str]] = {
    "sync-dgl": SYNC,
    "async-dgl": LONGER,
    "on_full: block": [*LONGER, "--set", "buffer.on_full=block", "--sampler", "fifo", "--max-reuse", "3"],
    "max_reuse": [*LONGER, "--max-reuse", "2", "--sampler", "uniform"],
    "int8": [*LONGER, "--codec", "int8"],
    "wan": [*LONGER, "--delay-profile", "wan"],
}
BASE = ["--stages", "4", "--width", "8", "--batch-size", "8", "--set", "checkpoint.every=10"]
DIED = re.compile(r"^stage (\d): its process died", re.MULTILINE)
UNNOTICED_S = 10.0
SCRIPT = [sys.executable, "-m", "asyncdgl"]


def stages_of(driver: psutil.Process) -> list[psutil.Process]:
    """The living processes of its stages."""
    found = []
    for child in driver.children(recursive=True):
        try:
            if "StageActor" in " ".join(child.cmdline()[:1]) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.Error:
            continue
    return found


def run_and_kill(arguments: list[str], out: Path, seed: int, kills: int) -> tuple[int, int]:
    """A run whose stages are killed, each time once so many passes are in the trace.

    Returns:
        How many were, and how many others that had told all they had to tell, so that nobody misses them.
    """
    draws = random.Random(seed)
    passes = 4 * int(arguments[arguments.index("--epochs") + 1]) * (1437 // 8)  # of all stages, at least
    moments = sorted(draws.randrange(passes - passes // 10) for _ in range(kills))
    killed = ended = 0
    killed_at = 0.0
    log = out.with_suffix(".log")
    command = [*SCRIPT, "run", *BASE, *arguments, "--out", str(out)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    driver, trace = psutil.Process(process.pid), out / "trace.jsonl"
    before: Counter[str] = Counter()
    made: Counter[str] = Counter()  # by stage
    read_until = 0
    while process.poll() is None:
        if trace.exists():
            with trace.open("rb") as file:
                file.seek(read_until)
                lines = [line.decode() for line in file if line.endswith(b"\n")]
            read_until += sum(map(len, lines))
            made.update(line.split(",")[0].removeprefix('{"stage":') for line in lines)
        if killed < kills and made.total() >= max(1, moments[killed]):
            died = DIED.findall(log.read_text())
            if len(died) < killed and time.monotonic() - killed_at > UNNOTICED_S:
                killed, ended = killed - 1, ended + 1
            # Whoever took a dead one's place is not hit before it has come to work: three deaths at one pass end a run.
            at_work = len(died) == killed and (not died or made[died[-1]] > before[died[-1]])
            if len(made) == 4 and at_work and (victims := stages_of(driver)):
                draws.choice(victims).send_signal(signal.SIGKILL)
                before, killed_at, killed = made.copy(), time.monotonic(), killed + 1
        time.sleep(0.02)
    return killed, ended


def one(name: str, folder: Path, seed: int, kills: int) -> dict[str, Any]:
    """One configuration."""
    out, began = folder / "run", time.monotonic()
    killed, ended = run_and_kill(CONFIGS[name], out, seed, kills)
    said = out.with_suffix(".log").read_text()
    if not (out / "summary.json").exists():
        return {"config": name, "seed": seed, "kills": killed, "status": "no summary", "said": said}
    summary = json.loads((out / "summary.json").read_text())
    result: dict[str, Any] = {"config": name, "seed": seed, "kills": killed, "kills of stages that had ended": ended}
    result["seconds"] = time.monotonic() - began
    result["status"] = summary["status"]
    result["said"] = [line for line in said.splitlines() if line.startswith("Error")]
    result["deaths noticed"] = dict(Counter(fault["process"] for fault in summary["faults"]))
    result["passes made again"] = sum(fault["passes_again"] for fault in summary["faults"])
    result["passes lost"] = sum(fault["lost_passes"] for fault in summary["faults"])
    replayed = subprocess.run([*SCRIPT, "replay", str(out)], capture_output=True, text=True, check=False)
    result["replay"] = (replayed.stdout + replayed.stderr).strip().splitlines()[-1]
    if CONFIGS[name] == SYNC:
        of_sim = folder / "sim"
        command = [*SCRIPT, "run", "--runtime", "sim", *BASE[:-2], *SYNC, "--out", str(of_sim)]
        subprocess.run(command, check=True, capture_output=True)
        hashes = [
            [stage["state_sha256"] for stage in json.loads((run / "summary.json").read_text())["stages"]]
            for run in (out, of_sim)
        ]
        result["stages equal to sim"] = sum(a == b for a, b in zip(*hashes, strict=True))
    return result


def main() -> None:
    """Kill, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(CONFIGS), nargs="+", default=list(CONFIGS))
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    kept = HERE / "results" / "in_one_run.json"
    kept.parent.mkdir(exist_ok=True)
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            result = one(name, Path(folder), arguments.seed, arguments.kills)
        print(json.dumps(result), flush=True)
        others = [r for r in (json.loads(kept.read_text()) if kept.exists() else []) if r["config"] != name]
        kept.write_text(json.dumps([*others, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
