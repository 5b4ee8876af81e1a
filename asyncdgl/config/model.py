"""The configuration of a run: its parts and what goes together. `config_file.py` reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from asyncdgl import registry
from asyncdgl.config.defaults import PIXELS, defaults_for, merged
from asyncdgl.delays.profiles import DelayProfile, built_in_profile
from asyncdgl.errors import ConfigError

Dataset = Literal["digits", "fashion-mnist", "cifar10", "image-folder", "synthetic"]
Algorithm = Literal["async-dgl", "sync-dgl", "sequential-dgl", "backprop"]
Runtime = Literal["ray", "sim", "virtual"]


def _part(kind: str) -> AfterValidator:
    """A registered word, or `package.module:attribute`."""

    def checked(name: str) -> str:
        try:
            registry.check(kind, name)
        except ConfigError as error:
            raise PydanticCustomError("part", "{problem}", {"problem": str(error)}) from None
        return name

    return AfterValidator(checked)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise PydanticCustomError("int_type" if annotation is int else "float_type", "a number")
        return value


def _number(default: float, description: str, **bounds: Any) -> Any:
    return Field(default=default, description=description, allow_inf_nan=False, **bounds)


class DataConfig(_Part):
    """Which images, and what is done to them."""

    dataset: Dataset = Field(default="digits", description="images to train on")
    data_dir: str | None = Field(
        default=None, description="folder with the images, or where to download them; null for the cache"
    )
    image_size: int = Field(
        default=8, ge=4, le=4096, description="pixels of a side; image-folder and synthetic are made so"
    )
    augment: bool = Field(default=False, description="random crop after padding, random horizontal flip")
    validation: float = _number(0.0, "share of the training set that is held out", ge=0, lt=1)
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        default=None, description="of each channel, 0 to 1; null to measure it"
    )
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        default=None, description="of each channel, 0 to 1; null to measure it"
    )


class ModelConfig(_Part):
    """The paper's convolutional network and its auxiliary networks."""

    name: Annotated[str, _part("network")] = Field(
        default="conv", description="conv: blocks of 3x3 convolution, batch norm, ReLU"
    )
    options: dict[str, Any] = Field(default={}, description="keyword arguments of a network of one's own")
    blocks: int = Field(default=6, ge=1, le=64, description="blocks of the whole network")
    width: int = Field(default=128, ge=1, le=4096, description="features F of the first block")
    downsample: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(2, 4), description="blocks that begin with a 2x2 max pool and double the features"
    )
    aux: Annotated[str, _part("auxiliary")] = Field(
        default="mlp-sr", description="auxiliary network of every stage but the last"
    )
    head: Literal["mlp-2", "aux"] = Field(
        default="mlp-2", description="last stage's head: two hidden layers, or the same auxiliary network as the others"
    )
    loss: Annotated[str, _part("loss")] = Field(default="cross-entropy", description="what every stage makes small")
    balance: Literal["blocks", "cost"] = Field(
        default="blocks",
        description="where the network is cut into stages. blocks: equally many in each; cost: so that the slowest "
        "stage is as fast as can be, by times measured here, which decide cut",
    )
    cut: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="the last block of each stage but the last one's, instead of balance"
    )


class BufferConfig(_Part):
    """The replay buffers between the stages."""

    size: int = Field(default=10, ge=1, description="mini-batches M that each buffer holds")
    sampler: Annotated[str, _part("sampler")] = Field(default="priority_lifo", description="which entry a buffer gives")
    max_reuse: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="times that an entry is given at most; null for no limit"
    )
    codec: Annotated[str, _part("codec")] = Field(default="none", description="how entries are encoded")
    on_full: Literal["overwrite", "block"] = Field(
        default="overwrite", description="when full, drop the oldest or make the producer wait"
    )
    min_size: int = Field(default=1, ge=1, description="entries that must have arrived before any is given")
    max_age: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="producer's steps after which an entry leaves"
    )
    prefetch: int = Field(default=1, ge=0, le=16, description="entries that a reader fetches ahead (ray, virtual)")


class OptimConfig(_Part):
    """SGD with momentum and the learning-rate schedule of each stage."""

    name: Annotated[str, _part("optimizer")] = Field(
        default="sgd", description="sgd, with momentum; adam; adamw, with decoupled weight decay"
    )
    lr: float = _number(0.1, "learning rate", gt=0)
    momentum: float = _number(0.9, "of SGD", ge=0, lt=1)
    weight_decay: float = _number(5e-4, "of SGD", ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="of adam and adamw: decay of the means of gradients and their squares"
    )
    eps: float = _number(1e-8, "of adam and adamw: keeps the division finite", gt=0)
    schedule: Annotated[str, _part("schedule")] = Field(
        default="step",
        description="of the learning rate, by own completed epochs. step: as lr_decay_every or lr_milestones say; "
        "constant; cosine: half a cosine from lr to 0 over the epochs",
    )
    lr_decay_every: Annotated[int, Field(ge=1)] | None = Field(
        default=15, description="own completed epochs after which the learning rate drops"
    )
    lr_milestones: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="own completed epochs at which it drops, instead of lr_decay_every"
    )
    lr_decay_factor: float = _number(5.0, "what the learning rate is divided by", ge=1)


