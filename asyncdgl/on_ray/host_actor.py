"""What a machine is asked before anything of a run starts there.

The class travels by value, with what it needs from Python alone: the machine may lack asyncdgl.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


class HostActor:
    """Answers for its machine."""

    def facts(self, packages: Sequence[str], features: Sequence[str]) -> dict[str, Any]:
        """What the bits of a run depend on.

        Args:
            packages: whose versions are asked for.
            features: of the processor, of which those are asked for that it has.
        """
        return {
            "python": platform.python_version(),
            "executable": sys.executable,
            "source": source_sha256(),
            "packages": {name: _version(name) for name in packages},
            "features": [name for name in features if name in _cpu_flags()],
        }

    def clock(self) -> float:
        """The machine's monotonic clock, in seconds; it counts from the machine's start."""
        return time.monotonic()


def source_sha256() -> str | None:
    """Of all of the package's own files, by their places in it; None where it is not installed."""
    found = importlib.util.find_spec("asyncdgl")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
