"""What a figure calls the keys of a sweep, their values and the measures: words and units, not dotted keys."""

from __future__ import annotations

import json
from typing import Any

from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.setting import keys

ALGORITHMS = {
    "async-dgl": "asynchronous DGL",
    "sync-dgl": "synchronous DGL",
    "sequential-dgl": "sequential greedy",
    "backprop": "backpropagation",
}
MEASURES = {
    "test_accuracy": "test accuracy (last head)",
    "ensemble_test_accuracy": "test accuracy (ensemble)",
    "validation_accuracy": "validation accuracy (last head)",
    "ensemble_validation_accuracy": "validation accuracy (ensemble)",
    "staleness": "staleness (producer's updates)",
    "batch_age": "batch age in the last stage (mini-batches)",
    "batches_unseen": "batches that the last stage never saw (share)",
    "times_sampled": "times an entry was given",
    "busy_fraction": "share of the time that a stage computes",
    "entries_held": "entries to choose from",
    "updates_per_time": "updates of the last stage per unit of time",
    "train_seconds": "training time (s, or steps)",
}
SHORT_MEASURES = {
    "staleness": "staleness (updates)",
    "times_sampled": "times given",
    "batch_age": "batch age (batches)",
    "batches_unseen": "batches never seen",
    "busy_fraction": "busy",
    "entries_held": "entries held",
    "updates_per_time": "updates per time",
}
"""Means over stages, or of the last stage, as a table's note says."""
ACCURACIES = ("test_accuracy", "ensemble_test_accuracy", "validation_accuracy", "ensemble_validation_accuracy")
FRACTIONS = (*ACCURACIES, "batches_unseen", "busy_fraction")


def key_label(key: str) -> str:
    """Of an axis or a column."""
    known = keys(RunConfig).get(key)
    return known.label if known is not None else key.rpartition(".")[2].replace("_", " ")


def measure_label(name: str) -> str:
    """Of an axis or a column."""
    return MEASURES.get(name, name.replace("_", " "))


def value_label(key: str, value: Any) -> str:
    """Of a tick or a cell of a table."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return ALGORITHMS.get(value, value) if key == "algorithm" else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else json.dumps(value)


def setting_label(key: str, value: Any) -> str:
    """Of a line: the value, and what it is a value of where that does not show."""
    if isinstance(value, str):
        return value_label(key, value)
    known = keys(RunConfig).get(key)
    name = (known.setting.symbol if known is not None else None) or key_label(key).partition(" (")[0]
    return f"{name} = {value_label(key, value)}"


def threads_of_stages(config: ResolvedConfig) -> str:
    """How many, in words."""
    if isinstance(config.ray.threads, tuple):
        return f"{', '.join(map(str, config.ray.threads))} threads, stage by stage"
    return f"{config.threads} {'thread' if config.threads == 1 else 'threads'} for each stage"