FORM_TAGS = ("<name>", "<inline>")
"""Which of two forms a value has, a word or its content: pydantic puts the tag into the place that an error names."""


def _form(value: Any) -> str:
    return FORM_TAGS[0] if isinstance(value, str) else FORM_TAGS[1]


class DelaysConfig(_Part):
    """Simulated delays."""

    profile: Annotated[
        Annotated[str, Tag("<name>")] | Annotated[DelayProfile, Tag("<inline>")], Discriminator(_form)
    ] = Field(default="none", description="delay profile: a name that `asyncdgl profiles` lists, or a YAML file")
    slowdown: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        default=None, description="S of the profiles slow_stage<N>; null for 2"
    )

    def resolve(self) -> DelayProfile:
        """The profile itself."""
        if isinstance(self.profile, DelayProfile):
            return self.profile
        return built_in_profile(self.profile, self.slowdown)


class PassTimes(_Part):
    """What one pass of a stage takes without any delay, in seconds."""

    train: float = Field(gt=0, allow_inf_nan=False, description="a pass with an update")
    forward: float = Field(gt=0, allow_inf_nan=False, description="a forward-only pass")


class VirtualConfig(_Part):
    """The virtual runtime: how long passes take, and whether anything is computed."""

    step_times: Annotated[
        Annotated[Literal["measure"], Tag("<name>")] | Annotated[tuple[PassTimes, ...] | None, Tag("<inline>")],
        Discriminator(_form),
    ] = Field(
        default=None,
        description="seconds of an undelayed pass: a list of {train, forward}, one for each stage or one for all; "
        "measure: measured here, all stages computing at once; null: a pass takes one step, and times are in steps",
    )
    train: bool = Field(default=True, description="false: no arithmetic, only who reads which entry when")
    batches: int = Field(default=100, ge=1, description="mini-batches of an epoch, where train is false")


class RayConfig(_Part):
    """Where the Ray runtime runs, and on how many cores."""

    address: str | None = Field(
        default=None, description="host:port of a running Ray cluster; null to start a local one"
    )
    threads: Annotated[
        Annotated[Literal["cost"], Tag("<name>")]
        | Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...] | None, Tag("<inline>")],
        Discriminator(_form),
    ] = Field(
        default=None,
        description="CPU threads of stage 1 … J, instead of threads, which the evaluator keeps; cost: all cores, more "
        "for slower stages, by times measured here",
    )


class EvaluationConfig(_Part):
    """When the test set is used."""

    every: int = Field(default=1, ge=1, description="epochs between two evaluations")


