"""Memory that buffers of a `ray` run keep for a restart, by how seldom checkpoints are, and what `--dry-run` says."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from run import HERE, MARK, peaks_of

RUN = ["asyncdgl", "run", "--runtime", "ray", "--stages", "4", "--epochs", "40", "--set", "data.augment=true"]
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def predicted(arguments: list[str]) -> float:
    """Bytes of all buffers, by the last line of a dry run."""
    said = subprocess.run([*RUN, *arguments, "--dry-run"], capture_output=True, text=True, check=True).stdout
    number, unit = re.findall(r"together ([\d.]+) (\w+) of", said)[-1]
    return float(number) * UNITS[unit]


def measure(every: int) -> dict[str, Any]:
    """One run's peak, beside what was said before."""
    arguments = ["--set", f"checkpoint.every={every}"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, MARK: folder, "RAY_USAGE_STATS_ENABLED": "0"}
        command = [*RUN, *arguments, "--out", str(Path(folder) / "run")]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        entries, _ = peaks_of(process, folder, every_s=0.5)
    assert process.returncode == 0
    return {"checkpoint.every": every, "predicted": predicted(arguments), "entries": entries}


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, nargs="+", default=[10, 30, 100])
    rows = []
    for every in parser.parse_args().every:
        rows.append(measure(every))
        print(json.dumps(rows[-1]), flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "restart.json").write_text(json.dumps(rows, indent=1) + "\n")
    assert all(row["entries"] <= row["predicted"] for row in rows), "more than was predicted"


if __name__ == "__main__":
    main()
