"""The curves themselves: test accuracy of each head after each of its stage's epochs, parallel and sequential."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asyncdgl.report.style import our_style, save
from asyncdgl.sweeps.measures import Estimate, estimate
from asyncdgl.sweeps.results import load_sweep

HERE = Path(__file__).parent
TITLES = {
    "sync-dgl": "parallel (synchronous DGL)",
    "async-dgl": "parallel (asynchronous DGL)",
    "sequential-dgl": "sequential greedy",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vP"
Curves = dict[str, dict[int, dict[int, Estimate]]]


def curves(folder: Path) -> Curves:
    """For each algorithm and head, the accuracy after each epoch over the seeds."""
    found: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for run in load_sweep(folder).runs:
        if run.summary is None:
            continue
        for line in (json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()):
            if line["kind"] != "evaluation":
                continue
            for head, accuracy in enumerate(line["test_accuracy"], 1):
                # One after the other: a head is looked at while its own stage trains.
                if line["stage"] in (None, head):
                    found[run.values["algorithm"], head, line["epoch"]].append(accuracy)
    result: Curves = {}
    for (algorithm, head, epoch), values in sorted(found.items()):
        result.setdefault(algorithm, {}).setdefault(head, {})[epoch] = estimate(values)
    return result


def draw(of: Curves) -> Figure:
    """A panel for each algorithm, a line for each head, bars the 95 % intervals."""
    figure = Figure(figsize=(3.4 * len(of), 3.4), layout="constrained")
    panels: Any = figure.subplots(1, len(of), sharey=True, squeeze=False)[0]
    for axes, algorithm in zip(panels, (name for name in TITLES if name in of), strict=True):
        for head, by_epoch in of[algorithm].items():
            means = [e.mean for e in by_epoch.values()]
            halves = [(e.high or e.mean) - e.mean for e in by_epoch.values()]
            axes.errorbar(
                [epoch + 0.04 * (head - 2) for epoch in by_epoch],
                means,
                halves,
                color=COLOURS[head - 1],
                marker=MARKERS[head - 1],
                capsize=2,
                label=f"head {head}",
            )
        axes.set(title=TITLES[algorithm], xlabel="own epochs of the stage")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    panels[-1].legend(loc="lower right", frameon=False)
    return figure


def main() -> None:
    """Draw the curves of a finished sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    with our_style():
        paths = save(draw(curves(parser.parse_args().sweep)), HERE / "figures", "curves", ("pdf", "svg", "png"))
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
