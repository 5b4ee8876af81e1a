"""The data stream, and stage 1 of six stepping alone, one thread: some batches each in turn.

Each line on standard input is a number of batches; the answer is the two times in seconds, the stream's first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.data.cache import prepare
from asyncdgl.data.dataset import open_dataset
from asyncdgl.data.stream import make_stream
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.learn.stage import make_stages
from asyncdgl.plan.resolve import planned


def main() -> None:
    """Each line is answered with both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    config = planned(parse_config(load_yaml(parser.parse_args().config)))
    set_up_torch(config)
    dataset = open_dataset(config, prepare(config.data))
    stream, stage = make_stream(config, dataset), make_stages(config, dataset, only=1)[0]
    batch, number = stream.get(0), 0
    for _ in range(3):
        stage.train(batch)
    for line in sys.stdin:
        began = time.monotonic()
        for _ in range(int(line)):
            batch, number = stream.get(number), number + 1
        between = time.monotonic()
        for _ in range(int(line)):
            stage.train(batch)
        print(json.dumps([between - began, time.monotonic() - between]), flush=True)


if __name__ == "__main__":
    main()
