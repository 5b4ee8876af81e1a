"""What is decided: the configuration of a run with nothing left open. Only this reaches an engine."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from asyncdgl.config.model import RunConfig
from asyncdgl.config.ray import RayConfig, Threads
from asyncdgl.config.sections import (
    MOST_STAGES,
    DataConfig,
    ModelConfig,
    PassTimes,
    PositiveShare,
    Share,
    VirtualConfig,
)


class ResolvedData(DataConfig):
    """Which images, and how they are normalised."""

    data_dir: str | None = Field(default=None, description="folder with the images, from the root; null for the cache")
    mean: tuple[Share, ...] = Field(default=(), description="of each channel, 0 to 1; empty where no image is read")
    std: tuple[PositiveShare, ...] = Field(
        default=(), description="of each channel, 0 to 1; empty where no image is read"
    )

    @field_validator("mean", "std")
    @classmethod
    def _none_is_null(cls, value: tuple[float, ...] | None) -> tuple[float, ...]:
        return value or ()

    @field_validator("data_dir")
    @classmethod
    def _from_the_root(cls, path: str | None) -> str | None:
        if path is not None and not os.path.isabs(path):
            raise ValueError("must begin at the root")
        return path


class ResolvedModel(ModelConfig):
    """The network, and where it is cut into stages."""

    cut: tuple[Annotated[int, Field(ge=1, le=MOST_STAGES)], ...] = Field(
        description="the last block of each stage but the last one's; empty where there are more stages than blocks"
    )


class ResolvedVirtual(VirtualConfig):
    """The virtual runtime, with step times that are known."""

    step_times: tuple[PassTimes, ...] | None = Field(default=None, description="null: a pass takes one step")


class ResolvedRay(RayConfig):
    """Where the Ray runtime runs."""

    threads: tuple[Threads, ...] | None = Field(
        default=None, description="CPU threads of stage 1 to J, where they differ from threads"
    )


class ResolvedConfig(RunConfig):
    """A `RunConfig` in which everything is decided; it can be asked for as it is, and comes to the same again.

    Its ``buffer`` says what the buffers really do, whatever the algorithm.
    """

    precision: Literal["float32", "bf16"] = Field(description="of the arithmetic")
    device: Literal["cpu", "cuda"] = Field(description="where the stages compute")
    threads: Threads = Field(description="CPU threads of each stage, and of the evaluator")
    data: ResolvedData = Field(description="which images")
    model: ResolvedModel = Field(description="the network")
    virtual: ResolvedVirtual = Field(description="the virtual runtime")
    ray: ResolvedRay = Field(description="the Ray runtime")

    @model_validator(mode="after")
    def _says_what_the_buffers_do(self) -> ResolvedConfig:
        if self.buffer != self.real_buffer:
            real = ", ".join(f"{key} {value}" for key, value in self.real_buffer if value != getattr(self.buffer, key))
            problem = f"buffer: {self.algorithm} has buffers with {real}"
            raise PydanticCustomError("asyncdgl", "{problems}", {"problems": [problem]})
        return self

    def threads_of(self, stage: int) -> int:
        """CPU threads of one stage."""
        return self.threads if self.ray.threads is None else self.ray.threads[stage - 1]
