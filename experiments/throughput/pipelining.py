"""Backpropagation through the same network in two processes: torch.distributed.pipelining, 1F1B, gloo.

Each line on standard input is a number of seconds and a number of microbatches; the answer is images per second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.functional import cross_entropy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.nets.base import make_networks
from asyncdgl.plan.resolve import planned


class Part(nn.Module):
    """A part of the network, in the run's precision. Between parts lies [B, H, W, C], contiguous as gloo wants it."""

    def __init__(self, net: nn.Module, rank: int, bf16: bool) -> None:
        super().__init__()
        self.net, self.rank, self.bf16 = net, rank, bf16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The part's output."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            if self.rank == 0:
                return self.net(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).contiguous()
            return self.net(x.permute(0, 3, 1, 2))


def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return cross_entropy(scores.float(), labels)


def learn(rank: int, config: ResolvedConfig, port: int, orders: Any, answers: Any) -> None:
    """In its own process: one part of the network, trained with the other."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(config.threads)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    nets = make_networks(config, (3, config.data.image_size, config.data.image_size), 10)
    bf16 = config.precision == "bf16"
    own = [nn.Sequential(nets[0].module), nn.Sequential(nets[1].module, nets[1].aux)][rank]
    part = Part(own.to(memory_format=torch.channels_last), rank, bf16)
    optimizer = torch.optim.SGD(part.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    x, y = torch.randn(config.batch_size, 3, 32, 32), torch.arange(config.batch_size) % 10
    schedules: dict[int, Any] = {}

    def step(microbatches: int) -> None:
        if microbatches not in schedules:
            stage = PipelineStage(part, rank, 2, torch.device("cpu"))
            schedules[microbatches] = Schedule1F1B(
                stage, microbatches, loss_fn=lambda s, t: cross_entropy(s.float(), t)
            )
        optimizer.zero_grad()
        if rank == 0:
            schedules[microbatches].step(x)
        else:
            schedules[microbatches].step(target=y, losses=[])
        optimizer.step()

    while (order := orders[rank].get()) is not None:
        seconds, microbatches = order
        for _ in range(2):
            step(microbatches)
        dist.barrier()
        began, count, go = time.monotonic(), 0, torch.ones(1)
        while go.item():
            step(microbatches)
            count += 1
            go[0] = time.monotonic() - began < seconds
            dist.broadcast(go, 0)  # both make the same number of steps
        if rank == 0:
            answers.put(count * config.batch_size / (time.monotonic() - began))
    dist.destroy_process_group()


def main() -> None:
    """Start both processes, then answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    config = planned(parse_config(load_yaml(parser.parse_args().config)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    orders, answers = [context.Queue(), context.Queue()], context.Queue()
    for rank in range(2):
        context.Process(target=learn, args=(rank, config, port, orders, answers), daemon=True).start()
    for line in sys.stdin:
        seconds, microbatches = line.split()
        for queue in orders:
            queue.put((float(seconds), int(microbatches)))
        print(json.dumps(answers.get()), flush=True)


if __name__ == "__main__":
    main()
