"""The memory in which a buffer keeps its entries, shared with the processes of its machine.

The producer writes an entry to its place, the reader reads it there, and messages say only where it lies. The buffer's
process owns the memory: a producer that dies takes nothing with it, and nothing is left when the processes are gone.
Places are used again, so that no page has to be cleared for a new entry.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Arrays

_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an entry lies.

    Attributes:
        place: offset of its place in the memory.
        nbytes: what it takes there.
        arrays: of each array its name, type, shape, and offset in the place.
    """

    place: int
    nbytes: int
    arrays: tuple[tuple[str, str, tuple[int, ...], int], ...]


class EntryMemory:
    """The buffer's side: memory that grows by one place at a time, each large enough for an entry.

    Attributes:
        descriptor: of the memory as a file without a name; it grows, and who has it open sees that.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("asyncdgl-entries", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        self._place_bytes = 0
        self._end = 0
        self._free: deque[int] = deque()
        self._holders: Counter[int] = Counter()

    @property
    def nbytes(self) -> int:
        """What all places take."""
        return self._end

    def place(self, nbytes: int) -> int:
        """A place that nobody uses, for an entry of so many bytes.

        Raises:
            MemoryError: the system refuses one more.
            ValueError: an entry is larger than the first one was.
        """
        needed = _in_pages(nbytes)
        self._place_bytes = self._place_bytes or needed
        if needed > self._place_bytes:
            raise ValueError(f"an entry of {nbytes} bytes, but places have {self._place_bytes}")
        if self._free:
            return self._free.pop()  # what was used last is still in the processor's cache
        place = self._end
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, place, self._place_bytes)
            else:
                os.ftruncate(self.descriptor, place + self._place_bytes)
        except OSError:
            raise MemoryError("the machine has no memory for one more entry; use a smaller --buffer-size") from None
        self._end += self._place_bytes
        return place

    def give_back(self, place: int) -> None:
        """Nobody will write to this place, or has written what is needed."""
        self._free.append(place)

    def keep(self, place: int) -> None:
        """One more needs what lies there."""
        self._holders[place] += 1

    def let_go(self, place: int) -> None:
        """One of those who needed it does so no more; after the last one the place is free."""
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.give_back(place)


class MappedMemory:
    """One process's view of an ``EntryMemory``.

    Args:
        descriptor: of the memory.
        writable: whether this process writes entries.
    """

    def __init__(self, descriptor: int, writable: bool) -> None:
        self._descriptor = descriptor
        self._protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # Mapped with all its pages at once: otherwise each page would interrupt the first to touch it.
        self._flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        self._places: dict[int, mmap.mmap] = {}

    def write(self, place: int, arrays: Arrays) -> Stored:
        """Copy an entry to its place."""
        stored, offset, nbytes = [], 0, stored_bytes(arrays)
        mapped = self._mapped(place, nbytes)
        for name, array in arrays.items():
            np.ndarray(array.shape, array.dtype, mapped, offset)[...] = array
            stored.append((name, array.dtype.str, array.shape, offset))
            offset += _aligned(array.nbytes)
        return Stored(place, nbytes, tuple(stored))

    def read(self, stored: Stored) -> Arrays:
        """An entry as it lies there, read-only in a process that does not write; good while the place is in use."""
        mapped = self._mapped(stored.place, stored.nbytes)
        return {name: np.ndarray(shape, np.dtype(kind), mapped, offset) for name, kind, shape, offset in stored.arrays}

    def _mapped(self, place: int, nbytes: int) -> mmap.mmap:
        mapped = self._places.get(place)
        if mapped is None or len(mapped) < nbytes:
            mapped = mmap.mmap(self._descriptor, _in_pages(nbytes), self._flags, self._protection, offset=place)
            self._places[place] = mapped
        return mapped


def stored_bytes(arrays: Arrays) -> int:
    """What an entry takes in its place."""
    return sum(_aligned(array.nbytes) for array in arrays.values())


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def _in_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
