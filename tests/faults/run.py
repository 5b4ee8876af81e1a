"""The universe of faults by command: seeds, one seed as a story, and the bugs that it has to find.

python tests/faults/run.py --seeds 10000 --processes 2
python tests/faults/run.py --seed 4124             # shrunk, and told event by event
python tests/faults/run.py --bugs --seeds 1000    # each planted bug: how soon it is found, with how many faults
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults.bugs import BUGS, planted  # noqa: E402
from faults.schedule import Fault, Plan, plan, shrunk  # noqa: E402
from faults.universe import simulate  # noqa: E402

logging.disable(logging.WARNING)


class Found(NamedTuple):
    """A bug, and the first seed that finds it."""

    name: str
    seed: int | None
    faults: list[Fault]
    problem: str


def problem_of(seed: int) -> tuple[int, str, int]:
    """What is wrong with a seed's run; and how many faults it met."""
    verdict = simulate(plan(seed))
    if seed % 50 == 0:
        gc.collect()
    return seed, verdict.problem, verdict.hit


def fewest(planned: Plan) -> list[Fault]:
    """The fewest faults with which a run still fails; all of one that does not."""
    if not simulate(planned).problem:
        return list(planned.faults)
    return shrunk(planned.faults, lambda faults: bool(simulate(planned, faults).problem))


def commit() -> str:
    """Of the code that is tested."""
    told = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, check=False)
    return told.stdout.decode().strip() or "no git commit"


def report(seed: int) -> str:
    """A failure as a person wants it: the seed, the commit, and the fewest faults."""
    planned = plan(seed)
    faults = fewest(planned)
    problem = simulate(planned, faults).problem
    lines = [f"seed {seed} at {commit()}: {problem}", *(f"    {fault}" for fault in faults)]
    return "\n".join([*lines, f"    python tests/faults/run.py --seed {seed}"])


def seeds(first: int, count: int, processes: int) -> Iterator[tuple[int, str, int]]:
    """The problems of many seeds, as they are found."""
    numbers = range(first, first + count)
    if processes == 1:
        yield from map(problem_of, numbers)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(problem_of, numbers, chunksize=20)


def hunt(name: str, first: int, count: int) -> Found:
    """Look for the first seed that finds a bug."""
    with planted(name):
        for seed in range(first, first + count):
            if problem_of(seed)[1]:
                planned = plan(seed)
                faults = fewest(planned)
                return Found(name, seed, faults, simulate(planned, faults).problem)
    return Found(name, None, [], "")


def _hunt(asked: tuple[str, int, int]) -> Found:
    return hunt(*asked)


def _bugs(first: int, count: int, processes: int) -> int:
    asked = [(name, first, count) for name in BUGS]
    missed = 0
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for found in pool.imap_unordered(_hunt, asked):
            missed += found.seed is None or len(found.faults) > 5
            after = "not found" if found.seed is None else f"seed {found.seed}, {len(found.faults)} faults"
            print(f"{found.name}: {after}: {found.problem[:150]}", flush=True)
    print(f"{len(asked) - missed} of {len(asked)} bugs were found within {count} seeds, with at most 5 faults")
    return missed


def _story(seed: int, whole: bool) -> int:
    planned = plan(seed)
    faults = planned.faults if whole else fewest(planned)
    verdict = simulate(planned, faults, tells=True)
    print(f"seed {seed} at {commit()}: {verdict.problem or 'nothing is wrong'}")
    print(f"calls {'through Ray' if planned.through_ray else 'over sockets'}; {planned.per_epoch} updates an epoch")
    for part in ("algorithm", "stages", "epochs", "pace", "buffer", "profile", "checkpoint"):
        print(f"    {part}: {getattr(planned.config, part)}")
    print("\n".join([*(f"    {fault}" for fault in faults), *verdict.log]))
    return bool(verdict.problem)


def main() -> int:
    """The exit code: whether something was found that should not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, help="tell the story of this one, with the fewest faults that fail")
    parser.add_argument("--whole", action="store_true", help="with all of its faults")
    parser.add_argument("--bug", choices=sorted(BUGS), help="with this bug planted")
    parser.add_argument("--bugs", action="store_true", help="look for each planted bug")
    asked = parser.parse_args()
    if asked.bugs:
        return _bugs(asked.first, asked.seeds, asked.processes)
    with planted(asked.bug):
        if asked.seed is not None:
            return _story(asked.seed, asked.whole)
        began, failed, hit = time.monotonic(), 0, 0
        for seed, problem, met in seeds(asked.first, asked.seeds, asked.processes):
            hit += met
            if problem:
                failed += 1
                print(report(seed), flush=True)
        seconds = time.monotonic() - began
        print(f"{asked.seeds} seeds, {hit} faults, {failed} failures; {asked.seeds / seconds:.1f} seeds a second")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
