"""Codecs: the writer encodes a mini-batch, the reader decodes it. A buffer never looks inside.

Images are encoded as [B, H, W, C], contiguous, so that they travel and come back channels-last without a copy. Within a
process an entry stays on its device; arrays are what goes to another one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from asyncdgl.data.batch import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Payload = dict[str, torch.Tensor]
Arrays = dict[str, "NDArray[Any]"]


def _nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _encode_none(x: torch.Tensor) -> Payload:
    return {"bf16" if x.dtype == torch.bfloat16 else "float32": _nhwc(x)}


def _encode_bf16(x: torch.Tensor) -> Payload:
    return {"bf16": _nhwc(x.to(torch.bfloat16))}


def _encode_int8(x: torch.Tensor) -> Payload:
    """Each channel is scaled so that its largest magnitude is 127; the error is at most half a scale."""
    values = _nhwc(x.float())
    scale = values.abs().amax(dim=(0, 1, 2)) / 127
    scale[scale == 0] = 1.0
    return {"int8": (values / scale).round_().to(torch.int8), "scale": scale}


ENCODERS: dict[str, Callable[[torch.Tensor], Payload]] = {
    "none": _encode_none,
    "bf16": _encode_bf16,
    "int8": _encode_int8,
}


def encode(codec: str, output: torch.Tensor, y: torch.Tensor) -> Payload:
    """A stage's output [B, C, H, W] and the labels [B], where they are. Codec ``none`` keeps every bit."""
    return {**ENCODERS[codec](output), "y": y}


def decode(payload: Payload, batch: int, bf16: bool = False, device: str = "cpu") -> Batch:
    """The mini-batch, channels-last, in float32.

    Args:
        payload: what ``encode`` made.
        batch: its number.
        bf16: whoever computes in bfloat16 anyway takes what came so as it is; the values are the same.
        device: where it is needed.
    """
    there = {name: value.to(device) for name, value in payload.items()}
    if "float32" in there:
        nhwc = there["float32"]
    elif "bf16" in there:
        nhwc = there["bf16"] if bf16 else there["bf16"].float()
    else:
        nhwc = there["int8"].float() * there["scale"]
    return Batch(nhwc.permute(0, 3, 1, 2), there["y"], batch)


def payload_bytes(payload: Payload) -> int:
    """The encoded size."""
    return sum(value.nbytes for value in payload.values())


def to_arrays(payload: Payload) -> Arrays:
    """For another process. bfloat16 travels as 16-bit integers, since numpy has no such type."""
    arrays = {
        name: (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).cpu().numpy()
        for name, value in payload.items()
    }
    # The labels may lie in the memory of the buffer they came from, where others are written before these are sent.
    return {**arrays, "y": arrays["y"].copy()}


def from_arrays(arrays: Arrays) -> Payload:
    """From another process, where they lie."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: value.view(torch.bfloat16) if name == "bf16" else value for name, value in tensors.items()}


# An entry in shared memory is read where it lies, from pages that this process can't write. torch warns of that, once.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"0", np.uint8))
