"""Memory of a `ray` run by the size of its buffers: what the entries take, and what all processes take."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).parent
MARK = "ASYNCDGL_EXPERIMENT"  # an environment variable that a run's processes inherit
ENTRIES = "memfd:asyncdgl-entries"


def memory(mark: str) -> tuple[int, int]:
    """Bytes of the entries' memory, and of all processes of a run; each shared page counted once."""
    entries, everything = {}, 0
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != mark:
                continue
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            everything += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                if ENTRIES in os.readlink(descriptor):
                    status = descriptor.stat()
                    entries[status.st_ino] = status.st_blocks * 512
        except (psutil.Error, OSError, StopIteration):
            continue
    return sum(entries.values()), everything


def peaks_of(process: subprocess.Popen[bytes], mark: str, every_s: float) -> tuple[int, int]:
    """The most that ``memory`` finds of a run until it ends."""
    entries = everything = 0
    while process.poll() is None:
        now = memory(mark)
        entries, everything = max(entries, now[0]), max(everything, now[1])
        time.sleep(every_s)
    return entries, everything


def measure(size: int, data: Path) -> dict[str, Any]:
    """The peaks of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["asyncdgl", "run", "--config", str(HERE / "config.yaml"), "--runtime", "ray"]
        command += ["--data-dir", str(data), "--buffer-size", str(size), "--out", str(run)]
        environment = {**os.environ, MARK: folder, "RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        peaks = peaks_of(process, folder, every_s=1.0)
        assert process.returncode == 0
        buffers = json.loads((run / "summary.json").read_text())["buffers"]
    encoded = [buffer["peak_bytes"] for buffer in buffers]
    return {"size": size, "entries": peaks[0], "everything": peaks[1], "encoded_held": encoded}


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 40, 70, 100])
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        rows.append(measure(size, arguments.data_dir))
        print(json.dumps(rows[-1]), flush=True)
    first, last = rows[0], rows[-1]
    encoded = sum(last["encoded_held"]) / last["size"]  # one mini-batch on each hop
    slopes = {
        what: (last[what] - first[what]) / (last["size"] - first["size"]) / encoded
        for what in ("entries", "everything")
    }
    rest = last["everything"] - last["size"] * encoded
    print(f"slope / (encoded bytes x hops): {slopes}; beyond the buffers {rest / 1e6:.0f} MB")
    figures = {"runs": rows, "encoded_bytes_of_all_hops": encoded, "slopes": slopes, "rest": rest}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    assert np.allclose(slopes["entries"], 1, atol=0.15)


if __name__ == "__main__":
    main()
