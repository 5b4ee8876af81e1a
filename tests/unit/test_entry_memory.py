"""Memory that processes share: what is written is read, bit for bit, and a place is not used twice at a time."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from asyncdgl.buffers.codecs import Arrays, decode, encode, from_arrays, to_arrays
from asyncdgl.on_ray.transport.memory import EntryMemory, MappedMemory, stored_bytes
from asyncdgl.registry import choices


def payload(codec: str, seed: int = 0) -> Arrays:
    torch.manual_seed(seed)
    return to_arrays(encode(codec, torch.randn(5, 3, 4, 4), torch.arange(5)))


@pytest.fixture(params=["memfd", "file"])
def memory(request, monkeypatch) -> EntryMemory:
    if request.param == "file":  # where a system has no memory files
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    return EntryMemory()


@pytest.mark.parametrize("codec", choices("codec"))
def test_what_is_written_is_read(memory, codec) -> None:
    writer, reader = MappedMemory(memory.descriptor, True), MappedMemory(memory.descriptor, False)
    payloads = [payload(codec, seed) for seed in range(4)]
    stored = [writer.write(memory.place(stored_bytes(p)), p) for p in payloads]
    for p, s in zip(payloads, stored, strict=True):
        read = reader.read(s)
        assert read.keys() == p.keys()
        for name, array in p.items():
            assert read[name].dtype == array.dtype
            assert read[name].shape == array.shape
            assert read[name].tobytes() == array.tobytes()
            assert read[name].ctypes.data % 64 == 0
        x = decode(codec, from_arrays(read), 0).x
        assert torch.equal(x, decode(codec, from_arrays(p), 0).x)
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_a_reader_cannot_write(memory) -> None:
    writer, reader = MappedMemory(memory.descriptor, True), MappedMemory(memory.descriptor, False)
    p = payload("none")
    read = reader.read(writer.write(memory.place(stored_bytes(p)), p))
    with pytest.raises(ValueError, match="read-only"):
        read["y"][0] = 1


def test_a_place_is_free_once_nobody_keeps_it(memory) -> None:
    def kept() -> int:
        place = memory.place(1000)
        memory.keep(place)
        return place

    first, second = kept(), kept()
    assert first != second
    memory.keep(first)
    memory.let_go(first)
    third = kept()
    assert third not in (first, second)
    size = memory.nbytes
    memory.let_go(first)
    assert kept() == first
    assert memory.nbytes == size


def test_an_entry_must_not_be_larger_than_the_first(memory) -> None:
    memory.place(100)
    with pytest.raises(ValueError, match="places have"):
        memory.place(1_000_000)


def test_no_memory_for_one_more(monkeypatch) -> None:
    def refuse(*args: int) -> None:
        raise OSError(28, "No space left on device")

    memory = EntryMemory()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(MemoryError, match="smaller --buffer-size"):
        memory.place(100)


def test_a_smaller_entry_first_then_a_larger_one_in_the_same_place(memory) -> None:
    writer, reader = MappedMemory(memory.descriptor, True), MappedMemory(memory.descriptor, False)
    place = memory.place(100_000)
    small, large = {"y": np.arange(10)}, {"y": np.arange(10_000)}
    assert (reader.read(writer.write(place, small))["y"] == small["y"]).all()
    assert (reader.read(writer.write(place, large))["y"] == large["y"]).all()


READER = """
import pickle, sys
from asyncdgl.registry import choices
from asyncdgl.on_ray.transport.memory import MappedMemory
memory = MappedMemory(int(sys.argv[1]), False)
for _ in range(3):
    read = memory.read(pickle.load(sys.stdin.buffer))
    pickle.dump({name: array.copy() for name, array in read.items()}, sys.stdout.buffer)
    sys.stdout.flush()
"""


def test_another_process_reads_what_comes_later(tmp_path) -> None:
    """Also in places that did not exist when it got the memory."""
    memory = EntryMemory()
    writer = MappedMemory(memory.descriptor, True)
    command = [sys.executable, "-c", READER, str(memory.descriptor)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, pass_fds=[memory.descriptor], **pipes) as process:
        for seed in range(3):
            p = payload("bf16", seed)
            pickle.dump(writer.write(memory.place(stored_bytes(p)), p), process.stdin)
            process.stdin.flush()
            read = pickle.load(process.stdout)
            assert all(read[name].tobytes() == array.tobytes() for name, array in p.items())
    assert process.returncode == 0
