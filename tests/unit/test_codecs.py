"""Codecs: what a writer encodes, a reader decodes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from asyncdgl.buffers.codecs import Arrays, decode, encode, from_arrays, payload_bytes, to_arrays
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.base import make_stage_net
from asyncdgl.registry import choices

pytestmark = pytest.mark.usefixtures("one_thread")

Y = torch.arange(6)

CODECS = choices("codec")

LAYOUTS = [
    pytest.param(torch.channels_last, id="channels-last"),
    pytest.param(torch.contiguous_format, id="channels-first"),
]


def activations(memory_format: torch.memory_format = torch.channels_last, channels: int = 5) -> torch.Tensor:
    """[6, C, 4, 3]: channels of very different size, the third all zero."""
    x = torch.randn(6, channels, 4, 3, generator=torch.Generator().manual_seed(1))
    x *= 10.0 ** torch.arange(-2, channels - 2)[:, None, None]
    x[:, 2] = 0
    x[3, 0, 1, 1] = -1.0  # the largest magnitude of a channel may be negative
    return x.contiguous(memory_format=memory_format)


def test_the_codecs_are_the_documented_ones() -> None:
    assert set(CODECS) == {"none", "bf16", "int8"}


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_none_keeps_every_bit(dtype, memory_format) -> None:
    x = activations(memory_format).to(dtype)
    payload = encode("none", x, Y)
    assert torch.equal(decode("none", payload, 0).x, x.float())
    assert payload_bytes(payload) == x.numel() * x.element_size() + 8 * len(Y)


def test_none_keeps_every_float32() -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-45, torch.finfo(torch.float32).max, 1 + 2**-23])
    x = special.reshape(7, 1, 1, 1)
    decoded = decode("none", encode("none", x, torch.arange(7)), 0).x
    assert decoded.contiguous().numpy().tobytes() == x.numpy().tobytes()


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_bf16_rounds_to_the_nearest(memory_format) -> None:
    x = activations(memory_format)
    decoded = decode("bf16", encode("bf16", x, Y), 0).x
    assert torch.equal(decoded, x.to(torch.bfloat16).float())
    # Eight significant bits: the error is at most half of the last one.
    assert ((decoded - x).abs() <= x.abs() * 2**-8).all()
    assert (decoded != x).any()


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_int8_is_off_by_at_most_half_a_scale_of_its_channel(dtype, memory_format) -> None:
    x = activations(memory_format).to(dtype)
    payload = encode("int8", x, Y)
    decoded = decode("int8", payload, 0).x
    largest = x.float().abs().amax(dim=(0, 2, 3))
    error = (decoded - x.float()).abs().amax(dim=(0, 2, 3))
    assert (error <= largest / 127 / 2 * (1 + 1e-5)).all()
    assert (error[largest > 0] > 0).all()
    assert payload["x"].min() == -127
    assert payload["x"].max() == 127


def test_int8_of_a_zero_channel_is_zero() -> None:
    payload = encode("int8", activations(), Y)
    assert not decode("int8", payload, 0).x[:, 2].any()
    assert (payload["scale"] > 0).all()  # dividing by 0 would make whatever the machine makes of it


def arrays_of(codec: str, memory_format: torch.memory_format = torch.channels_last) -> Arrays:
    return to_arrays(encode(codec, activations(memory_format), Y))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_arrays_are_nhwc_and_contiguous(codec, memory_format) -> None:
    arrays = arrays_of(codec, memory_format)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes.pop("x:bfloat16" if codec == "bf16" else "x") == (6, 4, 3, 5)
    assert shapes.pop("y") == (6,)
    assert shapes == ({"scale": (5,)} if codec == "int8" else {})
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert arrays["y"].dtype == np.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("codec", CODECS)
def test_what_another_process_reads_has_the_same_bits(codec, dtype) -> None:
    payload = encode(codec, activations().to(dtype), Y)
    arrays = to_arrays(payload)
    assert sum(array.nbytes for array in arrays.values()) == payload_bytes(payload)
    read = from_arrays({name: array.copy() for name, array in arrays.items()})
    assert read.keys() == payload.keys()
    for name, value in payload.items():
        assert (read[name].dtype, read[name].stride()) == (value.dtype, value.stride())
        assert torch.equal(read[name], value)


@pytest.mark.parametrize("codec", CODECS)
def test_decoded_is_float32_channels_last_with_its_labels(codec) -> None:
    batch = decode(codec, encode(codec, activations(), Y), 17)
    assert batch.x.shape == (6, 5, 4, 3)
    assert batch.x.dtype == torch.float32
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.y, Y)
    assert batch.number == 17


@pytest.mark.parametrize("codec", CODECS)
def test_read_only_arrays_are_read_where_they_lie_and_nobody_is_warned(codec) -> None:
    arrays = arrays_of(codec)
    for array in arrays.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = decode(codec, from_arrays(arrays), 0, bf16=True)
    assert batch.y.data_ptr() == arrays["y"].ctypes.data
    if codec != "int8":  # whose values are computed
        values = next(array for name, array in arrays.items() if name != "y")
        assert batch.x.data_ptr() == values.ctypes.data


@pytest.mark.parametrize("codec", CODECS)
def test_labels_that_are_handed_on_are_copied(codec) -> None:
    """A stage hands on the labels that it read, perhaps when their place in the buffer's memory was used again."""
    arrays = arrays_of(codec)
    batch = decode(codec, from_arrays(arrays), 0)
    assert not np.shares_memory(to_arrays(encode(codec, batch.x, batch.y))["y"], arrays["y"])


