"""Does a change leave every bit alone? Two versions of asyncdgl make the same runs, and what decides bits is compared.

    python run.py --before 'OLD/bin/asyncdgl' --after 'NEW/bin/asyncdgl'

What is deterministic (`sim`, `virtual`, `sync-dgl` on Ray) must have equal state hashes and equal traces but for wall
times. An asynchronous Ray run is never made twice: what the old version did is replayed by the new one, pass by pass,
and stage 1's hash, which no delay can change, is compared too. The new version may not read the old one's run
directory; then the old trace and the old hashes are put into the new one.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMON = ["--threads", "1", "--precision", "float32", "--device", "cpu"]
STEP_TIMES = "virtual.step_times=[{train: 0.02, forward: 0.01}]"
CONFIGURATIONS: dict[str, list[str]] = {
    "async-dgl, sim": ["--runtime", "sim", "--delay-profile", "slow_stage2", "--epochs", "3", "--codec", "int8"],
    "sync-dgl, sim": ["--runtime", "sim", "--algorithm", "sync-dgl", "--epochs", "3"],
    "sequential-dgl, sim": ["--runtime", "sim", "--algorithm", "sequential-dgl", "--epochs", "2"],
    "backprop, sim": ["--runtime", "sim", "--algorithm", "backprop", "--epochs", "3"],
    "async-dgl, virtual, pace profile": ["--runtime", "virtual", "--delay-profile", "wan", "--epochs", "3"],
    "async-dgl, virtual, pace free": [
        *("--runtime", "virtual", "--pace", "free", "--delay-profile", "random", "--epochs", "3"),
        *("--set", STEP_TIMES, "--set", "buffer.prefetch=2"),
    ],
    "sync-dgl, ray": ["--runtime", "ray", "--algorithm", "sync-dgl", "--epochs", "2"],
    "async-dgl, ray, pace profile": ["--runtime", "ray", "--delay-profile", "slow_stage2", "--epochs", "3"],
    "async-dgl, ray, pace free": ["--runtime", "ray", "--pace", "free", "--delay-profile", "random", "--epochs", "3"],
}
WALL_TIMES = ("sampled_s", "start_s", "end_s", "waits")


def main() -> None:
    """Make the runs, compare them, and write results/same_bits.json; ends with 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="command of the old asyncdgl")
    parser.add_argument("--after", required=True, help="command of the new asyncdgl")
    arguments = parser.parse_args()
    before, after = shlex.split(arguments.before), shlex.split(arguments.after)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, flags) in enumerate(CONFIGURATIONS.items()):
            old, new = Path(folder, f"{number}-before"), Path(folder, f"{number}-after")
            call([*before, "run", *COMMON, *flags, "--out", str(old)])
            call([*after, "run", *COMMON, *flags, "--out", str(new)])
            replayed = None
            if "async-dgl, ray" in name:
                mixed = in_new_form(old, new, Path(folder, f"{number}-mixed"))
                replayed = call([*after, "replay", str(mixed)], may_fail=True)
            result = {"configuration": name, "flags": " ".join(flags), **compare(name, old, new), "replayed": replayed}
            results.append(result)
            print("same     " if result["same"] and replayed in (None, 0) else "DIFFERENT", name, flush=True)
    versions = {
        "before": call([*before, "--version"], output=True),
        "after": call([*after, "--version"], output=True),
    }
    (HERE / "results").mkdir(exist_ok=True)
    text = json.dumps({"versions": versions, "runs": results}, indent=1) + "\n"
    (HERE / "results" / "same_bits.json").write_text(text)
    sys.exit(0 if all(r["same"] and r["replayed"] in (None, 0) for r in results) else 1)


def call(command: list[str], may_fail: bool = False, output: bool = False) -> Any:
    """Run a command; returns its exit code, or what it printed."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode and not may_fail:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}")
    if done.returncode:
        print(done.stdout, done.stderr)
    return done.stdout.strip() if output else done.returncode


def in_new_form(old: Path, new: Path, mixed: Path) -> Path:
    """A run directory as the new version writes it, with what the old version did: its passes, losses and hashes."""
    shutil.copytree(new, mixed)
    shutil.copy(old / "trace.jsonl", mixed)
    summary, before = read(new / "summary.json"), read(old / "summary.json")
    for stage, did in zip(summary["stages"], before["stages"], strict=True):
        stage.update({key: did[key] for key in ("updates", "forward_passes", "state_sha256")})
    (mixed / "summary.json").write_text(json.dumps(summary))
    return mixed


def compare(name: str, old: Path, new: Path) -> dict[str, Any]:
    """Hashes, and where the runtime is deterministic the traces and the test accuracies of every evaluation."""
    hashes = [[s["state_sha256"] for s in read(path / "summary.json")["stages"]] for path in (old, new)]
    if "async-dgl, ray" in name:
        return {"same": hashes[0][0] == hashes[1][0], "compared": "stage 1's hash", "hash": hashes[1][0]}
    traces = [trace(path, name) for path in (old, new)]
    first = next((f"pass {n}" for n, pair in enumerate(zip(*traces, strict=False)) if pair[0] != pair[1]), None)
    same = hashes[0] == hashes[1] and traces[0] == traces[1]
    compared = f"{len(hashes[1])} hashes, {len(traces[1])} passes"
    return {"same": same, "compared": compared, "first_difference": first, "hash": hashes[1][-1]}


def trace(path: Path, name: str) -> list[dict[str, Any]]:
    """The passes of a trace in the order of their names, without wall times."""
    lines = [json.loads(line) for line in (path / "trace.jsonl").read_text().splitlines()]
    drop = () if "virtual" in name else WALL_TIMES
    # In real processes time alone says how many passes a stage makes once it has done its quota.
    lines = [line for line in lines if line["kind"] == "train" or "ray" not in name]
    kept = [{key: value for key, value in line.items() if key not in drop} for line in lines]
    return sorted(kept, key=lambda line: (line["stage"], line["incarnation"], line["step"]))


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
