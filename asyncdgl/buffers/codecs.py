"""Codecs: the writer encodes a mini-batch, the reader decodes it. A buffer never looks inside.

Images are encoded as [B, H, W, C], contiguous, so that they travel and come back channels-last without a copy. Within a
process an entry stays on its device; arrays are what goes to another one.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from asyncdgl.data.batch import Batch
from asyncdgl.errors import ConfigError
from asyncdgl.registry import find

if TYPE_CHECKING:
    from numpy.typing import NDArray

Payload = dict[str, torch.Tensor]
Arrays = dict[str, "NDArray[Any]"]


class Codec(Protocol):
    """Two functions, as static methods of a class, or of a module. ``decode(encode(x))`` has the shape of x.

    The sizes of what it encodes may depend on the shape of x alone: a place in a buffer's memory holds one entry.
    """

    @staticmethod
    def encode(x: torch.Tensor) -> Payload:
        """A stage's output [B, C, H, W], [B, T, D] or [B, D] as tensors by name; the name ``y`` is the labels'."""

    @staticmethod
    def decode(payload: Payload) -> torch.Tensor:
        """The output again, in float32 or bfloat16."""


class Plain:
    """Codec ``none``: keeps every bit."""

    @staticmethod
    def encode(x: torch.Tensor) -> Payload:
        """See ``Codec``."""
        return {"x": _channels_last(x)}

    @staticmethod
    def decode(payload: Payload) -> torch.Tensor:
        """See ``Codec``."""
        return _channels_first(payload["x"])


class BFloat16:
    """Codec ``bf16``: rounded to eight significant bits."""

    @staticmethod
    def encode(x: torch.Tensor) -> Payload:
        """See ``Codec``."""
        return {"x": _channels_last(x.to(torch.bfloat16))}

    @staticmethod
    def decode(payload: Payload) -> torch.Tensor:
        """See ``Codec``."""
        return _channels_first(payload["x"])


class Int8:
    """Codec ``int8``: each channel (C, otherwise D) is scaled so that its largest magnitude is 127.

    The error is at most half a scale.
    """

    @staticmethod
    def encode(x: torch.Tensor) -> Payload:
        """See ``Codec``."""
        values = _channels_last(x.float())
        scale = values.abs().amax(dim=tuple(range(values.dim() - 1))) / 127
        scale[scale == 0] = 1.0
        return {"x": (values / scale).round_().to(torch.int8), "scale": scale}

    @staticmethod
    def decode(payload: Payload) -> torch.Tensor:
        """See ``Codec``."""
        return _channels_first(payload["x"].float() * payload["scale"])


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


@cache
def _codec(name: str) -> Codec:
    codec: Codec = find("codec", name)
    return codec


def encode(codec: str, output: torch.Tensor, y: torch.Tensor) -> Payload:
    """A stage's output [B, ...] and the labels [B], where they are."""
    return {**_codec(codec).encode(output), "y": y}


def decode(codec: str, payload: Payload, number: int, bf16: bool = False, device: str = "cpu") -> Batch:
    """The mini-batch, images channels-last, in float32.

    Args:
        codec: that encoded it.
        payload: what ``encode`` made.
        number: of the mini-batch.
        bf16: whoever computes in bfloat16 anyway takes what came so as it is; the values are the same.
        device: where it is needed.
    """
    there = {name: value.to(device) for name, value in payload.items()}
    y = there.pop("y")
    x = _codec(codec).decode(there)
    return Batch(x if bf16 and x.dtype == torch.bfloat16 else x.float(), y, number)


def payload_bytes(payload: Payload) -> int:
    """The encoded size."""
    return sum(value.nbytes for value in payload.values())


def encoded_bytes(codec: str, shape: tuple[int, ...], bf16: bool) -> int:
    """The encoded size of a whole output [B, ...], labels not included."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return payload_bytes(_codec(codec).encode(x.to(torch.bfloat16) if bf16 else x))


def check_codec(name: str, shape: tuple[int, ...]) -> None:
    """Whether a codec of one's own gives back an output [B, ...] of this shape.

    Raises:
        ConfigError: it does not; the message says what came instead.
    """
    codec, said, sizes = _codec(name), f"codec {name}", set()
    random = torch.Generator().manual_seed(0)
    for x in (torch.zeros(shape), torch.randn(shape, generator=random)):
        try:
            payload = codec.encode(x.clone())
            if not isinstance(payload, dict) or not all(isinstance(value, torch.Tensor) for value in payload.values()):
                raise ConfigError(f"{said}: encode must give tensors by name (a dict), got {type(payload).__name__}")
            if "y" in payload:
                raise ConfigError(f"{said}: the name y is the labels': use another one")
            decoded = codec.decode(payload)
        except ConfigError:
            raise
        except Exception as error:  # a part of the user's may raise anything
            raise ConfigError(f"{said}: fails on an output {list(shape)}: {type(error).__name__}: {error}") from error
        if not isinstance(decoded, torch.Tensor) or decoded.shape != x.shape:
            got = list(decoded.shape) if isinstance(decoded, torch.Tensor) else type(decoded).__name__
            raise ConfigError(f"{said}: decode must give back the shape {list(shape)}, got {got}")
        sizes.add(payload_bytes(payload))
    if len(sizes) > 1:
        raise ConfigError(f"{said}: the encoded size may depend on the shape alone, but {sorted(sizes)} bytes came")


_SENT_AS = {
    getattr(torch, name): kind
    for name, kind in (("bfloat16", torch.int16), ("float8_e4m3fn", torch.uint8), ("float8_e5m2", torch.uint8))
}
"""Types that numpy does not have, and the integers of that size as which they travel."""


def to_arrays(payload: Payload) -> Arrays:
    """For another process. What numpy has no type for travels as integers, with its type in the name."""
    arrays: Arrays = {}
    for name, value in payload.items():
        sent_as = _SENT_AS.get(value.dtype)
        if sent_as is None:
            arrays[name] = value.cpu().numpy()
        else:
            arrays[f"{name}:{str(value.dtype).removeprefix('torch.')}"] = value.view(sent_as).cpu().numpy()
    # The labels may lie in the memory of the buffer they came from, where others are written before these are sent.
    return {**arrays, "y": arrays["y"].copy()}


def from_arrays(arrays: Arrays) -> Payload:
    """From another process, where they lie."""
    payload: Payload = {}
    for sent, array in arrays.items():
        name, _, kind = sent.partition(":")
        tensor = torch.from_numpy(array)
        payload[name] = tensor.view(getattr(torch, kind)) if kind else tensor
    return payload


# An entry in shared memory is read where it lies, from pages that this process can't write. torch warns of that, once.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"0", np.uint8))
