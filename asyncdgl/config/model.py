"""The configuration of a run: what was asked. What is decided of it is a `ResolvedConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from asyncdgl import registry
from asyncdgl.config import where
from asyncdgl.config.defaults import defaults_for, lookup, merged
from asyncdgl.config.delays import DelaysConfig
from asyncdgl.config.messages import FORM_TAGS
from asyncdgl.config.milestones import CheckpointConfig, EvaluationConfig
from asyncdgl.config.ray import RayConfig, Threads
from asyncdgl.config.sections import (
    MOST,
    MOST_STAGES,
    BufferConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    VirtualConfig,
)
from asyncdgl.config.setting import Named, Section, applies, keys, setting
from asyncdgl.config.together import problems_between
from asyncdgl.delays.profiles import DelayProfile
from asyncdgl.errors import ConfigError


def _auto_or_number(value: Any) -> str:
    return FORM_TAGS[0] if value == "auto" else FORM_TAGS[1]


class RunConfig(Section):
    """Everything that decides what a run computes. What is not given is filled in with the data set's defaults."""

    title: ClassVar[str] = "Run"

    name: str = setting(
        "",
        "of the run; by default the data set's and the delay profile's or algorithm's",
        flag="--name",
        bits=False,
        max_length=80,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$",
    )
    algorithm: Annotated[str, Named("algorithm")] = setting(
        "async-dgl", "how the stages learn together", flag="--algorithm"
    )
    runtime: Literal["ray", "sim", "virtual"] = setting(
        "ray",
        "ray: real processes; sim: the paper's loops in one process, the default of sequential-dgl and backprop; "
        "virtual: one process in virtual time",
        flag="--runtime",
    )
    pace: Literal["profile", "free"] = setting(
        "profile",
        "profile: relative speeds as the delay profile says; free: as fast as possible",
        flag="--pace",
        where=where.PACED,
    )
    stages: int = setting(4, "stages J that the network is cut into", flag="--stages", symbol="J", ge=1, le=MOST_STAGES)
    epochs: int = setting(15, "epochs of each stage", flag="--epochs", ge=1, le=10**6)
    batch_size: int = setting(
        32,
        "images of a mini-batch",
        flag="--batch-size",
        label="mini-batch",
        unit="images",
        where=where.WITH_SIZES,
        ge=2,
        le=MOST,
    )
    seed: int = setting(0, "of weights, data order and delays", flag="--seed", ge=0, lt=2**63)
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto",
        "of the arithmetic; auto: bf16 on a GPU, and on a CPU that is fast at it if the network is large",
        flag="--precision",
        where=where.WITH_SIZES,
        decided=True,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto: a GPU where there is one", flag="--device", where=where.COMPUTING, decided=True
    )
    threads: Annotated[
        Annotated[Literal["auto"], Tag(FORM_TAGS[0])] | Annotated[Threads, Tag(FORM_TAGS[1])],
        Discriminator(_auto_or_number),
    ] = setting(
        1,
        "CPU threads of each stage; auto: this machine's cores, shared by the stages of ray, which makes the bits "
        "depend on the machine",
        flag="--threads",
        label="threads of each stage",
        where=where.COMPUTING,
        decided=True,
    )
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    buffer: BufferConfig = Field(default_factory=BufferConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    delays: DelaysConfig = Field(default_factory=DelaysConfig)
    virtual: VirtualConfig = Field(default_factory=VirtualConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, tree: Any) -> Any:
        return merged(defaults_for(tree), tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        problems = problems_between(self)
        if problems:
            raise PydanticCustomError("asyncdgl", "{problems}", {"problems": problems})
        return self

    @property
    def profile(self) -> DelayProfile:
        """The delay profile itself."""
        return self.delays.resolve()

    @property
    def between(self) -> Mapping[str, Any]:
        """What the algorithm says of the buffers between its stages, whatever was asked."""
        between: Mapping[str, Any] = registry.find("algorithm", self.algorithm).between
        return between

    @property
    def real_buffer(self) -> BufferConfig:
        """What the buffers will do: as asked, but for what the algorithm says of them.

        Raises:
            ConfigError: the algorithm says what no buffer can do.
        """
        between = self.between
        try:
            return self.buffer.replace(**between)
        except ConfigError as error:
            problems = [f"algorithm {self.algorithm}: its between: {problem}" for problem in error.problems]
            raise ConfigError(problems) from None

    @property
    def in_one(self) -> bool:
        """Whether the algorithm trains the whole network as one learner, end to end."""
        return bool(registry.find("algorithm", self.algorithm).in_one)

    @property
    def one_by_one(self) -> bool:
        """Whether the algorithm trains one stage after the other."""
        return bool(registry.find("algorithm", self.algorithm).one_by_one)

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
        """Stages that train: J, or one where the whole network is one learner."""
        return 1 if self.in_one else self.stages

    @property
    def open_keys(self) -> list[str]:
        """Keys that a run will decide by measuring on its machine: two runs of this may decide them differently."""
        cut = self.model.balance == "cost" and self.model.cut is None and self.trained_stages > 1 and self.has_tensors
        asked = {
            "model.cut": cut,
            "ray.threads": self.runtime == "ray" and self.ray.threads == "cost",
            "virtual.step_times": self.runtime == "virtual" and self.virtual.step_times == "measure",
        }
        return [key for key, is_open in asked.items() if is_open]

    def deciding(self) -> dict[str, Any]:
        """All that decides what the run computes and records, as plain data by dotted key; names and places do not.

        Keys without an effect are left out, and a delay profile is taken for what it does: ``slow_stage2`` with S = 1
        is ``none``. Besides these, the bits depend on the images, the versions, the CPU and the code of one's own
        parts. Before `on_this_machine`, ``auto`` stands for what a machine decides.
        """
        plain = self.model_dump(mode="json")
        found = {
            name: lookup(plain, name, None)
            for name, key in keys(type(self)).items()
            if key.setting.bits and applies(self, name) and not name.startswith("delays.")
        }
        if not applies(self, "delays.profile"):
            return found
        profile, stages = self.profile, range(1, self.trained_stages + 1)
        return found | {
            "delays.stages": [profile.stage(j).model_dump(mode="json") for j in stages],
            "delays.links": [profile.link(j).model_dump(mode="json") for j in stages[:-1]],
            "delays.unit": profile.unit if profile.lengths_in_use(self.stages) else None,
            "delays.window": profile.window if applies(self, "pace") and self.pace == "profile" else None,
        }
