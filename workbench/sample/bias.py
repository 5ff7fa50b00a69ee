"""`logit_bias`: numbers added to the logits of single tokens; -inf forbids one.

Called by `Processing`. A batch's biases are one indexed addition, from tensors made when the batch
changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.request import Sequence
from workbench.sample.params import to_device


class Bias:
    """The biases of a batch's rows that have any. `arrange` it, then `apply` it every step."""

    def __init__(self) -> None:
        self._where = self._values = torch.empty(0)

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> bool:
        """Take in a batch's sequences, in row order; return whether any has a bias."""
        pairs = [
            (row * vocab_size + token_id, bias)
            for row, sequence in enumerate(sequences)
            for token_id, bias in dict(sequence.request.params.logit_bias).items()
        ]
        if pairs:
            where, values = zip(*pairs, strict=True)
            self._where = to_device(torch.tensor(where), device)
            self._values = to_device(torch.tensor(values, dtype=torch.float32), device)
        return bool(pairs)

    def apply(self, logits: Tensor, failed: dict[int, str]) -> None:
        """Add them in place. logits: [R, V] float32, contiguous. It cannot fail."""
        flat = logits.view(-1)
        flat[self._where] = flat[self._where] + self._values
