"""What a seed means: a configuration, a kind of weather, and the faults; and how a failure's faults become few."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import parse_config
from asyncdgl.plan.resolve import planned

KILL, STOP, CUT, DISK, TEAR, INTERRUPT, ERR = KINDS = (
    *("kill", "stop", "cut off", "disk full", "torn checkpoint", "interrupt", "kill, and then other bits,"),
)
FOR_GOOD_S = 1e6
DRIVER, PACE, EVALUATOR = "the driver", "the pace keeper", "the evaluator"


class Fault(NamedTuple):
    """One fault.

    Attributes:
        kind: see above.
        victim: a process; of a torn checkpoint the stage.
        step: of the world at which it comes; or
        at_s: when it comes, in seconds since the world began.
        length_s: how long it lasts.
    """

    kind: str
    victim: str
    step: int | None
    at_s: float
    length_s: float = 0.0

    def __str__(self) -> str:
        when = f"{self.at_s:.4f} s" if self.step is None else f"step {self.step}"
        return f"{self.kind} {self.victim} at {when}" + (f" for {self.length_s:.2f} s" if self.length_s else "")


class Plan(NamedTuple):
    """All that a seed decides.

    Attributes:
        seed: of the world.
        config: of the run.
        per_epoch: updates of an epoch.
        pass_s: how long a pass takes, about.
        slow: share of the messages that take long.
        through_ray: whether calls go through Ray.
        faults: in no order.
    """

    seed: int
    config: ResolvedConfig
    per_epoch: int
    pass_s: float
    slow: float
    through_ray: bool
    faults: tuple[Fault, ...]


@lru_cache(maxsize=4096)
def _config(variant: int, patience: int) -> ResolvedConfig:
    """One of many configurations: to check one takes longer than to simulate its run."""
    draw = random.Random(f"config {variant}")
    stages = draw.choice([2, 2, 3, 3, 4])
    tree: dict[str, Any] = {
        **{"runtime": "ray", "threads": 1, "device": "cpu", "precision": "float32", "batch_size": 2},
        **{"stages": stages, "epochs": draw.choice([1, 2, 3]), "seed": variant},
        "model": {"blocks": stages, "width": 1, "downsample": []},
        "pace": draw.choice(["profile", "profile", "free"]),
        "ray": {"deaf_s": patience * draw.choice([2.0, 4.0])},
        "checkpoint": {"every": draw.choice([None, 1, 2, 3, 5])},
    }
    size = draw.choice([1, 2, 3, 6])
    if draw.random() < 0.2:
        tree |= {"algorithm": "sync-dgl", "buffer": {"size": size}}
    else:
        on_full = draw.choice(["overwrite", "overwrite", "block"])
        reuse = draw.choice([1, 1, 2, 3]) if on_full == "block" else draw.choice([None, 1, 2])
        tree["buffer"] = {
            **{"size": size, "on_full": on_full, "max_reuse": reuse},
            "sampler": draw.choice(["priority_lifo", "lifo", "fifo", "fifo", "uniform"]),
            "prefetch": draw.choice([0, 1] if on_full == "block" else [0, 1, 1, 3]),
            "min_size": draw.choice([1, 1, min(2, size)]),
        }
        if on_full == "overwrite" and draw.random() < 0.2:
            tree["buffer"]["max_age"] = draw.choice([3, 6])
    may_drop = tree["buffer"].get("on_full") == "overwrite"
    profile = _profile(draw, stages, tree.get("algorithm", "async-dgl"), may_drop)
    if tree["pace"] == "profile":
        profile["window"] = draw.choice([0.0, 1.0, 2.0, 4.0])
    tree["delays"] = {"profile": profile}
    return planned(parse_config(tree))


def _profile(draw: random.Random, stages: int, algorithm: str, may_drop: bool) -> dict[str, Any]:
    unit = draw.choice(["steps", "steps", "seconds"])
    one = 1.0 if unit == "steps" else 0.1
    profile: dict[str, Any] = {"unit": unit}
    if draw.random() < 0.5:
        delay: dict[str, Any] = {"slowdown": draw.choice([1.0, 2.0, 3.0])}
        if draw.random() < 0.4:
            delay["step_law"] = "exponential"
        if draw.random() < 0.3:
            delay["pause"] = {"probability": 0.2, "length": 4 * one}
        profile["stages"] = {draw.randint(1, stages): delay}
    if draw.random() < 0.5:
        link: dict[str, Any] = {}
        if draw.random() < 0.6:
            link["latency"] = {"law": draw.choice(["constant", "uniform", "exponential"]), "mean": 2 * one}
        if draw.random() < 0.3 and algorithm == "async-dgl":
            link["loss"] = 0.2
        if draw.random() < 0.3:
            link["bandwidth"] = 16 / one
        if may_drop and draw.random() < 0.3 and link.keys() & {"latency", "bandwidth"}:
            link["max_in_flight"] = draw.choice([1, 2, 4])
        profile["every_link"] = link
    return profile


CONFIGS = 600


def plan(seed: int) -> Plan:
    """What a seed means."""
    draw = random.Random(f"plan {seed}")
    variant = draw.randrange(CONFIGS)
    per_epoch = draw.choice([2, 3, 4, 6, 8])
    pass_s = draw.choice([0.01, 0.05, 0.2])
    through_ray = draw.random() < 0.4
    slow = draw.choice([0.0, 0.05, 0.3])
    # Where messages are slow and many, nobody is deaf who is silent for two seconds.
    config = _config(variant, patience=3 if slow == 0.3 and through_ray else 1)
    passes = config.stages * config.epochs * per_epoch
    seconds, steps = 1.5 + 1.5 * config.epochs * per_epoch * (pass_s + 0.01), 150 + 45 * passes
    faults: list[Fault] = []
    for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 4, 6, 8])):
        kind, victim, length_s = _what(draw, config, through_ray)
        step, at_s = None, draw.uniform(0.0, seconds)
        if faults and draw.random() < 0.4:  # in a burst, or while the last one is being recovered from
            last = faults[-1]
            step, at_s = last.step and last.step + 1 + int(draw.expovariate(0.01)), last.at_s + draw.expovariate(3.0)
        elif draw.random() < 0.6:
            step = draw.randrange(steps)
        faults.append(Fault(kind, victim, step, at_s, length_s))
    return Plan(seed, config, per_epoch, pass_s, slow, through_ray, tuple(faults))


def _what(draw: random.Random, config: ResolvedConfig, through_ray: bool) -> tuple[str, str, float]:
    stage = f"stage {draw.randint(1, config.stages)}"
    actors = [stage, stage, f"buffer {draw.randint(1, config.stages - 1)}", PACE, EVALUATOR]
    kind = draw.choices(KINDS, [60, 14, 8, 5, 6, 7, 2])[0]
    if kind == KILL:
        return kind, draw.choice([*actors, stage, f"buffer {draw.randint(1, config.stages - 1)}", DRIVER]), 0.0
    if kind == STOP:
        if draw.random() < 0.2:
            return kind, draw.choice(actors[:-1]), FOR_GOOD_S
        return kind, draw.choice([*actors, DRIVER]), draw.choice([0.05, 0.5, 3.0, 12.0])
    if kind == CUT:
        return kind, stage, draw.choice([0.05, 0.5, 2.0])
    if kind == DISK:
        return kind, "the disk", draw.choice([0.2, 2.0])
    return kind, DRIVER if kind == INTERRUPT else stage, 0.0


def shrunk(faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]) -> list[Fault]:
    """The fewest faults with which it still fails, as far as leaving out one after the other shows.

    Args:
        faults: with which it fails.
        fails: whether it fails with these.
    """
    left = list(faults)
    for size in (len(left) // 2, len(left) // 4, 1):
        start = 0
        while size and start < len(left):
            fewer = left[:start] + left[start + size :]
            if fails(fewer):
                left = fewer
            else:
                start += size
    return left if len(left) == len(faults) else shrunk(left, fails)
