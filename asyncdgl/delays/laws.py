"""Laws of random lengths, each given by its quantile function, so that one keyed uniform number makes one draw."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_NORMAL = NormalDist()

Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Law(BaseModel):
    """A law of lengths of time, in the unit of its profile. ``quantile(u)`` turns a uniform number into a draw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    law: Literal["constant", "uniform", "exponential", "lognormal"] = Field(
        default="constant", description="shape of the law"
    )
    mean: Length = Field(default=0.0, description="mean length")
    spread: Length | None = Field(
        default=None, description="uniform only: half the width, at most the mean (default: the mean)"
    )
    sigma: Length | None = Field(
        default=None, description="lognormal only: standard deviation of the logarithm (default: 0.5)"
    )

    @model_validator(mode="after")
    def _check(self) -> "Law":
        if self.spread is not None and self.law != "uniform":
            raise ValueError(f"spread applies only to the law uniform, not to {self.law}")
        if self.sigma is not None and self.law != "lognormal":
            raise ValueError(f"sigma applies only to the law lognormal, not to {self.law}")
        if self.spread is not None and self.spread > self.mean:
            raise ValueError(f"spread must be at most the mean ({self.mean:g}), got {self.spread:g}")
        return self

    def quantile(self, u: float) -> float:
        """The length that a share ``u`` (0 < u < 1) of all draws does not exceed."""
        return _QUANTILES[self.law](self, u)


def exponential_quantile(mean: float, u: float) -> float:
    """Quantile of the exponential law with this mean."""
    return -mean * math.log1p(-u)


def _uniform(law: Law, u: float) -> float:
    spread = law.mean if law.spread is None else law.spread
    return law.mean + spread * (2 * u - 1)


def _lognormal(law: Law, u: float) -> float:
    sigma = 0.5 if law.sigma is None else law.sigma
    # exp(N(m, sigma)) has mean exp(m + sigma^2 / 2): subtracting sigma^2 / 2 keeps the mean as stated.
    return law.mean * math.exp(sigma * _NORMAL.inv_cdf(u) - sigma * sigma / 2)


_QUANTILES: dict[str, Callable[[Law, float], float]] = {
    "constant": lambda law, u: law.mean,
    "uniform": _uniform,
    "exponential": lambda law, u: exponential_quantile(law.mean, u),
    "lognormal": _lognormal,
}
