"""Reverb between processes, in the protocol of `ours.py`: dm-reverb 0.14, TensorFlow 2.15, in its own environment."""

from __future__ import annotations

import multiprocessing
import sys
import time
from typing import Any

import numpy as np
import reverb
from protocol import COMPUTES_S, PAUSE_S, Times, made, report

PORT = 47_315


def serve(ready: Any, done: Any) -> None:
    """The server, in a process of its own."""
    table = reverb.Table(
        "t", reverb.selectors.Lifo(), reverb.selectors.Fifo(), max_size=10, rate_limiter=reverb.rate_limiters.MinSize(1)
    )
    server = reverb.Server(tables=[table], port=PORT)
    ready.set()
    done.wait()
    server.stop()


def produce(nbytes: int, pipe: Any) -> None:
    """Inserts one entry for each word."""
    client, payload, step = reverb.Client(f"localhost:{PORT}"), made(nbytes), 0
    while pipe.recv():
        began = time.monotonic()
        client.insert([payload, np.int64(step)], {"t": 1.0})
        pipe.send((began, time.monotonic() - began))
        step += 1


def consume(pipe: Any) -> None:
    """Waits for an entry, samples one, or takes one from a stream that was opened before."""
    client = reverb.Client(f"localhost:{PORT}")

    def take(samples: Any) -> int:
        data = next(samples)[0].data
        np.array(data[0])
        return int(data[1])

    while (order := pipe.recv()) is not None:
        what, number = order
        if what == "wait":
            while take(client.sample("t", 1)) < number:
                pass
            pipe.send(time.monotonic())
        elif what == "sample":
            began = time.monotonic()
            take(client.sample("t", 1))
            pipe.send(time.monotonic() - began)
        else:
            samples = client.sample("t", 2)
            take(samples)  # the stream is open, and fetches the next one
            time.sleep(COMPUTES_S)
            began = time.monotonic()
            take(samples)
            pipe.send(time.monotonic() - began)


def measure(nbytes: int, count: int) -> Times:
    """All four times, ``count`` times each."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    (to_producer, producer_end), (to_consumer, consumer_end) = context.Pipe(), context.Pipe()
    processes = [
        context.Process(target=serve, args=(ready, done)),
        context.Process(target=produce, args=(nbytes, producer_end)),
        context.Process(target=consume, args=(consumer_end,)),
    ]
    processes[0].start()
    ready.wait()
    for process in processes[1:]:
        process.start()
    times = Times()
    for number in range(count + 15):
        to_consumer.send(("wait", number))
        to_producer.send(True)
        began, blocked = to_producer.recv()
        times.blocked.append(blocked)
        times.until_sampled.append(to_consumer.recv() - began)
        time.sleep(PAUSE_S)
        for what, found in (("sample", times.sample), ("ahead", times.sample_ahead)):
            to_consumer.send((what, 0))
            found.append(to_consumer.recv())
    to_producer.send(False)
    to_consumer.send(None)
    done.set()
    for process in processes:
        process.join(20)
        process.kill()
    return times.without_first(15)


if __name__ == "__main__":
    report(measure, sys.argv[1:])
