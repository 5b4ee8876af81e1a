"""The section of simulated delays."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag

from asyncdgl.config import where
from asyncdgl.config.messages import FORM_TAGS
from asyncdgl.config.setting import Section, setting, word_or_content
from asyncdgl.delays.profiles import DelayProfile, built_in_profile


class DelaysConfig(Section):
    """Simulated delays."""

    title: ClassVar[str] = "Delays"

    profile: Annotated[
        Annotated[str, Tag(FORM_TAGS[0])] | Annotated[DelayProfile, Tag(FORM_TAGS[1])], Discriminator(word_or_content)
    ] = setting(
        "none",
        "delay profile: a name that `asyncdgl profiles` lists, a YAML file, or what stands in one",
        flag="--delay-profile",
        label="delay profile",
        where=where.DELAYED,
    )
    slowdown: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = setting(
        None,
        "S of the profiles slow_stage<N>; null for 2",
        flag="--slowdown",
        symbol="S",
        where=where.SLOWED,
    )

    def resolve(self) -> DelayProfile:
        """The profile itself."""
        if isinstance(self.profile, DelayProfile):
            return self.profile
        return built_in_profile(self.profile, self.slowdown)
