"""Make asynchronous Ray runs of many kinds, repeat each from its trace, and check that an altered trace is caught."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CASES = {
    "slow stage 2": ["--delay-profile", "slow_stage2"],
    "random, uniform sampler": ["--delay-profile", "random", "--sampler", "uniform", "--buffer-size", "5"],
    "wan, int8": ["--delay-profile", "wan", "--codec", "int8", "--stages", "3"],
    "lossy, free pace, lifo": ["--delay-profile", "lossy", "--pace", "free", "--sampler", "lifo"],
    "straggler, bf16 codec": ["--delay-profile", "straggler", "--codec", "bf16", "--stages", "2"],
    "bfloat16 arithmetic, free pace": ["--precision", "bf16", "--pace", "free", "--delay-profile", "slow_stage3"],
    "blocking, each entry twice": [
        "--set",
        "buffer.on_full=block",
        "--max-reuse",
        "2",
        "--delay-profile",
        "slow_stage4",
    ],
    "fifo, max_age, prefetch 3": ["--sampler", "fifo", "--set", "buffer.max_age=8", "--set", "buffer.prefetch=3"],
    "one place, no prefetch": ["--buffer-size", "1", "--set", "buffer.prefetch=0", "--delay-profile", "slow_stage1"],
    "two stages, free pace, min_size": ["--stages", "2", "--pace", "free", "--set", "buffer.min_size=4"],
    "synchronous, int8": ["--algorithm", "sync-dgl", "--codec", "int8"],
}
CIFAR = [
    *["--dataset", "image-folder", "--stages", "6", "--epochs", "1", "--width", "8", "--aux", "mlp"],
    *["--set", "data.image_size=16", "--set", "model.head=aux", "--set", "model.downsample=[3,5]"],
    *["--delay-profile", "slow_stage4", "--buffer-size", "30"],
]


def asyncdgl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command's exit code and output."""
    return subprocess.run(["asyncdgl", *arguments], check=False, capture_output=True, text=True)


def repeat(name: str, arguments: list[str], out: Path) -> dict[str, Any]:
    """One Ray run and its repetition."""
    run = out / name.replace(" ", "-").replace(",", "")
    made = asyncdgl("run", *arguments, "--runtime", "ray", "--threads", "1", "--out", str(run))
    began = time.monotonic()
    replayed = asyncdgl("replay", str(run))
    passes = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    result = {
        "name": name,
        "arguments": arguments,
        "run_exit_code": made.returncode,
        "passes": len(passes),
        "forward_only": sum(p["kind"] == "forward" for p in passes),
        "replay_exit_code": replayed.returncode,
        "replay": (replayed.stdout + replayed.stderr).strip().splitlines()[-1],
        "replay_seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result), flush=True)
    return result


def alter(run: Path, what: str, draw: random.Random, out: Path) -> dict[str, Any]:
    """Alter one number of one pass, and see what the repetition says."""
    shutil.copytree(run, out)
    lines = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    stage_1 = what == "batch"
    at = draw.choice([n for n, p in enumerate(lines) if (p["stage"] == 1) == stage_1 and p["step"] > 2])
    lines[at][what] -= 1
    (out / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    replayed = asyncdgl("replay", str(out))
    said = (replayed.stdout + replayed.stderr).strip().splitlines()[-1]
    named = f"stage {lines[at]['stage']}, step {lines[at]['step']} " in said
    result = {
        "altered": f"{what} of stage {lines[at]['stage']}, step {lines[at]['step']}",
        "exit_code": replayed.returncode,
        "said": said,
        "named": named,
    }
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    """All runs, all repetitions, and eight altered traces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [repeat(name, [*case, "--epochs", "6"], arguments.out) for name, case in CASES.items()]
    runs.append(repeat("cifar10 six stages", [*CIFAR, "--data-dir", str(arguments.data_dir)], arguments.out))
    runs[-1]["arguments"] = CIFAR
    draw = random.Random(0)
    altered = [
        alter(arguments.out / "slow-stage-2", what, draw, arguments.out / f"altered-{number}-{what}")
        for number in range(4)
        for what in ("source_step", "batch")
    ]
    (HERE / "results").mkdir(exist_ok=True)
    text = json.dumps({"runs": runs, "altered": altered}, indent=1) + "\n"
    (HERE / "results" / "results.json").write_text(text)
    equal = sum(r["replay_exit_code"] == 0 and r["replay"].startswith("bit-exact") for r in runs)
    print(
        f"bit-exact: {equal} of {len(runs)} runs; altered traces caught and named: {sum(a['named'] for a in altered)}"
    )


if __name__ == "__main__":
    main()