def test_within_a_process_nothing_is_copied() -> None:
    x = activations()
    assert decode("none", encode("none", x, Y), 0).x.data_ptr() == x.data_ptr()


def test_encoding_takes_no_part_in_gradients() -> None:
    x = activations().requires_grad_()
    assert not decode("none", encode("none", x, Y), 0).x.requires_grad


@pytest.mark.parametrize("codec", ["none", "bf16"])
def test_a_stage_in_bfloat16_learns_the_same_from_values_that_stayed_bfloat16(small_config, codec) -> None:
    config = small_config(stages=2, precision="bf16", model={"blocks": 2, "width": 16, "downsample": [2]})
    x = torch.randn(4, 16, 8, 8).to(torch.bfloat16)
    payload = encode(codec, x, torch.arange(4))
    assert decode(codec, payload, 0, bf16=True).x.dtype == torch.bfloat16
    hashes = set()
    for bf16 in (False, True):
        stage = Stage(make_stage_net(config, 2, (1, 8, 8), 10), config.optim, 10, bf16=True)
        for _ in range(3):
            stage.train(decode(codec, payload, 0, bf16))
        hashes.add(stage.state_sha256())
    assert len(hashes) == 1


@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 5)], ids=["B-T-D", "B-D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("codec", CODECS)
def test_outputs_without_pixels(codec, dtype, shape) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 10.0 ** torch.arange(-2, 3)
    x = x.to(dtype)
    payload = encode(codec, x, Y)
    batch = decode(codec, from_arrays(to_arrays(payload)), 3)
    assert (batch.x.shape, batch.x.dtype, batch.number) == (x.shape, torch.float32, 3)
    assert torch.equal(batch.y, Y)
    largest = x.float().abs().amax(dim=tuple(range(x.dim() - 1)))
    error = (batch.x - x.float()).abs().amax(dim=tuple(range(x.dim() - 1)))
    if codec == "none" or (codec == "bf16" and dtype == torch.bfloat16):
        assert not error.any()
    elif codec == "bf16":
        assert (error > 0).all()
        assert (error <= largest * 2**-8).all()
    else:  # a scale for each of the last dimension
        assert payload["scale"].shape == (5,)
        assert ((error > 0) & (error <= largest / 127 / 2 * (1 + 1e-5))).all()


@pytest.mark.usefixtures("own_parts")
def test_a_codec_of_ones_own_travels_with_its_types() -> None:
    payload = encode("own_parts:Float8", activations(), Y)
    arrays = to_arrays(payload)
    assert {name: array.dtype for name, array in arrays.items()} == {"small:float8_e4m3fn": np.uint8, "y": np.int64}
    read = from_arrays({name: array.copy() for name, array in arrays.items()})
    assert read["small"].dtype == torch.float8_e4m3fn
    expected = activations().to(torch.float8_e4m3fn).float()
    assert torch.equal(decode("own_parts:Float8", read, 0).x, expected)
