"""Bitmasks of allowed tokens, and their application to logits on any device.

Called by `mask_logits`, and where drafts are verified. Bit i % 32 of word i // 32 says whether
token i is allowed, as both grammar libraries have it. Rows without a mask are never written.
"""

from __future__ import annotations

import torch
import xgrammar
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
    # By bytes: an eighth of the memory that a test of every bit in int32 would take.
    octets = bitmask.contiguous().view(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    return (octets[:, :, None] & weights).ne(0).flatten(1)[:, :vocab_size]


def apply_bitmask(logits: Tensor, bitmask: Tensor, rows: Tensor | None = None) -> None:
    """Set the logits of tokens that are not allowed to -inf, in place.

    logits: [R, V], any float dtype. bitmask: [G, words] int32 on the same device, at least V bits
    wide. rows: [G] int64, the row of logits that each mask is for, each once; None: mask i is for
    row i, and G is R. All other rows stay as they are, bit for bit.
    """
    assert bitmask.shape[1] >= num_words(logits.shape[1]), "the masks are narrower than the logits"
    assert rows is not None or bitmask.shape[0] == logits.shape[0], "no rows: a mask for every row"
    # The library's loop misreads the rows of a single column.
    usual = logits.dtype == torch.float32 and logits.is_contiguous() and logits.shape[1] > 1
    if logits.device.type == "cpu" and usual:
        _apply_on_cpu(logits, bitmask, rows)
    else:
        apply_bitmask_plain(logits, bitmask, rows)


def apply_bitmask_plain(logits: Tensor, bitmask: Tensor, rows: Tensor | None = None) -> None:
    """Do what `apply_bitmask` does in plain torch: its oracle, and its path on a GPU."""
    # A model's logits are made in inference mode, and only there may they be written.
    with torch.inference_mode():
        forbidden = ~unpack(bitmask, logits.shape[1])
        if rows is None:
            logits.masked_fill_(forbidden, NEVER)
        else:
            logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(forbidden, NEVER))


def _apply_on_cpu(logits: Tensor, bitmask: Tensor, rows: Tensor | None) -> None:
    """Use xgrammar's loop, which is two to seven times as fast as plain torch."""
    width = logits.shape[1]
    if rows is None:
        xgrammar.apply_token_bitmask_inplace(logits, bitmask, vocab_size=width)
        return
    # Its indices name a row of the logits and of the masks alike.
    spread = bitmask.new_zeros(logits.shape[0], bitmask.shape[1]).index_copy_(0, rows, bitmask)
    chosen = rows.tolist()
    xgrammar.apply_token_bitmask_inplace(logits, spread, vocab_size=width, indices=chosen)
