"""torchrl's RayReplayBuffer between processes, in the protocol of `ours.py`."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray
import torch
from protocol import PAUSE_S, Times, made, report
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, RayReplayBuffer


@ray.remote(num_cpus=0.5)
class Producer:
    """Adds one entry at a time."""

    def __init__(self, buffer: Any, nbytes: int) -> None:
        self.buffer, self.payload, self.step = buffer, made(nbytes), 0

    def insert(self) -> tuple[float, float]:
        """When it began, and how long the producer was blocked."""
        entry = TensorDict({"x": torch.from_numpy(self.payload)[None], "n": torch.tensor([self.step])}, [1])
        self.step += 1
        began = time.monotonic()
        self.buffer.extend(entry)
        return began, time.monotonic() - began


@ray.remote(num_cpus=0.5)
class Consumer:
    """Samples one entry at a time; its buffer holds one, so that the newest is what comes."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def take(self) -> int:
        """The number of a sample, after its data was touched."""
        got = self.buffer.sample(1)
        np.array(got["x"][0].numpy())
        return int(got["n"][0])

    def wait_for(self, number: int) -> float:
        """When entry ``number`` could be used here."""
        while True:
            try:
                if self.take() >= number:
                    return time.monotonic()
            except Exception:  # an empty buffer raises, what exactly depends on the version
                time.sleep(0.001)

    def sample(self) -> float:
        """Seconds of a sample that is asked for now."""
        began = time.monotonic()
        self.take()
        return time.monotonic() - began


def measure(nbytes: int, count: int) -> Times:
    """Three times, ``count`` times each; RayReplayBuffer has no way to ask ahead but a thread of one's own."""
    buffer = RayReplayBuffer(
        storage=lambda: LazyTensorStorage(1), batch_size=1, ray_init_config={"address": "auto", "log_to_driver": False}
    )
    producer, consumer = Producer.remote(buffer.client(), nbytes), Consumer.remote(buffer.client())
    times = Times()
    for number in range(count + 15):
        seen = consumer.wait_for.remote(number)
        began, blocked = ray.get(producer.insert.remote())
        times.blocked.append(blocked)
        times.until_sampled.append(ray.get(seen) - began)
        time.sleep(PAUSE_S)
        times.sample.append(ray.get(consumer.sample.remote()))
    return times.without_first(15)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    report(measure, sys.argv[1:])
    ray.shutdown()
