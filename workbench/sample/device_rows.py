"""`DeviceRows`: a batch's sampling parameters, a row each, for backends that draw by themselves.

Made by `Sampler` when the batch changes. Such a backend (`TritonBackend.sample`) gives the tokens
that the sampler's own operations give, in a few launches and without a question to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.request import Sequence
from workbench.sample.random import stream_keys

Draw = Callable[..., tuple[Tensor, Tensor]]
"""(logits [R, V], temperature=, top_k=, …) -> (tokens [R] int64, log-probabilities [R])."""


class DeviceRows(NamedTuple):
    """temperature [R] float32, 0 for a greedy row; top_k [R] int32; top_p and min_p [R] float64;
    keys [R] int64. A filter that a row does not use has the value that keeps everything."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    keys: Tensor

    @classmethod
    def of(
        cls, sequences: list[Sequence], vocab_size: int, to_device: Callable[[Tensor], Tensor]
    ) -> DeviceRows:
        """Return the parameters of `sequences`, in row order."""
        params = [sequence.request.params for sequence in sequences]

        def column(values: list[Any], dtype: torch.dtype) -> Tensor:
            return to_device(torch.tensor(values, dtype=dtype))

        temperatures = [0.0 if p.greedy else p.temperature for p in params]
        return cls(
            column(temperatures, torch.float32),
            column([min(p.top_k or vocab_size, vocab_size) for p in params], torch.int32),
            column([p.top_p for p in params], torch.float64),
            column([p.min_p for p in params], torch.float64),
            to_device(stream_keys([sequence.seed for sequence in sequences])),
        )
