"""`TensorTable`: tensors by name with the face of a safetensors file.

What was translated from another layout is read on as if a file had held it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}
_CODES[torch.bfloat16] = "BF16"


class _Header(NamedTuple):
    """A tensor's shape and dtype, as safetensors tells them."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return _CODES.get(self.tensor.dtype, str(self.tensor.dtype))


class TensorTable(dict[str, Tensor]):
    """Tensors by name, with the face of a safetensors file."""

    def get_slice(self, name: str) -> _Header:
        """Return what says a tensor's shape and dtype."""
        return _Header(self[name])

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor."""
        return self[name]
