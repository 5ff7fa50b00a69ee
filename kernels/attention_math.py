"""What the attention kernels share: score functions, the online softmax's end, and the reference.

Scores are kept in base 2: s * log2(e), so that exp2 is the softmax's exponential. `attend` is
attention written as its definition in float32, the oracle of every attention kernel here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def soft_capped(score, cap):
    """Return cap * tanh(score / cap), for scores in base e."""
    # tanh(u) = 1 - 2 / (exp(2u) + 1), exact at both infinities
    return cap * (1.0 - 2.0 / (tl.exp2(score * (2.0 * LOG2E) / cap) + 1.0))


@triton.jit
def with_sink(acc, norm, peak, sink, AXIS: tl.constexpr):
    """Return (acc, norm) with one more key of score `sink` (base 2) and value zero.

    acc's rows or columns (AXIS is the one that is summed over) belong to norm's elements.
    """
    higher = tl.maximum(peak, sink)
    shrink = tl.exp2(peak - higher)
    return acc * tl.expand_dims(shrink, AXIS), norm * shrink + tl.exp2(sink - higher)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    ancestors: Tensor | None = None,
) -> Tensor:
    """Return attention [n, H, D] float32 of the last n of L positions, causal.

    q [n, H, D], k and v [L, K, D]. window: a token sees itself and the window - 1 before it.
    soft_cap: scores become cap * tanh(score / cap). sinks [H]: one more score of a head, whose
    value is zero. alibi [H]: slope times distance is taken off a score. ancestors [n, W] int32: bit
    j % 32 of word j // 32 says whether new token i sees new token j, instead of the causal order.
    """
    num_new, heads, _ = q.shape
    length, kv_heads, _ = k.shape
    if length == 0:
        return torch.zeros_like(q, dtype=torch.float32)
    k, v = (x.float().repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    positions = torch.arange(length, device=q.device)
    parts = []
    for begin in range(0, num_new, 512):  # the scores of a long prompt at once would not fit
        part = q[begin : begin + 512].float()
        own = length - num_new + begin + torch.arange(len(part), device=q.device)
        seen = positions <= own[:, None]
        if ancestors is not None:
            seen = _tree_mask(ancestors[begin : begin + 512], length - num_new, length)
        if window is not None:
            seen &= positions > own[:, None] - window
        scores = torch.einsum("nhd,lhd->hnl", part, k) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        if alibi is not None:
            scores -= alibi.float()[:, None, None] * (own[:, None] - positions).abs()
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            extra = sinks.float()[:, None, None].expand(-1, len(part), 1)
            weights = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        parts.append(torch.einsum("hnl,lhd->nhd", weights, v))
    return torch.cat(parts) if parts else torch.zeros_like(q, dtype=torch.float32)


def _tree_mask(words: Tensor, num_old: int, length: int) -> Tensor:
    """Return [n, length] bool: all old positions, and the new ones whose bit is set."""
    new = torch.arange(length - num_old, device=words.device)
    bits = (words[:, new // 32] >> (new % 32)) & 1
    old = torch.ones((len(words), num_old), dtype=torch.bool, device=words.device)
    return torch.cat((old, bits.bool()), dim=1)
