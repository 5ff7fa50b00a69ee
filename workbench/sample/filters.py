"""Temperature, top-k, top-p and min-p as pure functions on [R, V] tensors, applied in this order.

Called by `Sampler`; a notebook can call each alone. Probabilities are fixed-point integers, called
weights: a sum of integers is exact in any order, so what a filter keeps never depends on the batch,
on padding or on how a device adds. Nothing here draws a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The weight of a row's likeliest token. A token below 2^-40 of it gets weight 0 and is never drawn:
# at most V * 2^-40 of the probability, 1e-7 for 128k tokens. Rows of 2^22 tokens sum to 2^62 at
# most.
ONE = 2**40


def rank(logits: Tensor, width: int | None = None) -> Tensor:
    """Return the ids of the `width` likeliest tokens, likeliest first: [R, width] int64.

    logits: [R, V] float32; a width of None, or of V and more, ranks all. Tokens of equal logits go
    by id, lower first, so a longer list always begins with the shorter one.
    """
    vocab_size = logits.shape[1]
    if width is None or width >= vocab_size:
        return logits.sort(dim=1, descending=True, stable=True).indices
    # torch.topk orders equal values as it likes; a key of value and id has no equals. Adding 0
    # turns -0 into 0; a negative float's bits sort backwards until all but the sign are flipped.
    bits = (logits + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    low = torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    keys = (ordered.to(torch.int64) << 32) | low
    return keys.topk(width, dim=1).indices


def temperature(logits: Tensor, temperatures: Tensor, peak: Tensor | None = None) -> Tensor:
    """Return the weights of softmax(logits / temperature): [R, W] int64, the likeliest has `ONE`.

    logits: [R, W], -inf for impossible tokens. temperatures: [R, 1] float32 above 0, as small as
    one likes. peak: [R, 1], each row's largest logit, where it is known. A row that holds NaN or
    +inf, or nothing above -inf, has no distribution: the caller sees that in its peak.
    """
    logits = logits.float()
    peak = logits.amax(dim=1, keepdim=True) if peak is None else peak
    # Subtract first: then a tiny temperature gives -inf and 0, never inf - inf.
    bounds = torch.finfo(torch.float32)
    relative = (logits - peak) / temperatures.clamp(bounds.tiny, bounds.max)
    return relative.exp_().mul_(ONE).to(torch.int64)


def top_k(weights: Tensor, ks: Tensor) -> Tensor:
    """Keep each row's k likeliest tokens; of equal ones, those of lower id.

    weights: [R, W] in `rank` order; ks: [R, 1] int64 of 1 or more, also beyond W.
    """
    position = torch.arange(weights.shape[1], device=weights.device)
    return weights.masked_fill(position >= ks, 0)


def top_p(weights: Tensor, ps: Tensor, total: Tensor | None = None) -> Tensor:
    """Keep each row's smallest set of likeliest tokens whose probability reaches p.

    weights: [R, W] in `rank` order; ps: [R, 1] float64 in (0, 1]. Probability is relative to
    `total`, [R, 1] int64 (None: the row's own sum, so what an earlier filter dropped does not
    count). At least the first token stays.
    """
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:] if total is None else total
    likelier = cumulative - weights
    return weights.masked_fill(likelier >= ps * total, 0)


def min_p(weights: Tensor, ps: Tensor) -> Tensor:
    """Drop tokens less likely than p times the likeliest.

    weights: [R, W] in any order; ps: [R, 1] float64 in [0, 1].
    """
    return weights.masked_fill(weights < ps * weights.amax(dim=1, keepdim=True), 0)
