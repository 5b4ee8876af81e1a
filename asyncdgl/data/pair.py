"""A pair of map-style data sets, as those of torch and torchvision, as a decoded data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from asyncdgl.data.base import Decoded, Source
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CHANNELS = 4
"""Of images of bytes: grey, grey and alpha, colour, colour and alpha."""


class MapStyle(Protocol):
    """Items (x, y): x a PIL image, uint8 [H, W] or [H, W, C], or floats [C, H, W], [T, D] or [D]; y a class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


def source_of_pair(train: MapStyle, test: MapStyle) -> Source:
    """A pair of data sets as a source, for this process: nobody else has the objects."""
    return Source(lambda request: decode_pair(train, test, on_progress=request.on_progress), in_process=True)


def decode_pair(
    train: MapStyle,
    test: MapStyle,
    classes: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Every item of a pair of data sets, read once: what they draw at random, they draw once.

    Args:
        train: the training set.
        test: the test set.
        classes: names of the classes; by default the attribute ``classes`` of ``train``, or numbers.
        on_progress: told (done, total).

    Raises:
        DataError: a set is empty, or an item is not like the first one or has no class; the message names it.
    """
    counts = [_length(data, name) for name, data in (("train", train), ("test", test))]

    def tell(done: int) -> None:
        if on_progress is not None and done % 1000 == 0:
            on_progress(done, sum(counts))

    train_x, train_y = _stack(train, "train", counts[0], None, tell)
    test_x, test_y = _stack(test, "test", counts[1], train_x[0], lambda done: tell(counts[0] + done))
    names = getattr(train, "classes", None) if classes is None else classes
    if names is None:
        names = [str(number) for number in range(max(train_y.max(), test_y.max()) + 1)]
    for name, y in (("train", train_y), ("test", test_y)):
        if y.max() >= len(names):
            raise DataError(f"{name}[{y.argmax()}] has the class {y.max()}, but the {len(names)} classes count from 0")
    return Decoded(train_x, train_y, test_x, test_y, [str(name) for name in names])


def _length(data: MapStyle, name: str) -> int:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"{name} is a {type(data).__name__}: it must have __len__ and __getitem__ (a map-style data set)"
        )
    if len(data) == 0:
        raise DataError(f"{name} is empty")
    return len(data)


def _stack(
    data: MapStyle, name: str, count: int, like: NDArray[Any] | None, tell: Callable[[int], None]
) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    all_x, all_y = None, np.empty(count, np.int64)
    for index in range(count):
        place = f"{name}[{index}]"
        try:
            item = data[index]
        except Exception as error:
            raise DataError(f"{place} can't be read: {type(error).__name__}: {error!s:.500}") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{place} is a {type(item).__name__}: it must be a pair (x, y)")
        x = _as_array(item[0], place)
        like = x if like is None else like
        if (x.shape, x.dtype) != (like.shape, like.dtype):
            raise DataError(
                f"{place} is {list(x.shape)} {x.dtype}, but train[0] is {list(like.shape)} {like.dtype} (images with "
                "the channels last): all must be alike"
            )
        if all_x is None:
            all_x = np.empty((count, *x.shape), x.dtype)
        all_x[index], all_y[index] = x, _as_class(item[1], place)
        tell(index + 1)
    return np.empty(0) if all_x is None else all_x, all_y


def _as_array(x: Any, place: str) -> NDArray[Any]:
    """One x as it is kept: an image [H, W, C], [T, D] or [D]."""
    import numpy as np

    if hasattr(x, "getbands"):  # a PIL image
        from asyncdgl.data.images import to_rgb

        try:
            x = np.asarray(x if x.mode in ("L", "RGB") else to_rgb(x))
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
    elif hasattr(x, "detach"):  # a tensor
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    array: NDArray[Any] = np.asarray(x)
    if array.dtype == np.uint8 and array.size:
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim == 3 and array.shape[2] <= MOST_CHANNELS:
            return array
    elif array.dtype.kind == "f" and 1 <= array.ndim <= 3 and array.size:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise DataError(f"{place} has numbers that are infinite, or none (NaN)")
        return array.transpose(1, 2, 0) if array.ndim == 3 else array
    raise DataError(
        f"{place} is {list(np.shape(x))} {array.dtype}: x must be a PIL image, uint8 [H, W] or [H, W, C] with at most "
        f"{MOST_CHANNELS} channels, or floats [C, H, W], [T, D] or [D]"
    )


def _as_class(y: Any, place: str) -> int:
    import numpy as np

    value = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
    if value.shape != () or value.dtype.kind not in "iu":
        raise DataError(f"{place} has y = {y!r:.80}: a class is a whole number from 0")
    if value < 0:
        raise DataError(f"{place} has the class {value}: classes count from 0")
    return int(value)
