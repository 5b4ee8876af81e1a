"""The files of a run directory, and what stands in each: the one place that spells their keys.

``trace.jsonl`` has a million lines in a large run, so its line is a fast NamedTuple of its own (``trace.py``).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

CONFIG, ENVIRONMENT, METRICS, TRACE, SUMMARY, MODEL, FIGURES, CHECKPOINTS = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "trace.jsonl",
    "summary.json",
    "model.safetensors",
    "figures",
    "checkpoints",
)

Status = Literal["completed", "diverged", "failed", "interrupted", "terminated"]
TimeUnit = Literal["seconds", "steps"]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = tuple[Share, ...]
Loss = Annotated[float | None, AfterValidator(lambda loss: loss if loss is None or math.isfinite(loss) else None)]
"""Null where it is no finite number: JSON has no other."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distribution(_Record):
    """Of a measure over the training passes of a stage; None where there is no pass that has it."""

    mean: float | None = Field(default=None, description="mean")
    p50: float | None = Field(default=None, description="median")
    p95: float | None = Field(default=None, description="95th percentile")
    max: float | None = Field(default=None, description="maximum")


class StageSummary(_Record):
    """One stage in summary.json."""

    stage: int = Field(ge=1, description="its number, from 1")
    updates: Count = Field(description="passes with an optimizer step")
    forward_passes: Count = Field(description="passes without one")
    epochs: Count = Field(description="own epochs completed")
    test_accuracy: Share | None = Field(description="of its head, last evaluation; fraction")
    validation_accuracy: Share | None = Field(description="the same on the held-out share; null without one")
    busy_fraction: float = Field(ge=0, description="computing / train_seconds")
    wait_seconds: dict[str, float] = Field(description="waited, by reason; in the unit of time")
    staleness: Distribution = Field(description="of what it trained on, in its producer's updates")
    batch_age: Distribution = Field(description="mini-batches that stage 1 was ahead of what it trained on")
    batches_unseen: Share | None = Field(
        description="of the stream's mini-batches up to the newest that it trained on, the share that it never did"
    )
    times_sampled: Distribution = Field(description="how often an entry that it trained on had been given, with this")
    lost_turns: dict[str, Count] | None = Field(default=None, description="`sim`: turns lost, by reason")
    state_sha256: str | None = Field(description="hash of its final state; null where it could not say it")


class BufferSummary(_Record):
    """One replay buffer in summary.json, with the link before it: counts of entries.

    sent = inserted + on_the_way + lost + dropped + lost_in_fault; inserted = left + retired + overwritten_unused.
    """

    after_stage: int = Field(ge=1, description="the stage that writes it")
    sent: Count = Field(description="handed to the link")
    inserted: Count = Field(description="arrived")
    sampled: Count = Field(description="times that an entry was given")
    retired: Count = Field(description="left after at least one use")
    overwritten_unused: Count = Field(description="left without a use")
    lost: Count = Field(description="lost on the link")
    dropped: Count = Field(description="dropped by a full link")
    lost_in_fault: Count = Field(default=0, description="gone unused with a process of the buffer that died")
    left: Count = Field(description="held at the end")
    on_the_way: Count = Field(description="on the link at the end")
    fetched_unused: Count = Field(description="fetched ahead by the reader and never used")
    mean_held: float = Field(ge=0, description="mean number of entries that the reader could choose from")
    peak_bytes: Count = Field(description="most encoded bytes held and on the way")


class Fault(_Record):
    """A process that died."""

    process: str = Field(description="its name, as in environment.json")
    at_s: float = Field(description="when it was noticed; seconds since training began")
    again_s: float | None = Field(default=None, description="when another took its place; null if none did")
    passes_again: Count = Field(default=0, description="made a second time, to the same bits")
    lost_passes: Count = Field(default=0, description="that the stage's state does not rest on any more")


