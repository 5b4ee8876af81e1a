"""Ten classes of noisy colour patterns, made from a fixed seed: for tests and timing, not for results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncdgl.data.base import Decoded, Request, Source
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = 10


def decode(request: Request) -> Decoded:
    """2,048 training and 500 test images of the size that is asked for."""
    import numpy as np

    size = request.image_size
    draws = Draws(0, "synthetic", size)
    coarse = draws.generator("patterns").uniform(60, 195, (CLASSES, 4, 4, 3))
    rows = np.arange(size) * 4 // size
    patterns = coarse[:, rows][:, :, rows]

    def images(split: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        random = draws.generator(split)
        y = np.arange(count, dtype=np.int64) % CLASSES
        noise = random.normal(0, 60, (count, size, size, 3))
        return np.clip(patterns[y] + noise, 0, 255).astype(np.uint8), y

    train, test = images("train", 2048), images("test", 500)
    return Decoded(*train, *test, [f"pattern{k}" for k in range(CLASSES)])


SOURCE = Source(
    decode,
    defaults={
        "stages": 4,
        "epochs": 2,
        "batch_size": 32,
        "threads": 1,
        "data": {"image_size": 16, "augment": False},
        "model": {"blocks": 4, "width": 16, "downsample": (2, 4), "aux": "mlp"},
        "optim": {"lr": 0.05, "lr_decay_every": 15},
    },
    resizes=True,
    shape=lambda request: ((3, request.image_size, request.image_size), CLASSES),
    in_process=True,
)
