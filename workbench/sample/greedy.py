"""The likeliest token of each row of logits, found quickly on every device.

On a CPU numpy's search is vector code where torch's is not: 8 µs against 217 for 16 rows of 4096 in
bfloat16. Called by the sampler once a step, and by the verifier of drafts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

INVALID = -1  # stands for a token on its way to the host, where a row had no distribution
_WIDENED = (torch.bfloat16, torch.float16)  # numpy lacks the first and is slow in the second


def argmax(logits: Tensor) -> Tensor:
    """Return [R] int64: the first largest column of each row of logits [R, V]; NaN counts as it.

    The same on both paths, since widening to float32 is exact.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    wide = logits.float() if logits.dtype in _WIDENED else logits
    return torch.from_numpy(wide.numpy(force=True).argmax(axis=-1))


def likeliest(logits: Tensor) -> Tensor:
    """Return what `argmax` does, with `INVALID` for a row that has NaN, +inf, or -inf alone."""
    if logits.device.type != "cpu":
        best = argmax(logits)[:, None]
        # argmax finds NaN before anything else, so its value tells all about the row.
        return best.where(logits.gather(1, best).isfinite(), INVALID)[:, 0]
    wide = (logits.float() if logits.dtype in _WIDENED else logits).numpy(force=True)
    tokens = wide.argmax(axis=-1)
    tokens[~np.isfinite(wide[np.arange(len(wide)), tokens])] = INVALID
    return torch.from_numpy(tokens)