class RunConfig(_Part):
    """Everything that decides what a run computes. What is not given is filled in with the data set's defaults."""

    name: str = Field(default="", max_length=80, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$", description="of the run")
    algorithm: Algorithm = Field(default="async-dgl", description="how the stages learn together")
    runtime: Runtime = Field(
        default="ray",
        description="ray: real processes; sim: the paper's loops in one process; virtual: one process in virtual time",
    )
    pace: Literal["profile", "free"] = Field(
        default="profile", description="profile: relative speeds as the delay profile says; free: as fast as possible"
    )
    stages: int = Field(default=4, ge=1, description="stages J that the network is cut into")
    epochs: int = Field(default=1, ge=1, description="epochs of each stage")
    batch_size: int = Field(default=128, ge=2, description="images of a mini-batch")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of weights, data order and delays")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto",
        description="of the arithmetic; auto: bf16 on a GPU, and on a CPU that is fast at it if the network is large",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads of each stage")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    buffer: BufferConfig = BufferConfig()
    optim: OptimConfig = OptimConfig()
    delays: DelaysConfig = DelaysConfig()
    virtual: VirtualConfig = VirtualConfig()
    ray: RayConfig = RayConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, tree: Any) -> Any:
        return merged(defaults_for(tree), tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        problems = _cross_field_problems(self)
        if problems:
            raise PydanticCustomError("asyncdgl", "{problems}", {"problems": problems})
        return self

    @property
    def profile(self) -> DelayProfile:
        """The resolved delay profile."""
        return self.delays.resolve()

    @property
    def replay(self) -> BufferConfig:
        """What the buffers do: as configured, or for ``sync-dgl`` first in, first out, one use, blocking."""
        if self.algorithm != "sync-dgl":
            return self.buffer
        changes = {"sampler": "fifo", "max_reuse": 1, "on_full": "block", "min_size": 1, "max_age": None}
        return self.buffer.model_copy(update=changes)

    def threads_of(self, stage: int) -> int:
        """CPU threads of one stage."""
        return self.ray.threads[stage - 1] if isinstance(self.ray.threads, tuple) else self.threads

    @property
    def has_tensors(self) -> bool:
        """Whether anything is computed: not where ``virtual`` moves provenance alone."""
        return self.runtime != "virtual" or self.virtual.train

    @property
    def time_unit(self) -> Literal["seconds", "steps"]:
        """What the times of its trace count: steps where ``virtual`` has no step times."""
        return "steps" if self.runtime == "virtual" and self.virtual.step_times is None else "seconds"

    @property
    def trained_stages(self) -> int:
        """Stages that train: J, or one for ``backprop``."""
        return 1 if self.algorithm == "backprop" else self.stages


def _cross_field_problems(config: RunConfig) -> list[str]:
    """Everything that no single field shows, all of it at once."""
    found: list[str] = []
    data, model, optim = config.data, config.model, config.optim
    is_conv = model.name == "conv"  # of a network of one's own the blocks are counted once it is there
    if config.algorithm in ("backprop", "sequential-dgl") and config.runtime != "sim":
        found.append(f"algorithm {config.algorithm} runs in one process: use --runtime sim")
    if config.algorithm == "sync-dgl" and config.runtime == "virtual":
        found.append("algorithm sync-dgl has no virtual time: use --runtime sim or ray")
    if is_conv and config.stages > model.blocks and config.has_tensors:
        found.append(
            f"stages must be at most model.blocks ({model.blocks}), since a stage is at least one block; "
            f"got {config.stages} (a deeper network: --set model.blocks={config.stages})"
        )
    if model.cut is not None and (
        len(model.cut) != config.stages - 1
        or list(model.cut) != sorted(set(model.cut))
        or (is_conv and any(block >= model.blocks for block in model.cut))
    ):
        found.append(
            f"model.cut must name the last block of each stage but the last one's: {config.stages - 1} growing "
            f"numbers below {model.blocks}, got {list(model.cut)}"
        )
    found += [
        f"model.downsample names block {block}, but the network has {model.blocks} blocks"
        for block in model.downsample
        if is_conv and block > model.blocks
    ]
    if len(set(model.downsample)) < len(model.downsample):
        found.append("model.downsample names a block twice")
    pixels = PIXELS.get(data.dataset)
    if pixels is not None and data.image_size != pixels:
        found.append(f"data.image_size of {data.dataset} is {pixels}, got {data.image_size}")
    last = data.image_size >> len(model.downsample)
    if is_conv and last < 2:
        found.append(
            f"data.image_size {data.image_size} is too small for {len(model.downsample)} poolings: the last block "
            f"would have {last} pixels of a side, and needs 2; use larger images or fewer model.downsample"
        )
    if data.dataset == "image-folder" and data.data_dir is None and config.has_tensors:
        found.append("data.dataset image-folder needs --data-dir DIR with train/<class>/ and test/<class>/")
    if (data.mean is None) != (data.std is None):
        found.append("data.mean and data.std must be given together")
    elif data.mean is not None and data.std is not None and len(data.mean) != len(data.std):
        found.append(f"data.mean has {len(data.mean)} channels and data.std {len(data.std)}")
    threads = config.ray.threads
    if isinstance(threads, tuple) and len(threads) != config.stages:
        found.append(f"ray.threads must have a number for each stage ({config.stages}), got {len(threads)}")
    replay = config.replay
    if replay.min_size > replay.size:
        found.append(f"buffer.min_size must be at most buffer.size ({replay.size}), got {replay.min_size}")
    if replay.on_full == "block" and replay.max_reuse is None:
        found.append("buffer.on_full block needs a finite buffer.max_reuse: otherwise no place ever becomes free")
    if optim.lr_milestones is not None:
        if optim.lr_decay_every is not None:
            found.append("optim.lr_decay_every and optim.lr_milestones exclude each other: set one of them to null")
        if list(optim.lr_milestones) != sorted(set(optim.lr_milestones)):
            found.append("optim.lr_milestones must grow, for example [20, 40]")
    return found + _virtual_problems(config) + _delay_problems(config)


def _virtual_problems(config: RunConfig) -> list[str]:
    times = config.virtual.step_times
    found = []
    if isinstance(times, tuple) and len(times) not in (1, config.stages):
        found.append(
            f"virtual.step_times must have one item for each stage ({config.stages}) or one for all, got {len(times)}"
        )
    if times == "measure" and not config.has_tensors:
        found.append("virtual.step_times measure needs virtual.train true: there is nothing to measure otherwise")
    return found


def _delay_problems(config: RunConfig) -> list[str]:
    try:
        profile = config.profile
    except ConfigError as error:
        return error.problems
    found = profile.problems(config.stages)
    lengths = profile.lengths_in_use(config.stages)
    has_clock = config.runtime == "ray" or (config.runtime == "virtual" and config.virtual.step_times is not None)
    if profile.unit == "seconds" and not has_clock and lengths:
        mend = "use steps" if config.runtime == "sim" else "use steps, or give virtual.step_times"
        found.append(
            f"delays.profile {profile.name} is in seconds, but runtime {config.runtime} has no clock "
            f"({lengths[0]}): {mend}"
        )
    if config.model.name == "conv" and config.stages > config.model.blocks and not config.has_tensors:
        found += [
            f"delays.profile {profile.name}: bandwidth of link {j} counts bytes, but more stages than model.blocks "
            f"have no sizes: set model.blocks to {config.stages}, or use latency alone"
            for j in range(1, config.stages)
            if profile.link(j).bandwidth is not None
        ][:1]
    return found
