"""The trained network: model.safetensors, and the modules that it is the weights of."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.errors import DataError, NotWritten
from asyncdgl.rundir.arrays import read_arrays, save_arrays
from asyncdgl.rundir.lines import cannot_be_written
from asyncdgl.rundir.records import MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from asyncdgl.config.resolved import ResolvedConfig
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.nets.base import StageNet

    Arrays = Mapping[str, NDArray[Any]]

STAGE = "stage{}."
"""What the names of a stage's weights begin with; then ``module.`` or ``aux.``, and torch's own name."""


@dataclass(frozen=True)
class Interface:
    """What a network reads and gives.

    Attributes:
        input_shape: of one input, without the batch: (C, H, W), (T, D) or (D,).
        classes: their names, in the order of the scores.
    """

    input_shape: tuple[int, ...]
    classes: tuple[str, ...]


def save_model(folder: Path, weights: Mapping[int, Arrays], dataset: Dataset) -> None:
    """Write model.safetensors, whole or not at all.

    Args:
        folder: the run directory.
        weights: of stages 1 … J, as each published them last.
        dataset: what they were trained on.
    """
    every = ((STAGE.format(j) + name, value) for j, own in weights.items() for name, value in own.items())
    about = {"input_shape": json.dumps(dataset.input_shape), "classes": json.dumps(dataset.classes)}
    save_arrays(folder / MODEL, dict(every), about)


def keep_model(folder: Path, weights: Mapping[int, Arrays], dataset: Dataset) -> None:
    """See ``save_model``; a run is whole without the model where its numbers have no name in the format.

    Raises:
        NotWritten: there is no room.
    """
    try:
        save_model(folder, weights, dataset)
    except OSError as error:
        raise NotWritten(cannot_be_written(folder, error)) from None
    except Exception as error:
        warnings.warn(f"the model was not kept: {type(error).__name__}: {error}", stacklevel=2)


def read_model(folder: Path) -> tuple[Interface, dict[str, NDArray[Any]]]:
    """What the kept network of a run reads and gives, and its weights. The file can't make code run.

    Raises:
        DataError: no model was kept there, or the file is not as the run wrote it.
    """
    path = folder / MODEL
    if not path.is_file():
        raise DataError(f"{folder} has no {MODEL}: the run computed nothing, or a stage could not be asked at its end")
    weights, about = read_arrays(path)
    try:
        return Interface(tuple(json.loads(about["input_shape"])), tuple(json.loads(about["classes"]))), weights
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no model of a run: {error}") from None


def load_networks(folder: Path, config: ResolvedConfig) -> tuple[Interface, list[StageNet]]:
    """What the kept network reads and gives, and every stage with its weights, in evaluation mode.

    Args:
        folder: the run directory.
        config: of the run.

    Raises:
        DataError: no model was kept there, or it does not fit the configuration.
    """
    import torch

    from asyncdgl.nets.base import make_networks

    interface, weights = read_model(folder)
    nets = make_networks(config, interface.input_shape, len(interface.classes))
    for j, net in enumerate(nets, 1):
        for part, name in ((net.module, "module."), (net.aux, "aux.")):
            prefix = STAGE.format(j) + name
            own = {key.removeprefix(prefix): weights.pop(key) for key in list(weights) if key.startswith(prefix)}
            try:
                part.load_state_dict({key: torch.from_numpy(value) for key, value in own.items()})
            except RuntimeError as error:
                raise DataError(f"{folder / MODEL} does not fit the network: stage {j}: {error}") from None
            part.eval()
    if weights:
        raise DataError(f"{folder / MODEL} does not fit the network: it has {min(weights)}, too")
    return interface, nets


def load_model(folder: Path, config: ResolvedConfig, head: int | None = None) -> nn.Sequential:
    """The network up to a head, with its kept weights: an ordinary module, [B, …] to class scores [B, classes].

    Args:
        folder: the run directory.
        config: of the run.
        head: from 1; by default the last one.

    Raises:
        DataError: no model was kept there.
        ValueError: there is no such head.
    """
    from torch import nn

    _, nets = load_networks(folder, config)
    head = len(nets) if head is None else head
    if not 1 <= head <= len(nets):
        raise ValueError(f"head must be from 1 to {len(nets)}, got {head}")
    return nn.Sequential(*(net.module for net in nets[:head]), nets[head - 1].aux).eval()
