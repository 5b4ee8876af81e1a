"""The face of the package: runs from Python, without printing, signals or exit codes.

No module has the name of a function that ``asyncdgl`` itself offers: to import ``asyncdgl.run`` would put the module in
the function's place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.config.defaults import merged
from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.errors import ConfigError, SweepFailed
from asyncdgl.observer import NullObserver, Observer
from asyncdgl.registry import GIVEN, handed_over
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.session import Session

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from asyncdgl.data.pair import MapStyle
    from asyncdgl.engine.replayer import StageReplay
    from asyncdgl.sweeps.execution import Finished
    from asyncdgl.sweeps.results import SweepResults


def run(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    /,
    *,
    net: nn.Sequential | None = None,
    data: tuple[MapStyle, MapStyle] | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> Run:
    """Train one network, and leave a run directory.

    Args:
        config: a configuration, a mapping of its keys, or the path of a YAML file.
        net: a row of blocks of one's own, instead of ``model.name``; they keep the weights that they have.
        data: training and test set, each with ``__len__`` and ``__getitem__``, instead of ``data.dataset``; or, as a
            mapping, the section of the configuration.
        out: the run directory itself, which must not exist or be empty; by default ``runs/<time>-<name>``.
        observer: is told of every pass, epoch and evaluation, and what a person should know.
        settings: keys of the configuration, over those of ``config``; sections as mappings.

    Returns:
        The run, with its summary, metrics, trace, figures and model.

    Raises:
        ConfigError, DataError: the run can't begin; nothing is left of it.
        RunFailed: it failed or diverged; its directory says how far it came.
        KeyboardInterrupt: it was interrupted; what there is was written first.
    """
    pair, section = (None, {"data": data}) if isinstance(data, Mapping) else (data, {})
    given = given_parts(net, pair)
    settings, observer = {**settings, **section}, observer or NullObserver()
    with handed_over(given):
        session = Session(parse_config(_tree(config, settings, given)), None if out is None else Path(out))
        session.prepare(observer)
        return session.execute(observer)


def resume(
    run_dir: str | os.PathLike[str] | Run,
    *,
    net: nn.Sequential | None = None,
    data: tuple[MapStyle, MapStyle] | None = None,
    epochs: int | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with a run that was stopped, in its own directory; ``sim``, ``virtual``, ``sync-dgl``: to the same bits.

    Args:
        run_dir: the run, or its directory.
        net: the network, where an object was handed to ``run``.
        data: training and test set, where they were handed to ``run``.
        epochs: of each stage, where it is to make more than it was.
        observer: is told of every pass, epoch and evaluation from there on, and what a person should know.

    Returns:
        The whole run.

    Raises:
        ConfigError, DataError: it can't be gone on with; what it left is as it was.
        RunFailed: it failed or diverged; its directory says how far it came.
        KeyboardInterrupt: it was interrupted; it can be gone on with again.
    """
    observer = observer or NullObserver()
    with _left(run_dir, given_parts(net, data), to_go_on=True) as left:
        from asyncdgl.resume_session import ResumeSession

        session = ResumeSession(left, epochs=epochs)
        session.prepare(observer)
        return session.execute(observer)


def replay(
    run_dir: str | os.PathLike[str] | Run,
    *,
    net: nn.Sequential | None = None,
    data: tuple[MapStyle, MapStyle] | None = None,
) -> list[StageReplay]:
    """Repeat a run from its trace, in one process, and compare the loss of every pass and each stage's final state.

    Args:
        run_dir: the run, or its directory.
        net: the network, where an object was handed to ``run``.
        data: training and test set, where they were handed to ``run``.

    Returns:
        How far each stage was repeated, all of it equal bit for bit.

    Raises:
        ReplayMismatch: names the first pass, or the first stage's final state, that differs.
        ConfigError, DataError: there is nothing that could be repeated here.
    """
    with _left(run_dir, given_parts(net, data)) as left:
        from asyncdgl.data.cache import prepare
        from asyncdgl.engine.replayer import Replay

        return Replay(left, prepare(left.config.data)).run()


def load_run(
    run_dir: str | os.PathLike[str],
    *,
    net: nn.Sequential | None = None,
    data: tuple[MapStyle, MapStyle] | None = None,
) -> Run:
    """Read a run directory.

    Args:
        run_dir: the directory.
        net: the network, where an object was handed to ``run``: without it there is no ``model``.
        data: training and test set, where they were handed to ``run``.

    Raises:
        DataError: the folder is no run directory, or a file in it is broken.
    """
    return read_run(Path(run_dir), given_parts(net, data))