class Summary(_Record):
    """summary.json: what a run came to, complete or not. Accuracies are fractions, of the last evaluation."""

    status: Status = Field(description="how the run ended; diverged: a loss was not finite")
    error: str | None = Field(default=None, description="why it failed or diverged")
    algorithm: str
    runtime: str
    time_unit: TimeUnit = Field(description="of all times but wall_seconds")
    test_accuracy: Share | None = Field(description="of the last stage's head")
    ensemble_test_accuracy: Share | None = Field(description="of the ensemble of all heads")
    validation_accuracy: Share | None = Field(description="of the last stage's head; null without a held-out share")
    ensemble_validation_accuracy: Share | None = Field(description="of the ensemble of all heads")
    wall_seconds: float = Field(ge=0, description="that this process took, start-up included; seconds")
    train_seconds: float = Field(ge=0, description="until the last pass ended, in the unit of time")
    images_per_second: float | None = Field(
        description="images of the last stage's updates / train_seconds; null where stages don't run at the same time"
    )
    stages: tuple[StageSummary, ...]
    buffers: tuple[BufferSummary, ...]
    faults: tuple[Fault, ...] = Field(default=(), description="processes that died")


class Cpu(_Record):
    """A processor, as far as the system names it."""

    name: str | None
    features: tuple[str, ...] | None = Field(description="instruction sets that change the bits of arithmetic")


class Process(_Record):
    """A process of the Ray runtime, as it greeted."""

    name: str = Field(description="such as `stage 2`")
    pid: int
    node: str = Field(description="address of its machine")
    log: str | None = Field(description="file of its output, on its machine")
    version: str = Field(description="of its asyncdgl")
    path: str = Field(description="where that lies")
    threads: int | None = Field(default=None, description="CPU threads of its arithmetic; of stages")
    torch: str | None = Field(default=None, description="version; of stages")
    calls_over_sockets: bool | None = Field(default=None, description="whether it and the pace share a machine")


class Host(_Record):
    """Another machine of a run on a cluster."""

    address: str
    python: str = Field(description="version")
    packages: dict[str, str | None] = Field(description="versions; null where a package is missing")
    source_sha256: str | None = Field(description="of its asyncdgl")
    cpu_features: tuple[str, ...] = Field(description="instruction sets that change the bits of arithmetic")
    clock_ahead_s: float = Field(description="of the main process's machine, as it was read last; monotonic clocks")
    clock_within_s: float = Field(ge=0, description="what times of this machine in the trace are off by at most")


class Environment(_Record):
    """environment.json: what the bits of a run depend on besides its configuration."""

    asyncdgl: str = Field(description="version")
    python: str = Field(description="version")
    packages: dict[str, str | None] = Field(description="versions; null where a package is missing")
    platform: str
    cpu: Cpu
    cores: int = Field(description="that the run could use")
    memory_bytes: int
    threads_per_stage: int | tuple[int, ...]
    data_sha256: str | None = Field(description="of the decoded images and labels; null where nothing is computed")
    command: str
    processes: tuple[Process, ...] = Field(default=(), description="of the Ray runtime")
    hosts: tuple[Host, ...] = Field(default=(), description="other machines than the main process's")


class EpochLine(_Record):
    """A line of metrics.jsonl: a stage completed one of its own epochs."""

    kind: Literal["epoch"] = "epoch"
    stage: int = Field(ge=1)
    epoch: int = Field(ge=1, description="own epochs completed, with this")
    updates: int = Field(ge=1, description="updates completed")
    loss: float | None = Field(description="mean training loss of the epoch; null where nothing is computed")
    accuracy: Share | None = Field(description="share of the epoch's training images that its head classified right")
    lr: float | None = Field(description="learning rate of the epoch's last update")
    end_s: float = Field(description="when its last pass ended, in the run's unit of time since training began")


class EvaluationLine(_Record):
    """A line of metrics.jsonl: the test set was used, and the validation set where there is one.

    Each tuple has a value for each head 1 … J, or for the ensemble of heads 1 … n, for every n.
    """

    kind: Literal["evaluation"] = "evaluation"
    stage: int | None = Field(default=None, description="`sequential-dgl`: the stage that trained")
    epoch: Count = Field(description="that the slowest training stage had completed")
    epochs: tuple[Count, ...] = Field(description="of each stage, the own epoch of the weights that were used")
    final: bool = Field(description="whether the weights are those of the end")
    end_s: float = Field(description="when the slowest stage completed the epoch, in the run's unit of time")
    test_accuracy: Shares
    test_ensemble_accuracy: Shares
    test_loss: tuple[Loss, ...] = Field(description="mean cross-entropy of each head; null where it is not finite")
    validation_accuracy: Shares | None = None
    validation_ensemble_accuracy: Shares | None = None
    validation_loss: tuple[Loss, ...] | None = None


MetricsLine = Annotated[EpochLine | EvaluationLine, Field(discriminator="kind")]
