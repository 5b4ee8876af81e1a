"""The section of the Ray runtime."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from asyncdgl.config import where
from asyncdgl.config.messages import FORM_TAGS
from asyncdgl.config.setting import Section, setting, word_or_content

Threads = Annotated[int, Field(ge=1, le=1024)]


class RayConfig(Section):
    """Where the Ray runtime runs, and on how many cores."""

    title: ClassVar[str] = "Ray"

    address: str | None = setting(
        None,
        "host:port of a running Ray cluster; null to start a local one",
        flag="--address",
        where=where.ON_RAY,
        bits=False,
        max_length=256,
    )
    placement: Literal["pack", "spread"] = setting(
        "pack",
        "pack: on as few machines of a cluster as have room; spread: on as many as there are",
        where=where.ON_RAY,
        bits=False,
    )
    wait_s: float = setting(
        20.0,
        "how long to wait for room in a cluster; minutes where one grows as it is asked for more",
        unit="seconds",
        where=where.ON_RAY,
        bits=False,
        ge=0,
        allow_inf_nan=False,
    )
    threads: Annotated[
        Annotated[Literal["cost"], Tag(FORM_TAGS[0])] | Annotated[tuple[Threads, ...] | None, Tag(FORM_TAGS[1])],
        Discriminator(word_or_content),
    ] = setting(
        None,
        "CPU threads of stage 1 … J, instead of threads, which the evaluator keeps; cost: all cores, more "
        "for slower stages, by times measured here",
        label="threads, stage by stage",
        where=where.ON_RAY,
    )
    deaf_s: float = setting(
        30.0,
        "how long a process may live without an answer before it is ended and replaced; more where passes take longer",
        unit="seconds",
        where=where.ON_RAY,
        bits=False,
        gt=0,
        allow_inf_nan=False,
    )
    spares: int = setting(
        0,
        "processes that wait to take the place of a stage whose process dies, within a second; some 300 MB each",
        where=where.ON_RAY,
        bits=False,
        ge=0,
        le=64,
    )
