"""How long the passes of each stage take here, all stages computing at once: for the virtual runtime."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import PassTimes
from asyncdgl.errors import StageFailed
from asyncdgl.rundir.trace import FORWARD, TRAIN

if TYPE_CHECKING:
    from asyncdgl.data.dataset import Dataset

MEASURE_S = 2.0
"""How long each kind of pass is measured."""

POLL_S = 0.1


def measure_step_times(config: ResolvedConfig, data: Path, check: Callable[[], None]) -> tuple[PassTimes, ...]:
    """Mean seconds of a pass of each stage, by kind, decoding and encoding included; messages are not.

    Each stage runs in a process of its own, as with ``ray``: first all make training passes at the same time, then all
    forward-only ones.

    Raises:
        StageFailed: a process died.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(config.stages)
    pipes: dict[int, Any] = {}
    processes = []
    try:
        for number in range(1, config.stages + 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=_measure, args=(config, data, number, barrier, theirs), daemon=True)
            process.start()
            theirs.close()  # only the child's end is left: it is seen when it closes
            pipes[number] = ours
            processes.append(process)
        times: dict[int, PassTimes] = {}
        while len(times) < config.stages:
            check()
            for pipe in multiprocessing.connection.wait([p for n, p in pipes.items() if n not in times], POLL_S):
                number = next(n for n, p in pipes.items() if p is pipe)
                try:
                    train, forward = pipes[number].recv()
                except (EOFError, ConnectionError):
                    message = f"stage {number}: its process died while its passes were measured"
                    raise StageFailed(message, f"stage {number}") from None
                times[number] = PassTimes(train=train, forward=forward)
        return tuple(times[number] for number in sorted(times))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _measure(config: ResolvedConfig, data: Path, number: int, barrier: Any, pipe: Any) -> None:
    """In its own process: passes of one stage, all on the same input."""
    from asyncdgl.data.dataset import open_dataset
    from asyncdgl.learn.arithmetic import set_up_torch

    set_up_torch(config)
    one_pass = pass_of(config, open_dataset(config, data), number)
    means = []
    for kind in (TRAIN, FORWARD):
        for _ in range(3):
            one_pass(kind)
        barrier.wait()
        began, taken, count = time.perf_counter(), 0.0, 0
        while time.perf_counter() - began < MEASURE_S:
            start_s = time.perf_counter()
            one_pass(kind)
            taken += time.perf_counter() - start_s
            count += 1
        means.append(taken / count)
        barrier.wait()  # nobody is done while others still measure
    pipe.send(means)


def pass_of(config: ResolvedConfig, dataset: Dataset, number: int) -> Callable[[str], None]:
    """What makes passes of a stage by itself, given their kind; decoding and encoding included."""
    from asyncdgl.buffers.codecs import decode, encode
    from asyncdgl.data.stream import make_stream
    from asyncdgl.learn.stage import make_stages
    from asyncdgl.nets.outputs import block_outputs
    from asyncdgl.nets.shape import cut
    from asyncdgl.plan.balance import stage_input

    [stage] = make_stages(config, dataset, only=number)
    stream = make_stream(config, dataset)
    payload = None
    if number > 1:
        classes = len(dataset.classes)
        inputs = [dataset.input_shape, *block_outputs(config.model, dataset.input_shape, classes)]
        first = cut(len(inputs) - 1, config.stages, config.model.cut)[number - 1][0] + 1
        batch = stage_input(config, first, inputs, classes)
        payload = encode(config.buffer.codec, batch.x, batch.y)

    def one_pass(kind: str) -> None:
        if payload is None:
            batch = stream.get(stage.updates)
        else:
            batch = decode(config.buffer.codec, payload, 0, config.precision == "bf16", config.device)
        output = stage.train(batch).output if kind == TRAIN else stage.forward(batch)
        if number < config.stages:
            encode(config.buffer.codec, output, batch.y)

    return one_pass
