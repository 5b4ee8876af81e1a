"""Delay profiles: the one place that says how slow each stage and each link is."""

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from asyncdgl.delays.laws import Law
from asyncdgl.errors import ConfigError, shown

Number = Annotated[int, Field(ge=1, le=10_000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Pause(_Part):
    """Now and then a stage stops for a while after a pass."""

    probability: float = Field(ge=0, le=1, allow_inf_nan=False, description="of a pause after each pass")
    length: float = Field(ge=0, allow_inf_nan=False, description="of one pause, in the profile's unit")


class StageDelay(_Part):
    """How slow one stage is."""

    slowdown: float = Field(
        default=1.0, ge=1, allow_inf_nan=False, description="S_j: the stage runs at 1/S_j of an unslowed one's speed"
    )
    step_law: Literal["constant", "exponential"] = Field(
        default="constant", description="law of the time of one pass, with mean S_j steps"
    )
    pause: Pause | None = Field(default=None, description="random pauses, or null")


class LinkDelay(_Part):
    """What happens to an entry on its way from stage j to stage j+1."""

    latency: Law = Field(default=Law(), description="law of an entry's time on the way")
    bandwidth: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="encoded bytes per unit of time, or null for no limit"
    )
    loss: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False, description="probability that an entry is lost")
    max_in_flight: int = Field(
        default=64,
        ge=1,
        le=10**9,
        description="entries on the way at most; then the oldest that is not yet being sent is dropped (overwrite)",
    )

    @property
    def has_delay(self) -> bool:
        """Whether an entry takes any time on the way."""
        return self.latency.takes_time or self.bandwidth is not None


class DelayProfile(_Part):
    """Slowdowns and pauses of stages, delays of links, under a name."""

    name: str = Field(default="custom", max_length=200, description="the name in tables and file names")
    unit: Literal["steps", "seconds"] = Field(
        default="steps", description="unit of lengths of time; one step is one pass of an unslowed stage"
    )
    every_stage: StageDelay = Field(default=StageDelay(), description="stages that are not listed in stages")
    stages: dict[Number, StageDelay] = Field(default={}, description="stage number to its delay")
    every_link: LinkDelay = Field(default=LinkDelay(), description="links that are not listed in links")
    links: dict[Number, LinkDelay] = Field(default={}, description="link number (j: from stage j to j+1) to its delay")
    window: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="steps that a stage may be ahead under pace profile"
    )

    @field_validator("stages", "links", mode="before")
    @classmethod
    def _no_number_twice(cls, value: Any) -> Any:
        """YAML keeps 2 and '2' apart; one of them would silently win."""
        numbers = [str(key) for key in value] if isinstance(value, dict) else []
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        if twice:
            raise ValueError(f"number {', '.join(twice)} stands there twice")
        return value

    def stage(self, number: int) -> StageDelay:
        """The delay of stage ``number``, counted from 1."""
        return self.stages.get(number, self.every_stage)

    def link(self, number: int) -> LinkDelay:
        """The delay of the link from stage ``number`` to the next."""
        return self.links.get(number, self.every_link)

    def lengths_in_use(self, stages: int) -> list[str]:
        """The settings that name a length of time, for a network of so many stages."""
        pauses = [f"pause of stage {j}" for j in range(1, stages + 1) if self.stage(j).pause is not None]
        links = [
            f"{what} of link {j}"
            for j in range(1, stages)
            for what, used in (
                ("latency", self.link(j).latency.takes_time),
                ("bandwidth", self.link(j).bandwidth is not None),
            )
            if used
        ]
        return pauses + links

    def problems(self, stages: int) -> list[str]:
        """What does not fit a network of so many stages."""
        slow = [
            f"delays.profile {self.name} delays stage {j}, but the network has {stages} stages"
            for j in self.stages
            if j > stages
        ]
        links = [
            f"delays.profile {self.name} delays link {j}, but the network has {stages - 1} links"
            for j in self.links
            if j >= stages
        ]
        return slow + links


DEFAULT_SLOWDOWN = 2.0
_SLOW_STAGE = re.compile(r"slow_stage([1-9][0-9]{0,4})")

_BUILT_IN = {
    "none": DelayProfile(name="none"),
    "random": DelayProfile(name="random", every_stage=StageDelay(step_law="exponential")),
    "straggler": DelayProfile(name="straggler", stages={2: StageDelay(pause=Pause(probability=0.01, length=50))}),
    "wan": DelayProfile(name="wan", every_link=LinkDelay(latency=Law(law="lognormal", mean=10, sigma=0.5))),
    "lossy": DelayProfile(name="lossy", every_link=LinkDelay(loss=0.05)),
}

DESCRIPTIONS = {
    "none": "no delay",
    "slow_stage<N>": f"stage N runs at 1/S of the others' speed: S = {DEFAULT_SLOWDOWN:g}, or --slowdown",
    "random": "every pass takes an exponential time, as in Algorithm 2 (exactly its draws with window: 0)",
    "straggler": "stage 2 pauses for 50 steps after one pass in a hundred",
    "wan": "every link: lognormal latency, mean 10 steps, sigma 0.5",
    "lossy": "every link loses 5 % of the entries",
}


def is_slow_stage(name: str) -> bool:
    """Whether the name is ``slow_stage1``, ``slow_stage2`` and so on."""
    return _SLOW_STAGE.fullmatch(name) is not None


def built_in_profile(name: str, slowdown: float | None = None) -> DelayProfile:
    """A built-in profile.

    Args:
        name: one of ``DESCRIPTIONS``, with a stage number in place of ``<N>``.
        slowdown: S_N of ``slow_stage<N>``.

    Raises:
        ConfigError: there is no such profile.
    """
    slow = _SLOW_STAGE.fullmatch(name)
    if slow:
        factor = DEFAULT_SLOWDOWN if slowdown is None else slowdown
        return DelayProfile(name=name, stages={int(slow[1]): StageDelay(slowdown=factor)})
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    near = difflib.get_close_matches(name[:80], [*_BUILT_IN, "slow_stage2"], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"delays.profile: there is no profile {shown(name)}; expected one of {', '.join(DESCRIPTIONS)}, "
        f"or the path of a file that ends in .yaml{hint}"
    )