def sweep(
    source: Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    on_end: Callable[[Finished], None] = lambda run: None,
) -> SweepResults:
    """Make the runs of a grid that are not there yet, each in a process of its own, and a table of them all.

    Args:
        source: the file of a sweep, or its content (``config``, ``grid``, ``seeds``, ``also``, ``name``).
        out: the sweep's folder; by default ``sweeps/<name>``. One that is there is gone on with.
        jobs: runs at a time; by default as many as keep the cores busy.
        on_end: called for each run that has ended, with how and after how many seconds.

    Returns:
        The sweep, with ``points``, ``table()`` and ``runs_table()``; the same as files lie in its folder.

    Raises:
        ConfigError, DataError: a run of it can't begin; nothing is made.
        SweepFailed: some runs failed; the others are kept.
        KeyboardInterrupt: the runs under way were stopped; what is finished is kept, and has its table.
    """
    from asyncdgl.sweep_session import SweepSession

    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    session = SweepSession(source if isinstance(source, Mapping) else Path(source), None if out is None else Path(out))
    session.make_folders()
    failed: list[Finished] = []
    try:
        if session.missing:
            with session.starter(jobs, None) as (start, at_once):
                failed = session.execute(start, at_once, on_end)
    finally:
        results = session.results()
    if failed:
        where = ", ".join(str(run.path / "output.log") for run in failed[:3])
        raise SweepFailed(f"{len(failed)} of {len(session.missing)} runs failed: see {where}", results)
    return results


def evaluate(
    run_dir: str | os.PathLike[str] | Run,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    net: nn.Sequential | None = None,
    data: tuple[MapStyle, MapStyle] | None = None,
    observer: Observer | None = None,
) -> pd.DataFrame:
    """Accuracy and loss of every head, and of the ensembles of heads, of a run's kept model.

    Args:
        run_dir: the run, or its directory.
        data_dir: other images of the same classes: see ``asyncdgl.trained.evaluate_run``. By default the run's own test
            set, and its validation set where there is one.
        net: the network, where an object was handed to ``run``.
        data: training and test set, where they were handed to ``run``.
        observer: is told of files that were left out.

    Returns:
        A row for each split and head: ``split``, ``head`` (from 1), ``images``, ``accuracy``, ``ensemble_accuracy`` (of
        heads 1 to this one; fractions) and ``loss`` (mean cross-entropy).

    Raises:
        ConfigError, DataError: there is no model, or the data are not there, or not of its classes.
    """
    from asyncdgl.trained import evaluate_run

    with _left(run_dir, given_parts(net, data)) as left:
        return evaluate_run(left, None if data_dir is None else Path(data_dir), observer or NullObserver())


def predict(
    run_dir: str | os.PathLike[str] | Run,
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    net: nn.Sequential | None = None,
    observer: Observer | None = None,
) -> pd.DataFrame:
    """Classify image files by a run's kept model.

    Args:
        run_dir: the run, or its directory.
        paths: of one image, or several.
        net: the network, where an object was handed to ``run``.
        observer: is told what was done to an image that was not like the run's own.

    Returns:
        A row for each image, named by its path, and a column for each class: its probability by the last head.

    Raises:
        ConfigError, DataError: there is no model, it does not read images, or some files can't be read.
    """
    from asyncdgl.trained import predict_images

    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    with _left(run_dir, given_parts(net, None)) as left:
        return predict_images(left, [Path(path) for path in several], observer or NullObserver())


def given_parts(net: nn.Sequential | None, data: tuple[MapStyle, MapStyle] | None) -> dict[str, Any]:
    """What is handed over as objects, by kind."""
    given: dict[str, Any] = {}
    if net is not None:
        given["network"] = net
    if data is not None:
        from asyncdgl.data.pair import source_of_pair

        if not isinstance(data, tuple | list) or len(data) != 2:
            raise ConfigError(f"data must be a pair (train, test) of map-style data sets, got {type(data).__name__}")
        given["data"] = source_of_pair(*data)
    return given


def _tree(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """What was asked, as nested settings."""
    if isinstance(config, RunConfig):
        tree: Mapping[str, Any] = config.model_dump(exclude_unset=True)
    elif isinstance(config, Mapping):
        tree = config
    elif config is None:
        tree = {}
    else:
        tree = load_yaml(Path(config))
    names = {"network": {"model": {"name": GIVEN}}, "data": {"data": {"dataset": GIVEN}}}
    tree = merged(tree, settings)
    for kind in given:
        tree = merged(tree, names[kind])
    return tree


@contextlib.contextmanager
def _left(run_dir: str | os.PathLike[str] | Run, given: Mapping[str, Any], to_go_on: bool = False) -> Iterator[Run]:
    """What a run left; within, the objects that were or are handed over have their name."""
    left = run_dir if isinstance(run_dir, Run) else read_run(Path(run_dir), to_go_on=to_go_on)
    with handed_over({**left.given, **given}):
        yield left
