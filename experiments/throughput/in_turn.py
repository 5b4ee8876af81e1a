"""`sim` and a bare PyTorch loop of the same updates in one process, some batches each in turn.

Each line on standard input is an algorithm and how often each makes a few batches; the answer is the two times in
seconds, `sim` first. `sim` reads the data stream and writes its trace; the bare loop has its batches ready. Neither
evaluates.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.data.cache import prepare
from asyncdgl.data.dataset import open_dataset
from asyncdgl.data.stream import make_stream
from asyncdgl.engine.sim import Simulation
from asyncdgl.nets.base import make_networks
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.writer import RunWriter


class Enough(Exception):
    """So many batches were trained."""


class Ours:
    """A run of ``sim`` that stops every few batches and goes on."""

    def __init__(self, config: ResolvedConfig, data: Path, folder: Path) -> None:
        self.passes, self.until = config.trained_stages, 0
        self.turns = 0
        self.simulation = Simulation(config, data, RunWriter(folder), self.check)

    def check(self) -> None:
        """Called before each pass."""
        if self.turns == self.until:
            raise Enough
        self.turns += 1

    def train(self, batches: int) -> None:
        """Go on for so many batches."""
        self.until = self.turns + batches * self.passes
        try:
            self.simulation.run()
        except Enough:
            return
        raise SystemExit("the data are used up: use more epochs")


class Bare:
    """The same networks, optimizer and precision in a plain loop."""

    def __init__(self, config: ResolvedConfig, data: Path) -> None:
        nets = [
            nn.ModuleList(net) for net in make_networks(config, (3, config.data.image_size, config.data.image_size), 10)
        ]
        self.nets = [net.to(device=config.device, memory_format=torch.channels_last) for net in nets]
        self.optimizers = [
            torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True) for net in self.nets
        ]
        stream = make_stream(config, open_dataset(config, data))
        batches = [stream.get(n) for n in range(20)]
        self.batches = [(batch.x.to(config.device), batch.y.to(config.device)) for batch in batches]
        self.device = config.device
        self.bf16, self.number = config.precision == "bf16", 0

    def train(self, batches: int) -> None:
        """So many batches."""
        for _ in range(batches):
            x, y = self.batches[self.number % len(self.batches)]
            self.number += 1
            for (module, aux), optimizer in zip(self.nets, self.optimizers, strict=True):
                with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
                    output = module(x)
                    scores = aux(output)
                    loss = cross_entropy(scores, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                torch.stack((loss.detach(), (scores.argmax(1) == y).sum())).tolist()  # both in one read
                x = output.detach()


BATCHES = 6
"""In a row: little enough for both to meet the same noise."""


def main() -> None:
    """Each line is answered with both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    tree = load_yaml(parser.parse_args().config)
    sides: dict[str, tuple[Ours, Bare]] = {}
    for line in sys.stdin:
        algorithm, turns = line.split()
        if algorithm not in sides:
            here = {"algorithm": algorithm, "runtime": "sim", "epochs": 100, "evaluation": {"every": 100}}
            unused = {"aux"} if algorithm == "backprop" else set()
            model = {key: value for key, value in tree.get("model", {}).items() if key not in unused}
            config = planned(parse_config({**tree, **here, "model": model}))
            data = prepare(config.data)
            sides[algorithm] = Ours(config, data, Path(tempfile.mkdtemp())), Bare(config, data)
            for side in sides[algorithm]:
                side.train(3)
        taken = [0.0, 0.0]
        for turn in range(int(turns)):
            for which in (0, 1) if turn % 2 == 0 else (1, 0):
                began = time.monotonic()
                sides[algorithm][which].train(BATCHES)
                taken[which] += time.monotonic() - began
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
