"""What a target model makes of windows of text: the states that a head reads, and its own logits.

Called by the training of heads and by `measure_acceptance`. The target runs as the engine runs it,
its own forward with probes; it is never changed and gets no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.batch import Backend
from workbench.layers import probe
from workbench.models import DecoderLM
from workbench.ops import get_backend
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.heads.unrolled import WindowsBackend


@dataclass(frozen=True, slots=True)
class Captured:
    """B windows of n tokens: token_ids [B, n]; states [B, n, sum of widths] of the points asked
    for, side by side; final [B, n, hidden], after the final norm.
    """

    model: DecoderLM
    backend: Backend
    token_ids: Tensor
    states: Tensor
    final: Tensor

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the target's logits [B, n, vocab]."""
        return self.model.logits(self.final, bare_context(self.backend))


@torch.no_grad()
def capture(
    model: DecoderLM, token_ids: Tensor, points: Sequence[str], backend: Backend
) -> Captured:
    """Run the target over windows [B, n], each a text of its own from position 0."""
    windows = WindowsBackend(backend, token_ids.shape[1])
    ctx = windows.context(len(token_ids), model.device)
    token_ids = token_ids.to(model.device)
    with probe(model, points) as seen:
        final = model(token_ids.flatten(), ctx)
    states = torch.cat([seen[point] for point in points], -1) if points else final
    shape = (*token_ids.shape, -1)
    return Captured(model, backend, token_ids, states.view(shape), final.view(shape))


def training_backend(model: DecoderLM) -> Backend:
    """Return a backend that computes gradients on the model's device."""
    return get_backend("sdpa", model.device)
