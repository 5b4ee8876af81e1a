"""The data set as a run's processes get it: whoever reads it on another machine fetches it there, once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.data.dataset import Dataset, make_dataset, open_dataset
from asyncdgl.data.store import ARRAYS
from asyncdgl.data.travel import Outline, bring, outline_of
from asyncdgl.plan.machine import wanted_address

PIECE_BYTES = 8_000_000
"""Enough to fill a link, and little beside Ray's object store, which is small."""

AHEAD = 3
"""Pieces that are asked for before the first of them is there."""


class DataActor:
    """Gives away what lies decoded on the machine of the main process.

    Args:
        folder: of the decoded data set.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {f"{name}.npy": folder / f"{name}.npy" for name in ARRAYS}

    def piece(self, name: str, number: int) -> bytes:
        """Of one of its files, from 0; empty behind its end."""
        with self._files[name].open("rb") as file:
            file.seek(number * PIECE_BYTES)
            return file.read(PIECE_BYTES)


@dataclass(frozen=True)
class SharedData:
    """The decoded data set of a run, for its processes on any machine.

    Attributes:
        outline: what is known of it.
        giver: the actor that gives it away; None where all processes are on the machine of the main process.
    """

    outline: Outline
    giver: Any

    def without_content(self, config: ResolvedConfig) -> Dataset:
        """For a stage that reads entries: it needs shapes and numbers of rows alone."""
        return make_dataset(self.outline.without_content(), config)

    def open(self, config: ResolvedConfig) -> Dataset:
        """All of it; what is not on this machine is fetched.

        Raises:
            DataError: it came damaged, or this machine's cache can't be written.
        """
        if self.giver is None:
            return open_dataset(config, self.outline.folder)
        return open_dataset(config, bring(self.outline, self._fetch))

    def _fetch(self, name: str) -> Iterator[bytes]:
        pieces = deque(self.giver.piece.remote(name, number) for number in range(AHEAD))
        number = AHEAD
        while piece := ray.get(pieces.popleft()):
            yield piece
            pieces.append(self.giver.piece.remote(name, number))
            number += 1


def share_data(config: ResolvedConfig, folder: Path) -> SharedData:
    """The data set in ``folder`` of this machine, for all processes of a run."""
    giver = None
    if wanted_address(config.ray.address) is not None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        giver = ray.remote(DataActor).options(**options).remote(folder)
    return SharedData(outline_of(folder), giver)
