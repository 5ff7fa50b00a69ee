"""Bitmasks of allowed tokens, and their application to logits on any device.

Called by the sampler's guides, and where drafts are verified. Bit i % 32 of word i // 32 says
whether token i is allowed, as both grammar libraries have it. Rows without a mask are never
written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEVER = float("-inf")


def num_words(vocab_size: int) -> int:
    """Return the int32 words of one row's mask."""
    return (vocab_size + 31) // 32


def allocate_bitmask(num_rows: int, vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Return masks [num_rows, words] int32 on the CPU that allow nothing yet.

    device: where the masks will go; for CUDA the memory is pinned, so that the copy waits for
    nothing.
    """
    pinned = device is not None and device.type == "cuda"
    return torch.zeros(num_rows, num_words(vocab_size), dtype=torch.int32, pin_memory=pinned)


def unpack(bitmask: Tensor, vocab_size: int) -> Tensor:
    """Return masks [G, words] int32 as booleans [G, vocab_size]: whether a token is allowed."""
    assert bitmask.dtype == torch.int32, "a mask is made of int32 words"
    if bitmask.device.type == "cpu":
        octets = bitmask.contiguous().numpy().view(np.uint8)
        bits = np.unpackbits(octets, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    return unpack_plain(bitmask, vocab_size)


def unpack_plain(bitmask: Tensor, vocab_size: int) -> Tensor:
    """Do what `unpack` does in plain torch: its oracle, and its path on a GPU."""
    # By bytes: an eighth of the memory that a test of every bit in int32 would take.
    octets = bitmask.contiguous().view(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    return (octets[:, :, None] & weights).ne(0).flatten(1)[:, :vocab_size]


def single_bit(bitmask: Tensor, vocab_size: int) -> list[bool]:
    """Return, for each mask of [G, words] int32 on the CPU, whether it allows just one token."""
    words = bitmask.numpy().view(np.uint32)[:, : num_words(vocab_size)]
    if vocab_size % 32:  # what lies behind the vocabulary says nothing
        words = words.copy()
        words[:, -1] &= np.uint32((1 << vocab_size % 32) - 1)
    found = (words != 0).sum(axis=1) == 1
    for row in np.flatnonzero(found):
        word = int(words[row].max())
        found[row] = word & (word - 1) == 0
    return [bool(one) for one in found]


def apply_bitmask(logits: Tensor, bitmask: Tensor, rows: Tensor | None = None) -> None:
    """Set the logits of tokens that are not allowed to -inf, in place.

    logits: [R, V], any float dtype. bitmask: [G, words] int32 on the same device, at least V bits
    wide. rows: [G] int64, the row of logits that each mask is for, each once; None: mask i is for
    row i, and G is R. All other rows stay as they are, bit for bit.
    """
    vocab_size = logits.shape[1]
    assert bitmask.shape[1] >= num_words(vocab_size), "the masks are narrower than the logits"
    assert rows is not None or bitmask.shape[0] == logits.shape[0], "no rows: a mask for every row"
    # A model's logits are made in inference mode, and only there may they be written.
    with torch.inference_mode():
        forbidden = ~unpack(bitmask, vocab_size)
        if rows is None:
            logits.masked_fill_(forbidden, NEVER)
        else:
            logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(forbidden, NEVER))
