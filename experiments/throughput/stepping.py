"""The same stages stepping in processes of their own, with nothing between them: what a pipeline can at best reach.

Each line on standard input is a number of seconds; the answer is a line with each stage's updates per second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.plan.resolve import planned

WINDOW = 2
"""Passes that a stage may be ahead of the slowest, as with pace profile."""


def step(config: ResolvedConfig, number: int, turns: Any, changed: Any, barrier: Any, seconds: Any, pipe: Any) -> None:
    """In its own process: one stage learns from one batch again and again, no more than the window ahead."""
    from asyncdgl.learn.arithmetic import set_up_torch
    from asyncdgl.learn.stage import Stage
    from asyncdgl.nets.base import make_stage_net
    from asyncdgl.nets.outputs import block_outputs
    from asyncdgl.nets.shape import cut
    from asyncdgl.plan.balance import stage_input

    set_up_torch(config)
    image = (3, config.data.image_size, config.data.image_size)
    inputs = [image, *block_outputs(config.model, image, 10)]
    first = cut(len(inputs) - 1, config.stages, config.model.cut)[number - 1][0]
    bf16 = config.precision == "bf16"
    stage = Stage(make_stage_net(config, number, image, 10), config.optim, 10**9, config.device, bf16)
    batch = stage_input(config, first + 1, inputs, 10)
    for _ in range(3):
        stage.train(batch)
    paced = config.pace == "profile" and config.stages > 1
    while True:
        barrier.wait()
        began, count = time.monotonic(), 0
        while time.monotonic() - began < seconds.value:
            if paced:
                with changed:
                    while turns[number - 1] > min(turns) + WINDOW:
                        if not changed.wait(0.5):
                            break
            stage.train(batch)
            count += 1
            if paced:
                with changed:
                    turns[number - 1] += 1
                    changed.notify_all()
        pipe.send(count / (time.monotonic() - began))


def main() -> None:
    """Start the stages' processes, then answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    config = planned(parse_config(load_yaml(parser.parse_args().config)))
    context = multiprocessing.get_context("spawn")
    turns, changed = context.Array("l", config.stages, lock=False), context.Condition()
    barrier, seconds = context.Barrier(config.stages + 1), context.Value("d", 0.0)
    pipes = []
    for number in range(1, config.stages + 1):
        ours, theirs = context.Pipe()
        context.Process(
            target=step, args=(config, number, turns, changed, barrier, seconds, theirs), daemon=True
        ).start()
        pipes.append(ours)
    for line in sys.stdin:
        seconds.value = float(line)
        turns[:] = [0] * config.stages
        barrier.wait()
        print(json.dumps([pipe.recv() for pipe in pipes]), flush=True)


if __name__ == "__main__":
    main()
