"""The same training as such scripts usually do it: float32, default memory format, one image at a time by torchvision.

Each line on standard input is a number of seconds; the answer is images per second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import transforms

from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.data.cache import prepare
from asyncdgl.data.store import open_cached
from asyncdgl.nets.base import make_networks
from asyncdgl.plan.resolve import planned

WORKERS = 2


class Images(torch.utils.data.Dataset[Any]):
    """Decoded images in memory, as torchvision's CIFAR10 keeps them."""

    def __init__(self, x: Any, y: Any, mean: Any, std: Any) -> None:
        self.x, self.y = x, y
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.x[index])), int(self.y[index])


def main() -> None:
    """Algorithm 1 in one process, a batch for each line's seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    config = planned(parse_config(load_yaml(parser.parse_args().config)))
    torch.set_num_threads(config.threads)
    cached = open_cached(prepare(config.data))
    images = Images(cached.train_x, cached.train_y, config.data.mean, config.data.std)
    loader = torch.utils.data.DataLoader(
        images, config.batch_size, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
    )
    nets = [
        nn.ModuleList(net) for net in make_networks(config, (3, config.data.image_size, config.data.image_size), 10)
    ]
    optimizers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4) for net in nets]

    def endless() -> Any:
        while True:
            yield from loader

    batches = endless()
    for line in sys.stdin:
        next(batches)
        began, count = time.monotonic(), 0
        while time.monotonic() - began < float(line):
            x, y = next(batches)
            for (module, aux), optimizer in zip(nets, optimizers, strict=True):
                output = module(x)
                loss = cross_entropy(aux(output), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
                x = output.detach()
            count += len(y)
        print(json.dumps(count / (time.monotonic() - began)), flush=True)


if __name__ == "__main__":
    main()
