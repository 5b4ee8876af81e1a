"""asyncdgl's replay buffer between processes: a producer's insert, and a consumer's sample."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray
import torch
from protocol import COMPUTES_S, PAUSE_S, Times, made, report

from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.config.yaml import parse_config
from asyncdgl.on_ray.buffer import BufferActor
from asyncdgl.on_ray.ends import Inbox, Outbox
from asyncdgl.plan.resolve import planned

CONFIG = {"runtime": "ray", "stages": 2, "pace": "free", "buffer": {"size": 10, "sampler": "lifo"}}


@ray.remote(num_cpus=0.5)
class Producer:
    """Inserts as a stage does: without waiting for the buffer."""

    def __init__(self, buffer: Any, nbytes: int) -> None:
        self.out = Outbox(planned(parse_config(CONFIG)), buffer, PassName(1, 0, 0))
        self.values, self.step = torch.from_numpy(made(nbytes)), 0
        self.payload = {"values": self.values, "y": torch.arange(8)}

    def insert(self) -> tuple[float, float]:
        """When it began, and how long the producer was blocked."""
        source = Provenance(PassName(1, 0, self.step), self.step, True, self.step)
        self.step += 1
        self.values[0] = self.step % 251
        began = time.monotonic()
        self.out.send(Entry(source, self.payload, self.values.nbytes), 0.0, 1.0)
        return began, time.monotonic() - began


@ray.remote(num_cpus=0.5)
class Consumer:
    """Samples as a stage does, and copies what it got."""

    def __init__(self, buffer: Any) -> None:
        self.inbox = Inbox(buffer, 2)

    def take(self) -> tuple[int, np.ndarray]:
        """Number and data of the next sample; -1 where there is none yet."""
        reply = self.inbox.take(0.0)
        if reply.sample is None:
            return -1, np.empty(0)
        sample = self.inbox.read(reply.sample)
        return sample.source.batch, sample.payload["values"].numpy().copy()

    def wait_for(self, number: int) -> float:
        """When entry ``number`` could be used here."""
        while self.take()[0] < number:
            pass
        return time.monotonic()

    def sample(self) -> float:
        """Seconds of a sample that is asked for now."""
        began = time.monotonic()
        self.take()
        return time.monotonic() - began

    def sample_ahead(self) -> float:
        """Seconds of a sample that was asked for while this process did something else."""
        self.inbox.fetch(0.0, 1)
        time.sleep(COMPUTES_S)
        began = time.monotonic()
        self.take()
        return time.monotonic() - began


def measure(nbytes: int, count: int) -> Times:
    """All four times, ``count`` times each."""
    config = planned(parse_config(CONFIG))
    buffer = ray.remote(BufferActor).options(num_cpus=0.05, max_concurrency=1000).remote(config, 1, "pace", {}, 16)
    producer, consumer = Producer.remote(buffer, nbytes), Consumer.remote(buffer)
    times = Times()
    for number in range(count + 15):
        seen = consumer.wait_for.remote(number)
        began, blocked = ray.get(producer.insert.remote())
        times.blocked.append(blocked)
        times.until_sampled.append(ray.get(seen) - began)
        time.sleep(PAUSE_S)
        times.sample.append(ray.get(consumer.sample.remote()))
        times.sample_ahead.append(ray.get(consumer.sample_ahead.remote()))
    for actor in (producer, consumer, buffer):
        ray.kill(actor)
    return times.without_first(15)  # until the buffer is full and its memory was used once


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    report(measure, sys.argv[1:])
    ray.shutdown()
