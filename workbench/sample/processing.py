"""`Processing`: everything that changes logits before a token is chosen, in one order.

    whole-batch processors ─► logits_processors ─► repetition, presence and frequency penalties
    ─► logit_bias ─► bad_words, no_repeat_ngram_size, min_tokens ─► guide

Called by `Sampler`, which keeps one. Each stage touches only the rows that use it, and a batch
without any is passed through as it came. A row that fails says why; its neighbours never notice.
For a sequence with a chooser the logits are log-probabilities from the start, and stay as processed
without being normalised again: beam search adds them up, and transformers' does just so.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from workbench.request import Sequence
from workbench.sample.bias import Bias
from workbench.sample.forbidden import Forbidden
from workbench.sample.guides import Guides
from workbench.sample.params import to_device
from workbench.sample.penalties import Penalties, penalized
from workbench.sample.user_code import BatchProcessor, UserProcessors, apply_to_batch, name_of
from workbench.sampling_params import SamplingParams

_DEFAULT = SamplingParams()


class Stage(Protocol):
    """One kind of change, for the rows of a batch that ask for it."""

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> bool:
        """Take in a batch's sequences, in row order; return whether any needs the stage."""

    def apply(self, logits: Tensor, failed: dict[int, str]) -> None:
        """Change logits [R, V] (float32, contiguous) in place; `failed` gets errors by row."""


class Processing:
    """The stages, and the batch they are arranged for."""

    def __init__(self, processors: tuple[BatchProcessor, ...] = ()) -> None:
        self.processors = processors
        self._guides = Guides()
        self._stages: tuple[Stage, ...] = (
            UserProcessors(),
            Penalties(),
            Bias(),
            Forbidden(),
            self._guides,
        )
        self._active: list[Stage] = []
        self._beams: Tensor | None = None  # rows whose sequence has a chooser

    @property
    def idle(self) -> bool:
        """Whether the batch's logits pass through as they come."""
        return not self._active and not self.processors and self._beams is None

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> None:
        """Read the parameters of a batch; needed before its first call, and after any failure."""
        beams = [row for row, s in enumerate(sequences) if s.chooser is not None]
        self._beams = to_device(torch.tensor(beams), device) if beams else None
        stages = self._stages
        self._active = [s for s in stages if s.arrange(sequences, vocab_size, device)]

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> tuple[Tensor, dict[int, str]]:
        """Return processed logits [R, V] and what went wrong, by row.

        logits: [R, V], never changed: what is returned is the same tensor where nothing applies,
        and a float32 copy where something does. Raises `ProcessorFailed` for the whole batch's.
        """
        failed: dict[int, str] = {}
        if not self._active and not self.processors:
            return logits, failed
        work = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        work.copy_(logits)
        if self._beams is not None:
            work[self._beams] = torch.log_softmax(work[self._beams], dim=-1)
        work = apply_to_batch(self.processors, work, sequences)
        for stage in self._active:
            stage.apply(work, failed)
        return work, failed

    @property
    def forced(self) -> frozenset[int]:
        """The rows to which a grammar left one token alone, in the last call."""
        return self._guides.forced

    def explain(self, given: Tensor, processed: Tensor, sequence: Sequence) -> str:
        """Return why nothing can be drawn from a row, [V], that was `given` by the model."""
        if not has_distribution(given):
            return (
                "logits: the model's are NaN or +inf, or allow no token; look at the weights, the "
                "dtype (float16 overflows) or the kernel changed last"
            )
        fields = ", ".join([*map(name_of, self.processors), *used_fields(sequence)])
        overflow = bool(processed.isnan().any()) or bool((processed == torch.inf).any())
        return f"{fields}: {'made logits NaN or +inf' if overflow else 'forbid every token'}"


def has_distribution(logits: Tensor) -> bool:
    """Whether a row of logits [V] has no NaN and no +inf, and something above -inf."""
    return bool(logits.amax().isfinite())


def used_fields(sequence: Sequence) -> list[str]:
    """Return the names of the settings that change a sequence's logits."""
    params, default = sequence.request.params, _DEFAULT
    names = ["logits_processors"]
    if penalized(params):
        names += ["repetition_penalty", "presence_penalty", "frequency_penalty"]
    names += ["logit_bias", "bad_words", "no_repeat_ngram_size", "min_tokens"]
    used = [name for name in names if getattr(params, name) != getattr(default, name)]
    return used if sequence.guide is None else [*used, "guided_decoding"]
