"""Log-probabilities of chosen tokens, and of the likeliest beside them.

Called by `Sampler` for the rows that asked, and for those alone: with the model's own distribution,
in which neither processing nor temperature nor filters play a part; or with what beams choose from.
"""

from __future__ import annotations

from torch import Tensor

from workbench.request import TokenLogprobs
from workbench.sample.filters import rank


def token_logprobs(logprobs: Tensor, token_ids: Tensor, num_top: list[int]) -> list[TokenLogprobs]:
    """Return what each row reports of its chosen token.

    logprobs: [L, V] float32; token_ids: [L] int64; num_top[i]: how many of the
    likeliest tokens row i lists, likeliest first; the chosen token need not be among them.
    A row without a distribution (NaN, +inf) has NaN for every value.
    """
    chosen = logprobs.gather(1, token_ids[:, None])[:, 0].tolist()
    ids = token_ids.tolist()
    width = max(num_top, default=0)
    if width == 0:
        return [TokenLogprobs(i, value) for i, value in zip(ids, chosen, strict=True)]
    top_ids = rank(logprobs, width)  # [L, width]
    top_values = logprobs.gather(1, top_ids).tolist()
    return [
        TokenLogprobs(token_id, value, tuple(zip(tops[:n], values[:n], strict=True)))
        for token_id, value, tops, values, n in zip(
            ids, chosen, top_ids.tolist(), top_values, num_top, strict=True
        )
    ]
