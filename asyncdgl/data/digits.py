"""The digits that scikit-learn ships."""

from __future__ import annotations

from asyncdgl.data.base import Decoded, Request, Source

SPLIT_SEED = 0
"""The digits are split the same way in every run, whatever its seed."""


def decode(request: Request) -> Decoded:
    """1,797 grey images of 8x8, split 80/20 with equal shares of each class."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    y = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.2, random_state=SPLIT_SEED, stratify=y)
    return Decoded(train_x, train_y, test_x, test_y, [str(name) for name in digits.target_names])


SOURCE = Source(
    decode,
    image_size=8,
    shape=lambda request: ((1, 8, 8), 10),
    in_process=True,
)
