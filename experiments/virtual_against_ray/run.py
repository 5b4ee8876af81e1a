"""Does `virtual` predict `ray`? Durations, speeds and staleness of real runs beside those of the event queue."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

from asyncdgl.config.sections import PassTimes
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.data.cache import prepare
from asyncdgl.plan.resolve import planned
from asyncdgl.plan.step_times import measure_step_times
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord, by_stage

HERE = Path(__file__).parent
PROFILES = ("slow_stage2", "random", "wan")
STAGES = (2, 4)
COMMON = ["--config", str(HERE / "config.yaml")]


def asyncdgl(*arguments: str) -> None:
    """Run the command, unless its run is there already; its output is kept only where it fails."""
    if (Path(arguments[-1]) / "summary.json").exists():
        return
    done = subprocess.run(["asyncdgl", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"asyncdgl {' '.join(arguments)}: {done.stdout}{done.stderr}")


def periods(passes: list[PassRecord], kind: str) -> list[float]:
    """Seconds from the start of a pass to the start of the next, without what that one waited for."""
    found = []
    for one, following in itertools.pairwise(passes):
        if one.kind == following.kind == kind:
            found.append(following.start_s - one.start_s - sum(following.waits.values()))
    return found


def calibrated(run: Run) -> tuple[PassTimes, ...]:
    """Step times of a Ray run without delays: computing and messages, while all stages run."""
    times = []
    for passes in by_stage(run.records).values():
        train, forward = periods(passes, TRAIN), periods(passes, FORWARD)
        ratio = fmean(forward) / fmean(train) if len(forward) > 20 else 0.4
        times.append(PassTimes(train=fmean(train), forward=fmean(train) * ratio))
    return tuple(times)


def measures(run: Run) -> dict[str, Any]:
    """What is compared: seconds of training; of each stage updates per second while it trained, and mean staleness."""
    assert run.summary is not None
    speeds = []
    for passes in by_stage(run.records).values():
        trained = [r for r in passes if r.kind == TRAIN]
        speeds.append(len(trained) / (trained[-1].end_s - trained[0].start_s))
    staleness = [s.staleness.mean for s in run.summary.stages[1:]]
    return {"seconds": run.summary.train_seconds, "updates_per_second": speeds, "staleness": staleness}


def errors(virtual: dict[str, Any], ray: dict[str, Any]) -> dict[str, Any]:
    """Relative errors of time and speeds; of staleness the error in updates, and whether it is within the bound."""
    speeds = [v / r - 1 for v, r in zip(virtual["updates_per_second"], ray["updates_per_second"], strict=True)]
    stale = [v - r for v, r in zip(virtual["staleness"], ray["staleness"], strict=True)]
    bounds = [max(0.1 * r, 0.25) for r in ray["staleness"]]
    duration = virtual["seconds"] / ray["seconds"] - 1
    return {
        "seconds": duration,
        "updates_per_second": speeds,
        "staleness": stale,
        "within": {
            "seconds": abs(duration) <= 0.1,
            "updates_per_second": all(abs(s) <= 0.1 for s in speeds),
            "staleness": all(abs(s) <= b for s, b in zip(stale, bounds, strict=True)),
        },
    }


def predict(times: tuple[PassTimes, ...], stages: int, profile: str, batches: int, out: Path) -> dict[str, Any]:
    """The same run in virtual time, without arithmetic."""
    given = json.dumps([t.model_dump() for t in times])
    asyncdgl(
        *["run", *COMMON, "--stages", str(stages), "--delay-profile", profile, "--runtime", "virtual"],
        *["--set", "virtual.train=false", "--set", f"virtual.batches={batches}", "--set", "buffer.prefetch=1"],
        *["--set", f"virtual.step_times={given}", "--out", str(out)],
    )
    return measures(read_run(out))


def main() -> None:
    """For each number of stages: calibrate, then run each profile on Ray and predict it twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the runs")
    parser.add_argument("--stages", type=int, nargs="*", default=STAGES, help="numbers of stages")
    arguments = parser.parse_args()
    data = ["--data-dir", arguments.data_dir]
    results = []
    for stages in arguments.stages:
        base = arguments.out / f"{stages}-stages"
        asyncdgl("run", *COMMON, *data, "--stages", str(stages), "--runtime", "ray", "--out", str(base / "none"))
        reference = read_run(base / "none")
        batches = max(s.updates for s in reference.summary.stages)  # type: ignore[index]
        tree = {**load_yaml(HERE / "config.yaml"), "stages": stages, "runtime": "ray"}
        tree["data"] = {**tree["data"], "data_dir": arguments.data_dir}
        config = planned(parse_config({**tree, "device": "cpu", "precision": "float32", "threads": 1}))
        alone = measure_step_times(config, prepare(config.data), lambda: None)
        ways = {"from a Ray run without delays": calibrated(reference), "measured, all computing": alone}
        shown = {way: [t.model_dump() for t in times] for way, times in ways.items()}
        print(json.dumps({"stages": stages, "step_times": shown}), flush=True)
        results.append({"stages": stages, "step_times": shown, "profiles": []})
        for profile in ("none", *PROFILES):
            if profile != "none":
                asyncdgl(
                    *["run", *COMMON, *data, "--stages", str(stages), "--runtime", "ray"],
                    *["--delay-profile", profile, "--out", str(base / profile)],
                )
            found: dict[str, Any] = {"profile": profile, "ray": measures(read_run(base / profile)), "virtual": {}}
            for number, (way, times) in enumerate(ways.items()):
                virtual = predict(times, stages, profile, batches, base / f"{profile}-virtual-{number}")
                found["virtual"][way] = {**virtual, "errors": errors(virtual, found["ray"])}
            results[-1]["profiles"].append(found)
            print(json.dumps(found), flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    name = "-".join(map(str, arguments.stages))
    (HERE / "results" / f"{name}-stages.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
