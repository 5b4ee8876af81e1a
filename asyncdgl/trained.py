"""What a kept model can do: classify the images of a folder, and measure how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import DataError
from asyncdgl.observer import Observer
from asyncdgl.plan.machine import visible_gpus
from asyncdgl.registry import GIVEN
from asyncdgl.rundir.model import Interface, load_networks
from asyncdgl.rundir.reader import Run

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from asyncdgl.data.dataset import Dataset
    from asyncdgl.learn.stage import Stage

IMAGE_FOLDER = "image-folder"
ALL_AT_ONCE = 250
"""Images that are classified together."""


def evaluate_run(run: Run, data_dir: Path | None, observer: Observer) -> pd.DataFrame:
    """Accuracy and loss of every head, and of the ensembles of heads, of a run's kept model.

    Args:
        run: what was left.
        data_dir: other images of the same classes: ``data_dir/<class>/`` or ``data_dir/test/<class>/``; or, for a run
            on another kind of files, a folder in that form, whose test set is used. They are made as large as the run's
            own, and normalised as those were. Without it, the run's own test and validation set.
        observer: is told of files that were left out.

    Returns:
        A row for each split and head: see ``asyncdgl.evaluate``.

    Raises:
        DataError: there is no model, or the data are not there, or not of its classes.
    """
    import pandas as pd

    from asyncdgl.learn.evaluation import Evaluator

    _, interface, stages = _load(run)
    if data_dir is None:
        dataset = _own_data(run, observer)
    else:
        dataset = _other_data(run, data_dir, interface, observer)
    results = Evaluator(stages, dataset).evaluate([stage.published() for stage in stages])
    images = {"test": len(dataset.test), "validation": len(dataset.validation or ())}
    return pd.DataFrame(
        {"split": split, "head": head, "images": images[split], **{name: of[head - 1] for name, of in values.items()}}
        for split, values in results.items()
        for head in range(1, len(stages) + 1)
    )


def predict_images(run: Run, paths: Sequence[Path], observer: Observer) -> pd.DataFrame:
    """Classify image files: a row for each, a column for each class, with its probability by the last head.

    Args:
        run: what was left.
        paths: of the images.
        observer: is told what was done to an image that was not like the run's own.

    Raises:
        DataError: there is no model, it does not read images, or some files can't be read.
    """
    import pandas as pd
    import torch

    from asyncdgl.data.stream import in_order
    from asyncdgl.data.unseen import read_files

    config, interface, stages = _load(run)
    shape = _image_shape(config, interface)
    if not paths:
        return pd.DataFrame(columns=list(interface.classes))
    x, done = read_files(paths, shape)
    for path, what in zip(paths, done, strict=True):
        if what:
            observer.noticed(f"{path}: {what}")
    dataset = _only_test(x, [0] * len(x), interface, config)
    rows = []
    for batch in in_order(dataset, dataset.test, ALL_AT_ONCE):
        passed, scores = batch.x, torch.empty(0)
        for stage in stages:
            passed, scores = stage.scores(passed)
        rows.append(scores.softmax(1).cpu())
    return pd.DataFrame(torch.cat(rows).numpy(), [str(path) for path in paths], list(interface.classes))


def _load(run: Run) -> tuple[ResolvedConfig, Interface, list[Stage]]:
    """The run as it can be computed here, and its stages with their kept weights."""
    from asyncdgl.learn.stage import Stage

    config = run.config
    if config.device == "cuda" and not visible_gpus():
        config = config.replace(device="cpu")
    interface, nets = load_networks(run.path, config)
    stages = [Stage(net, config.optim, 1, config.device, config.precision == "bf16") for net in nets]
    return config, interface, stages


def _own_data(run: Run, observer: Observer) -> Dataset:
    from asyncdgl.data.cache import prepare
    from asyncdgl.data.dataset import open_dataset

    dataset = open_dataset(run.config, prepare(run.config.data, on_notice=observer.noticed))
    if run.environment is not None and dataset.sha256 != run.environment.data_sha256:
        raise DataError(
            f"{run.config.data.dataset} is not what {run.path} was trained on (its sha256 has changed): bring the data "
            "back, or name other data with --data-dir (data_dir)"
        )
    return dataset


def _other_data(run: Run, folder: Path, interface: Interface, observer: Observer) -> Dataset:
    """Images that lie in a folder, in the source's own form or one folder a class."""
    import numpy as np

    from asyncdgl.data.cache import prepare
    from asyncdgl.data.sources import find_source
    from asyncdgl.data.store import open_cached
    from asyncdgl.data.unseen import read_classes

    shape = _image_shape(run.config, interface)
    name = run.config.data.dataset
    folder = folder.expanduser().absolute()
    source = find_source(name) if name not in (IMAGE_FOLDER, GIVEN) else None
    if source is None or source.files is None or not source.files(folder):
        x, y = read_classes(folder, interface.classes, shape, observer.noticed)
        return _only_test(x, y, interface, run.config)
    found = open_cached(prepare(run.config.data.replace(data_dir=str(folder)), on_notice=observer.noticed))
    unknown = sorted({found.classes[k] for k in found.test_y} - {*interface.classes})
    if unknown:
        raise DataError(f"{folder}: the run does not know the class {', '.join(unknown)}")
    numbers = [interface.classes.index(c) if c in interface.classes else -1 for c in found.classes]
    return _only_test(found.test_x, np.asarray(numbers)[found.test_y], interface, run.config)


def _image_shape(config: ResolvedConfig, interface: Interface) -> tuple[int, int, int]:
    from asyncdgl.data.unseen import check_images

    check_images(interface.input_shape, bytes_read=bool(config.data.mean))
    return cast(tuple[int, int, int], interface.input_shape)


def _only_test(x: NDArray[Any], y: Any, interface: Interface, config: ResolvedConfig) -> Dataset:
    """Images as a data set of which nothing is trained on."""
    import numpy as np

    from asyncdgl.data.dataset import Dataset, Images

    images = Images(x, np.asarray(y, np.int64), np.arange(len(x)))
    return Dataset(images, None, images, interface.classes, config.data.mean, config.data.std, sha256="")
