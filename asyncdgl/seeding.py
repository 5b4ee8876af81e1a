"""Keyed draws: what is drawn depends on a key, never on the order of calls.

Stages, links and buffers run at their own speeds, so a shared stream of random numbers would give each run other
numbers. Here every draw is a hash of (seed, scope, key): the weights of stage 2, the crop of batch 17 or the latency of
an entry are the same whoever asks first, and in every runtime.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Key = int | str


class Draws:
    """Random draws under one scope, for example ``Draws(seed, "link", 2)``."""

    def __init__(self, seed: int, *scope: Key) -> None:
        self._key: tuple[Key, ...] = (seed, *scope)

    def _digest(self, key: tuple[Key, ...]) -> int:
        text = repr(self._key + key).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")

    def uniform(self, *key: Key) -> float:
        """A number strictly between 0 and 1, so that every quantile function is finite there."""
        return ((self._digest(key) >> 76) + 0.5) * 2.0**-52

    def integer(self, *key: Key) -> int:
        """A non-negative 63-bit integer: a seed for other generators."""
        return self._digest(key) >> 65

    def generator(self, *key: Key) -> np.random.Generator:
        """A numpy generator for draws of whole arrays."""
        import numpy as np

        return np.random.Generator(np.random.Philox(key=self._digest(key)))
