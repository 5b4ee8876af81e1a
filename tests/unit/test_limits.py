"""What control groups let a process have, on files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdgl.plan import limits, memory
from asyncdgl.plan.limits import cores_allowed, memory_left
from asyncdgl.plan.machine import available_cores

GB = 1_000_000_000
NO_LIMIT = "9223372036854771712"
V2 = {"proc/self/cgroup": "0::/\n"}
V1 = {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(files)``: `/proc` and `/sys` hold just these."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(limits, "ROOT", tmp_path)
        return tmp_path

    return make


CORES = {
    "nothing is there": ({}, None),
    "version 2 without a quota": ({**V2, "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "version 2": ({**V2, "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
    "a group above has less": (
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            "sys/fs/cgroup/slurm/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/cpu.max": "150000 100000\n",
        },
        1.5,
    ),
    "version 1 without a quota": (
        {
            **V1,
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "version 1, where the path is the host's": (
        {
            **V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        4.0,
    ),
    "what nobody expects": ({**V2, "sys/fs/cgroup/cpu.max": "many\n"}, None),
}


@pytest.mark.parametrize("name", CORES)
def test_cores(machine, name) -> None:
    files, expected = CORES[name]
    machine(files)
    assert cores_allowed() == expected


MEMORY = {
    "nothing is there": ({}, None),
    "version 2 without a limit": ({**V2, "sys/fs/cgroup/memory.max": "max\n"}, None),
    "version 2, where a part of what is used can be dropped": (
        {
            **V2,
            "sys/fs/cgroup/memory.max": f"{2 * GB}\n",
            "sys/fs/cgroup/memory.current": f"{GB}\n",
            "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GB // 4}\nactive_file 7\n",
        },
        2 * GB - 3 * GB // 4,
    ),
    "version 1 without a limit": ({**V1, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": NO_LIMIT}, None),
    "version 1": (
        {
            **V1,
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{4 * GB}\n",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": f"{GB}\n",
            "sys/fs/cgroup/memory/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n",
        },
        3 * GB + 1000,
    ),
    "more is used than allowed": (
        {**V2, "sys/fs/cgroup/memory.max": "100\n", "sys/fs/cgroup/memory.current": "200\n"},
        0,
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory(machine, name) -> None:
    files, expected = MEMORY[name]
    machine(files)
    assert memory_left() == expected


def test_half_a_core_is_one(machine) -> None:
    machine({**V2, "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert available_cores() == 1


def test_buffers_may_take_what_the_container_has(machine, small_config) -> None:
    machine({**V2, "sys/fs/cgroup/memory.max": f"{GB // 100}\n", "sys/fs/cgroup/memory.current": "0\n"})
    assert memory.usable_bytes(small_config()) == int(GB // 100 * memory.SHARE_OF_MEMORY)


def test_without_limits_there_is_the_machine(machine, small_config) -> None:
    machine({})
    assert memory.usable_bytes(small_config()) > GB // 10
    assert available_cores() >= 1
