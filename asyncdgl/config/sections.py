"""The sections of a configuration: every key with its default (of the digits), bounds, flag, and where it applies."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from asyncdgl.config import where
from asyncdgl.config.messages import FORM_TAGS
from asyncdgl.config.setting import Named, Section, setting, word_or_content

MOST = 10**9
"""No number of things needs to be larger; a typing error is told at once, not after hours."""

MOST_STAGES = 10_000

MOST_OPTIONS = 1000
"""Values in model.options, those inside others included."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Block = Annotated[int, Field(ge=1, le=64)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class DataConfig(Section):
    """Which images, and what is done to them."""

    title: ClassVar[str] = "Data"

    dataset: Annotated[str, Named("data")] = setting(
        "digits", "data set to train on", flag="--dataset", label="data set"
    )
    data_dir: str | None = setting(
        None,
        "folder with the images, or where to download them; null for the cache",
        flag="--data-dir",
        where=where.FROM_FILES,
        bits=False,
        max_length=4096,
    )
    image_size: int = setting(
        8,
        "pixels of a side; image-folder and synthetic are made so",
        unit="pixels",
        where=where.ANY_SIZE,
        ge=4,
        le=4096,
    )
    augment: bool = setting(
        False, "random crop after padding (by an eighth of a side), random horizontal flip", where=where.COMPUTING
    )
    validation: float = setting(
        0.0, "share of the training set that is held out", where=where.COMPUTING, ge=0, lt=1, allow_inf_nan=False
    )
    mean: tuple[Share, ...] | None = setting(
        None,
        "of each channel, 0 to 1; null to measure it",
        where=where.COMPUTING,
        decided=True,
        max_length=1024,
    )
    std: tuple[PositiveShare, ...] | None = setting(
        None,
        "of each channel, 0 to 1; null to measure it",
        where=where.COMPUTING,
        decided=True,
        max_length=1024,
    )

    @field_validator("mean", "std")
    @classmethod
    def _none_is_null(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """A run that reads no image writes an empty list."""
        return value or None


class ModelConfig(Section):
    """The network, its cut into stages, and what each stage learns from."""

    title: ClassVar[str] = "Model"

    name: Annotated[str, Named("network")] = setting(
        "conv",
        "conv: blocks of 3x3 convolution, batch norm, ReLU; or package.module:attribute",
        flag="--model",
        label="network",
        where=where.WITH_SIZES,
    )
    options: dict[str, Any] = setting(
        {}, "keyword arguments of a network of one's own", label="options of the network", where=where.OWN_NETWORK
    )
    blocks: int = setting(4, "blocks of the whole network", where=where.CONV, ge=1, le=64)
    width: int = setting(
        16,
        "features F of the first block",
        flag="--width",
        symbol="F",
        unit="features of the first block",
        where=where.CONV,
        ge=1,
        le=4096,
    )
    downsample: tuple[Block, ...] = setting(
        (2,),
        "blocks that begin with a 2x2 max pool and double the features",
        label="blocks with a pool",
        where=where.CONV,
        max_length=64,
    )
    aux: Annotated[str, Named("auxiliary")] = setting(
        "mlp",
        "auxiliary network of every stage but the last",
        flag="--aux",
        label="auxiliary network",
        where=where.WITH_AUX,
    )
    head: Literal["mlp-2", "aux"] = setting(
        "mlp-2",
        "last stage's head: two hidden layers, or the same auxiliary network as the others",
        label="last stage's head",
        where=where.COMPUTING,
    )
    loss: Annotated[str, Named("loss")] = setting(
        "cross-entropy", "what every stage makes small", where=where.COMPUTING
    )
    balance: Literal["blocks", "cost"] = setting(
        "blocks",
        "where the network is cut into stages. blocks: equally many in each; cost: so that the slowest "
        "stage is as fast as can be, by times measured here, which decide cut",
        where=where.UNCUT,
        decided=True,
    )
    cut: tuple[Annotated[int, Field(ge=1, le=MOST_STAGES)], ...] | None = setting(
        None,
        "the last block of each stage but the last one's, instead of balance; null for balance",
        where=where.CUT,
        decided=True,
        max_length=MOST_STAGES,
    )

    @field_validator("options")
    @classmethod
    def _few_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """A few lines of YAML can refer to each other so that they stand for millions of values."""
        left, rest = MOST_OPTIONS, [options]
        while rest:
            value = rest.pop()
            inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
            left -= len(inside)
            if left < 0:
                raise ValueError(f"at most {MOST_OPTIONS} values")
            rest += inside
        return options


class BufferConfig(Section):
    """The replay buffers between the stages."""

    title: ClassVar[str] = "Replay buffers"

    size: int = setting(
        10,
        "mini-batches M that each buffer holds",
        flag="--buffer-size",
        label="buffer size",
        symbol="M",
        unit="mini-batches",
        where=where.BUFFERED,
        ge=1,
        le=MOST,
    )
    sampler: Annotated[str, Named("sampler")] = setting(
        "priority_lifo", "which entry a buffer gives", flag="--sampler", where=where.ASYNCHRONOUS
    )
    max_reuse: Count | None = setting(
        None,
        "times that an entry is given at most; null for no limit",
        flag="--max-reuse",
        label="reuse limit",
        unit="times",
        where=where.ASYNCHRONOUS,
    )
    codec: Annotated[str, Named("codec")] = setting(
        "none", "how entries are encoded", flag="--codec", where=where.ENCODED
    )
    on_full: Literal["overwrite", "block"] = setting(
        "overwrite",
        "when full, drop the oldest or make the producer wait",
        label="when full",
        where=where.ASYNCHRONOUS,
    )
    min_size: int = setting(
        1,
        "entries that must have arrived before any is given",
        label="entries before the first is given",
        where=where.ASYNCHRONOUS,
        ge=1,
        le=MOST,
    )
    max_age: Count | None = setting(
        None,
        "producer's steps after which an entry leaves; null for no limit",
        label="age limit",
        unit="producer's steps",
        where=where.ASYNCHRONOUS,
    )
    prefetch: int = setting(
        1,
        "entries that a reader fetches ahead; 0 in sim",
        unit="entries",
        where=where.FETCHING,
        ge=0,
        le=16,
    )


class OptimConfig(Section):
    """The optimizer and the learning-rate schedule of each stage."""

    title: ClassVar[str] = "Optimizer"

    name: Annotated[str, Named("optimizer")] = setting(
        "sgd",
        "sgd: with momentum; adam; adamw: adam with weight decay apart from the gradient",
        label="optimizer",
        where=where.COMPUTING,
    )
    lr: float = setting(
        0.05,
        "learning rate",
        flag="--lr",
        label="learning rate",
        where=where.COMPUTING,
        gt=0,
        allow_inf_nan=False,
    )
    momentum: float = setting(0.9, "of sgd", where=where.MOMENTUM, ge=0, lt=1, allow_inf_nan=False)
    weight_decay: float = setting(
        5e-4, "share of the weights added to the gradient", where=where.COMPUTING, ge=0, allow_inf_nan=False
    )
    betas: tuple[Beta, Beta] = setting(
        (0.9, 0.999), "of adam and adamw: decay of the means of the gradient and of its square", where=where.ADAM
    )
    eps: float = setting(
        1e-8, "of adam and adamw: keeps the division finite", where=where.ADAM, gt=0, allow_inf_nan=False
    )
    schedule: Annotated[str, Named("schedule")] = setting(
        "step",
        "of the learning rate, by a stage's own completed epochs. step: the paper's, as lr_decay_every or "
        "lr_milestones say; constant; cosine: half a cosine from lr to 0 over the epochs",
        where=where.COMPUTING,
    )
    lr_decay_every: Annotated[int, Field(ge=1, le=10**6)] | None = setting(
        6,
        "own completed epochs after which the learning rate drops; null for never",
        unit="epochs",
        where=where.STEPS,
    )
    lr_milestones: tuple[Annotated[int, Field(ge=1, le=10**6)], ...] | None = setting(
        None,
        "own completed epochs at which it drops, instead of lr_decay_every",
        unit="epochs",
        where=where.STEPS,
        max_length=1000,
    )
    lr_decay_factor: float = setting(
        5.0, "what the learning rate is divided by", where=where.DECAYING, ge=1, allow_inf_nan=False
    )


class PassTimes(Section):
    """What one pass of a stage takes without any delay, in seconds."""

    train: float = Field(gt=0, allow_inf_nan=False, description="a pass with an update")
    forward: float = Field(gt=0, allow_inf_nan=False, description="a forward-only pass")


TimesOfStages = Annotated[tuple[PassTimes, ...], Field(max_length=MOST_STAGES)]


class VirtualConfig(Section):
    """The virtual runtime: how long passes take, and whether anything is computed."""

    title: ClassVar[str] = "Virtual time"

    step_times: Annotated[
        Annotated[Literal["measure"], Tag(FORM_TAGS[0])] | Annotated[TimesOfStages | None, Tag(FORM_TAGS[1])],
        Discriminator(word_or_content),
    ] = setting(
        None,
        "seconds of an undelayed pass: a list of {train, forward}, one for each stage or one for all; "
        "measure: measured here, all stages computing at once; null: a pass takes one step, and times are in steps",
        unit="seconds",
        where=where.VIRTUAL,
    )
    train: bool = setting(True, "false: no arithmetic, only who reads which entry when", where=where.VIRTUAL)
    batches: int = setting(
        100,
        "mini-batches of an epoch, where train is false",
        unit="mini-batches",
        where=where.NOT_COMPUTING,
        ge=1,
        le=MOST,
    )
