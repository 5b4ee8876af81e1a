"""Codecs: the writer encodes a mini-batch to arrays, the reader decodes it. A buffer never looks inside.

Arrays are [B, H, W, C], contiguous, so that they travel and come back channels-last without a copy; bfloat16 travels as
16-bit integers, since numpy has no such type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from asyncdgl.batch import ActivationBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Payload = dict[str, "NDArray[Any]"]


def _nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.detach().permute(0, 2, 3, 1).contiguous().cpu()


def _encode_none(x: torch.Tensor) -> Payload:
    if x.dtype == torch.bfloat16:
        return _encode_bf16(x)
    return {"float32": _nhwc(x).numpy()}


def _encode_bf16(x: torch.Tensor) -> Payload:
    return {"bf16": _nhwc(x.to(torch.bfloat16)).view(torch.int16).numpy()}


def _encode_int8(x: torch.Tensor) -> Payload:
    """Each channel is scaled so that its largest magnitude is 127; the error is at most half a scale."""
    values = _nhwc(x.float())
    scale = values.abs().amax(dim=(0, 1, 2)) / 127
    scale[scale == 0] = 1.0
    return {"int8": (values / scale).round_().to(torch.int8).numpy(), "scale": scale.numpy()}


ENCODERS: dict[str, Callable[[torch.Tensor], Payload]] = {
    "none": _encode_none,
    "bf16": _encode_bf16,
    "int8": _encode_int8,
}


def encode(codec: str, output: torch.Tensor, y: torch.Tensor) -> Payload:
    """A stage's output [B, C, H, W] and the labels [B] as arrays. Codec ``none`` keeps every bit."""
    # The labels may lie in the memory of the buffer they came from, where others are written before these are sent.
    return {**ENCODERS[codec](output), "y": y.cpu().numpy().copy()}


def decode(payload: Payload, batch: int, bf16: bool = False) -> ActivationBatch:
    """The mini-batch, channels-last, in float32.

    Args:
        payload: what ``encode`` made.
        batch: its number.
        bf16: whoever computes in bfloat16 anyway takes what came so as it is; the values are the same.
    """
    if "float32" in payload:
        nhwc = _tensor(payload["float32"])
    elif "bf16" in payload:
        nhwc = _tensor(payload["bf16"]).view(torch.bfloat16)
        nhwc = nhwc if bf16 else nhwc.float()
    else:
        nhwc = _tensor(payload["int8"]).float() * _tensor(payload["scale"])
    return ActivationBatch(nhwc.permute(0, 3, 1, 2), _tensor(payload["y"]), batch)


def payload_bytes(payload: Payload) -> int:
    """The size of all arrays."""
    return sum(array.nbytes for array in payload.values())


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array)


# An entry in shared memory is read where it lies, from pages that this process can't write. torch warns of that, once.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _tensor(np.frombuffer(b"0", np.uint8))
