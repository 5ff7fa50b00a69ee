"""Examples of a task as tensors: prompt, answer and end token, of which the answer is learnt.

Read by the loop of `workbench.train.lora`. Texts are encoded as the engine encodes a prompt, and
the answer by itself behind it, so that the adapter meets in use what it met in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.data.task_writers import Example
from workbench.models.tokenizer import Tokenizer

IGNORED = -100
"""The label of a position that is not learnt, as cross entropy has it."""


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """ids [examples, tokens], padded behind; labels [examples, tokens]: the next token, or -100."""

    ids: Tensor
    labels: Tensor

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ids and labels [size, tokens] of a step, cut to what its longest text needs.

        A function of seed and step alone. The examples are gone through in a new order each time.
        """
        count = len(self.ids)
        at = torch.arange(step * size, (step + 1) * size)
        orders = {
            round_: torch.randperm(count, generator=torch.Generator().manual_seed(seed + round_))
            for round_ in {i // count for i in at.tolist()}
        }
        rows = torch.stack([orders[i // count][i % count] for i in at.tolist()])
        labels = self.labels[rows]
        width = int((labels != IGNORED).any(0).nonzero().max()) + 1
        return self.ids[rows, :width].to(device), labels[:, :width].to(device)


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer) -> EncodedExamples:
    """Return examples as tensors; the end token closes every answer."""
    end = tokenizer.eos_token_ids[0]
    prompts = tokenizer.hf([example.prompt for example in examples]).input_ids
    answers = tokenizer.hf([e.answer for e in examples], add_special_tokens=False).input_ids
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = np.full((len(examples), width), end)
    labels = np.full((len(examples), width), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        first, last = len(prompt), len(prompt) + len(answer)
        ids[row, :first], ids[row, first:last] = prompt, answer
        labels[row, first - 1 : last] = [*answer, end]
    return EncodedExamples(torch.from_numpy(ids), torch.from_numpy(labels))
