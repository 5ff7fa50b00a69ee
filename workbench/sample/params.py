"""The sampling parameters of a batch as tensors, grouped by how much work their rows need.

Made by `Sampler` when the batch changes and kept while it does not, so that steady decoding reads
no parameter again. What changes logits before a choice is in `Processing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.request import Sequence
from workbench.sample.random import stream_keys
from workbench.sampling_params import SamplingParams

# Up to this many candidates a partial selection beats sorting the vocabulary.
NARROW = 1024


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Sampled rows that take the same path, G of them.

    indices: their rows in the batch; `rows` is the same on the device, None where they are the
    whole batch. ranked: whether tokens must be in order of likelihood (top-k or top-p). width: how
    many candidates always suffice; None where only the probabilities can tell. The filters' tensors
    are [G, 1], and None where no row uses that filter.
    """

    indices: list[int]
    rows: Tensor | None
    ranked: bool
    width: int | None
    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None

    @property
    def searches(self) -> bool:
        """Whether the host has to ask the device how many candidates suffice."""
        return self.ranked and self.width is None and self.top_k is None


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """The parameters of one list of sequences: its sampled rows in `groups`; the others are greedy.

    keys: the random streams of the sampled rows, group after group, int64 on the CPU; None where
    there are none. logprob_rows: the rows that want log-probabilities.
    """

    sequences: list[Sequence]
    device: torch.device
    vocab_size: int
    groups: tuple[RowGroup, ...]
    keys: Tensor | None
    num_greedy: int
    logprob_rows: tuple[int, ...]

    @classmethod
    def of(
        cls, sequences: list[Sequence], vocab_size: int, device: torch.device
    ) -> SamplingTensors:
        """Return the parameters of `sequences`, in row order, for logits [R, vocab_size]."""
        params = [sequence.request.params for sequence in sequences]
        sampled = [i for i, p in enumerate(params) if not p.greedy]
        # A row's path must follow from its own parameters alone: the paths list candidates in
        # different orders, and so turn the same uniform into different tokens.
        kinds: dict[str, list[int]] = {"plain": [], "narrow": [], "wide": []}
        for i in sampled:
            kinds[_kind(params[i], vocab_size)].append(i)
        groups = tuple(
            _group(kind, indices, params, vocab_size, device)
            for kind, indices in kinds.items()
            if indices
        )
        seeds = [sequences[i].seed for group in groups for i in group.indices]
        return cls(
            sequences=list(sequences),
            device=device,
            vocab_size=vocab_size,
            groups=groups,
            keys=stream_keys(seeds) if seeds else None,
            num_greedy=len(params) - len(sampled),
            logprob_rows=tuple(i for i, s in enumerate(sequences) if s.num_tracked is not None),
        )

    def needs_host(self, *, searching: bool) -> str:
        """Return why drawing for these sequences has to see their latest tokens, or makes the host
        wait for the device; empty if neither. searching: by the sampler's own operations."""
        if self.logprob_rows:
            return "a row asks for log-probabilities"
        if searching and any(group.searches for group in self.groups):
            return "a row has top_p without top_k"
        return ""

    def fits(self, sequences: list[Sequence], logits: Tensor) -> bool:
        """Whether these are the parameters of `sequences`: the same objects, in the same rows."""
        # Sequences compare by identity, so this is one pass in C and no two engines are confused.
        return (
            self.sequences == sequences
            and self.device == logits.device
            and self.vocab_size == logits.shape[1]
        )


def _kind(params: SamplingParams, vocab_size: int) -> str:
    if params.top_k is not None and params.top_k < vocab_size:
        return "narrow" if params.top_k <= NARROW else "wide"
    return "wide" if params.top_p < 1.0 else "plain"


def _group(
    kind: str,
    indices: list[int],
    batch: list[SamplingParams],
    vocab_size: int,
    device: torch.device,
) -> RowGroup:
    params = [batch[i] for i in indices]
    ks = [min(p.top_k or vocab_size, vocab_size) for p in params]
    whole = len(indices) == len(batch)

    def column(values: Iterable[float], dtype: torch.dtype) -> Tensor:
        return to_device(torch.tensor(list(values), dtype=dtype), device)[:, None]

    any_top_p = any(p.top_p < 1.0 for p in params)
    any_min_p = any(p.min_p > 0.0 for p in params)
    return RowGroup(
        indices=indices,
        rows=None if whole else to_device(torch.tensor(indices), device),
        ranked=kind != "plain",
        width={"plain": vocab_size, "narrow": max(ks), "wide": None}[kind],
        temperature=column((p.temperature for p in params), torch.float64).float(),
        top_k=column(ks, torch.int64) if min(ks) < vocab_size else None,
        top_p=column((p.top_p for p in params), torch.float64) if any_top_p else None,
        min_p=column((p.min_p for p in params), torch.float64) if any_min_p else None,
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the logits' device without waiting for the work queued there."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
