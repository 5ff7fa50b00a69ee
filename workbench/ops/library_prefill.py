"""Torch's own attention (cuDNN, FlashAttention) for prompts that are whole in a step.

Their keys are the step's new tokens, so nothing is read from the paged cache. Rows of equal length
that follow each other go in one call. Used by the Triton backend where it was measured to be
faster, or where it was asked for (`backend="triton+sdpa"`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not the one that writes out the scores: for a long prompt these would not fit.
FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
_HALVES = (torch.bfloat16, torch.float16)


def why_not(q: Tensor, window: int | None) -> str:
    """Return why torch's fused attention cannot take these queries [T, H, D]; empty if it can."""
    if window is not None:
        return "it has no sliding window"
    if q.device.type == "cuda" and q.dtype not in _HALVES:
        return f"it takes no {str(q.dtype).removeprefix('torch.')} on a GPU"
    if q.device.type == "cuda" and (q.shape[2] > 256 or q.shape[2] % 8):
        return f"it takes no heads of {q.shape[2]}"
    return ""


def attend_whole_prompts(
    q: Tensor, k: Tensor, v: Tensor, lens: list[int], first: int, scale: float, out: Tensor
) -> None:
    """Attend causally from rows of these lengths, packed from token `first` on, into out [T, H, D].

    q [T, H, D]; k, v [T, K, D]. Raises torch's `RuntimeError` where no fused kernel takes them.
    """
    fused = sdpa_kernel(FUSED, set_priority=True) if q.device.type == "cuda" else nullcontext()
    with fused:
        for tokens, length in _runs(lens, first):
            queries, keys, values = (
                x[tokens].view(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
            )
            mixed = F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
            )
            out[tokens] = mixed.transpose(1, 2).flatten(0, 1)


def _runs(lens: list[int], first: int) -> Iterator[tuple[slice, int]]:
    """Yield the tokens of each run of equal lengths, and that length."""
    for length, run in groupby(lens):
        count = len(list(run)) * length
        if count:
            yield slice(first, first + count), length
        first += count
