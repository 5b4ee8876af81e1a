"""Laws of random lengths, each given by its quantile function, so that one keyed uniform number makes one draw."""

import contextlib
import math
import stat
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from asyncdgl import registry
from asyncdgl.errors import ConfigError, PartFailed

_NORMAL = NormalDist()

MOST_VALUES = 10_000
MOST_BYTES = 1_000_000
"""Of a file of numbers: its content stands in the configuration of each run."""

Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Law(BaseModel):
    """A law of lengths of time, in the unit of its profile. ``quantile(u)`` turns a uniform number into a draw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    law: str = Field(
        default="constant",
        description="shape: constant, uniform, exponential, lognormal, empirical, or package.module:attribute",
    )
    mean: Length = Field(default=0.0, description="mean length; of empirical, that of its values")
    spread: Length | None = Field(
        default=None, description="uniform only: half the width, at most the mean (default: the mean)"
    )
    sigma: Length | None = Field(
        default=None, description="lognormal only: standard deviation of the logarithm (default: 0.5)"
    )
    values: Annotated[tuple[Length, ...], Field(min_length=1, max_length=MOST_VALUES)] | None = Field(
        default=None, description="empirical only: lengths, each of which is drawn equally often; kept in order"
    )
    file: str | None = Field(
        default=None, description="empirical only: a text file with a length on each line, read once into values"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or tree.get("law") != "empirical":
            return tree
        found = dict(tree)
        if isinstance(found.get("file"), str) and found.get("values") is None:
            found["values"] = _numbers_in(Path(found.pop("file")))
        if found.get("mean") is None and found.get("values") is not None:
            with contextlib.suppress(
                TypeError, ValueError, OverflowError
            ):  # what is wrong with the values is said below
                found["mean"] = fmean(float(value) for value in found["values"])
        return found

    @field_validator("law")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            registry.check("law", name)
        except ConfigError as error:
            raise PydanticCustomError("part", "{problem}", {"problem": str(error)}) from None
        return name

    @field_validator("values")
    @classmethod
    def _ordered(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(sorted(values))

    @model_validator(mode="after")
    def _check(self) -> "Law":
        for key, law in (("spread", "uniform"), ("sigma", "lognormal"), ("values", "empirical"), ("file", "empirical")):
            if getattr(self, key) is not None and self.law != law:
                raise ValueError(f"{key} applies only to the law {law}, not to {self.law}")
        if self.spread is not None and self.spread > self.mean:
            raise ValueError(f"spread must be at most the mean ({self.mean:g}), got {self.spread:g}")
        if self.law == "empirical":
            if self.values is None:
                raise ValueError("the law empirical needs values, or a file with a length on each line")
            if self.file is not None:
                raise ValueError("values and file exclude each other: give one of them")
            if not math.isclose(self.mean, fmean(self.values)):
                raise ValueError(
                    f"the mean of these values is {fmean(self.values):g}, not {self.mean:g}: leave it away"
                )
        return self

    @property
    def takes_time(self) -> bool:
        """Whether any draw is more than nothing, as far as is known: what a law of one's own does is not."""
        return self.mean > 0 or self.law not in registry.choices("law")

    def quantile(self, u: float) -> float:
        """The length that a share ``u`` (0 < u < 1) of all draws does not exceed."""
        return _quantile_of(self.law)(self, u)


Quantile = Callable[[Law, float], float]
"""``quantile(law, u)``: law has ``mean``; the length that a share u of all draws does not exceed."""


@cache
def _quantile_of(name: str) -> Quantile:
    quantile: Quantile = registry.find("law", name)
    if name in registry.choices("law"):
        return quantile

    def checked(law: Law, u: float) -> float:
        length = quantile(law, u)
        if not (isinstance(length, int | float) and 0 <= length < math.inf):
            raise PartFailed(f"law {name}: its quantile of {u:g} must be a length of at least 0, got {length!r}")
        return length

    return checked


def check_law(law: Law) -> None:
    """Whether a law of one's own gives lengths.

    Raises:
        ConfigError: it fails, or gives something else.
    """
    for u in (1e-9, 0.5, 1 - 1e-9):
        try:
            law.quantile(u)
        except PartFailed as error:
            raise ConfigError(str(error)) from None
        except Exception as error:  # a part of the user's may raise anything
            raise ConfigError(f"law {law.law} fails: {type(error).__name__}: {error}") from error


def constant(law: Law, u: float) -> float:
    """Always the mean."""
    return law.mean


def uniform(law: Law, u: float) -> float:
    """Equally likely from mean - spread to mean + spread."""
    spread = law.mean if law.spread is None else law.spread
    return law.mean + spread * (2 * u - 1)


def exponential(law: Law, u: float) -> float:
    """The exponential law with this mean."""
    return -law.mean * math.log1p(-u)


def lognormal(law: Law, u: float) -> float:
    """The logarithm is normal, with deviation sigma."""
    sigma = 0.5 if law.sigma is None else law.sigma
    # exp(N(m, sigma)) has mean exp(m + sigma^2 / 2): subtracting sigma^2 / 2 keeps the mean as stated.
    return law.mean * math.exp(sigma * _NORMAL.inv_cdf(u) - sigma * sigma / 2)


def empirical(law: Law, u: float) -> float:
    """A step function: one of the values as it stands, each equally often, so that their mean is kept too."""
    values = law.values or (0.0,)
    return values[min(int(u * len(values)), len(values) - 1)]  # u times the length may round up to the length


def _numbers_in(path: Path) -> list[float]:
    """The numbers of a text file, one a line; empty lines are passed over."""
    where = f"file {path}"
    try:
        if not stat.S_ISREG(path.expanduser().stat().st_mode):
            raise ValueError(f"{where} is no regular file")
        with path.expanduser().open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror or error}") from None
    lines = content.decode("utf-8", "replace").splitlines()
    count = sum(1 for line in lines if line.strip())
    if len(content) > MOST_BYTES or count > MOST_VALUES:
        raise ValueError(f"{where} has more than {MOST_VALUES} numbers or {MOST_BYTES} bytes: take a sample of it")
    if not count:
        raise ValueError(f"{where} holds no numbers: expected a length on each line")
    numbers = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"{where}, line {number}: expected a length of at least 0, got {line.strip()[:40]!r}")
        numbers.append(value)
    return numbers
