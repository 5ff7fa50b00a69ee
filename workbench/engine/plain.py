"""Log-probability entries and tensors as plain data, for states that go to disk.

Used by `state` and `files`, and by the strategies that keep entries of their own.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import torch
from torch import Tensor

from workbench.request import TokenLogprobs

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


def pack_logprobs(entry: TokenLogprobs) -> list[Any]:
    """Return an entry as plain data."""
    return [entry.token_id, entry.logprob, [list(pair) for pair in entry.top]]


def unpack_logprobs(data: list[Any]) -> TokenLogprobs:
    """Return the entry of `pack_logprobs`."""
    token_id, logprob, top = data
    return TokenLogprobs(token_id, logprob, tuple((token, value) for token, value in top))


def pack_tensor(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor of floats on the CPU as plain data, its numbers in base64."""
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {
        "dtype": dtype,
        "shape": list(tensor.shape),
        "data": base64.b64encode(raw).decode("ascii"),
    }


def unpack_tensor(data: dict[str, Any]) -> Tensor:
    """Return the tensor of `pack_tensor`; `KeyError`, `TypeError` or `ValueError` if damaged."""
    dtype, shape = _DTYPES[data["dtype"]], [int(size) for size in data["shape"]]
    raw = bytearray(base64.b64decode(data["data"], validate=True))
    if not raw or min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"a tensor {shape} of {len(raw)} bytes")
    return torch.frombuffer(raw, dtype=dtype).view(shape)
