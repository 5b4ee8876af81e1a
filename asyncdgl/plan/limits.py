"""What a container, or a scheduler, lets a process have of its machine: Linux's control groups, of both versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path("/")
"""Where `/proc` and `/sys` lie."""

UNLIMITED = 1 << 60
"""Bytes from which a number of version 1 means: no limit."""


def cores_allowed() -> float | None:
    """CPU time per time that this process's groups may take; None for as much as there is."""
    return _least("cpu", _cores_of)


def memory_left() -> int | None:
    """Bytes that this process's groups may still take, what could be dropped from their file caches included.

    None where nothing limits them.
    """
    left = _least("memory", _left_of)
    return None if left is None else max(0, int(left))


def _least(controller: str, limit: Callable[[Path], float | None]) -> float | None:
    limits = [found for group in _groups(controller) if (found := limit(group)) is not None]
    return min(limits, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, from its own up to the root's.

    In a container the path may be the host's: what is not there is passed over, and the root is the container's own.
    """
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue
        base = ROOT / "sys/fs/cgroup"
        mounts = [base, base / "unified"] if number == "0" else [base / names, base / controller]
        inside = Path(path.lstrip("/"))
        for mount in mounts:
            for group in (inside, *inside.parents):
                if (mount / group).is_dir():
                    yield mount / group


def _cores_of(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    shares = _number(quota), _number(period)
    return shares[0] / shares[1] if shares[0] > 0 and shares[1] > 0 else None


def _left_of(group: Path) -> float | None:
    limit = _number(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes"))
    if not 0 < limit < UNLIMITED:
        return None
    used = _number(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes"))
    of = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    cache = _number(of.get("total_inactive_file", of.get("inactive_file", "")))
    return limit - max(0, used - max(0, cache))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int:
    """0 for what is none, such as `max`."""
    try:
        return int(text)
    except ValueError:
        return 0
