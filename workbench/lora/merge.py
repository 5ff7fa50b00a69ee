"""Merging an adapter into a model's weights, and taking it out again.

A merged model is one whose every request goes through the adapter, at no cost; it is also the
oracle of what an adapter must compute. `unmerge` puts back the very bits that were there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.lora.adapter import Adapter, LoRAPair
from workbench.lora.dora import row_lengths
from workbench.lora.targets import targets_of
from workbench.models import DecoderLM

Unmerge = Callable[[], None]


@torch.no_grad()
def merge(model: DecoderLM, adapters: Mapping[Adapter, float] | Adapter) -> Unmerge:
    """Add adapters, each times a factor, to a model's weights; return what takes them out again.

    New weights are made in float32 and rounded once. A tied head that an adapter changes alone gets
    a weight of its own. No engine may be running over the model. Raises `ConfigError` for one that
    stores modules whole, or is DoRA, beside others.
    """
    factors = {adapters: 1.0} if isinstance(adapters, Adapter) else dict(adapters)
    if sum(bool(adapter.saved) for adapter in factors) and len(factors) > 1:
        problem = "an adapter that stores modules whole is not combined with others"
        raise ConfigError("adapters", list(factors), problem, "Merge it alone.")
    if any(adapter.rescales for adapter in factors) and len(factors) > 1:
        problem = "a DoRA adapter scales outputs, and is not combined with others"
        raise ConfigError("adapters", list(factors), problem, "Merge it alone.")
    merger = _Merger(model)
    for adapter, factor in factors.items():
        merger.add(adapter, factor)
    return merger.undo


class _Merger:
    """Changes weights, and remembers what was there before."""

    def __init__(self, model: DecoderLM) -> None:
        self.model, self.targets = model, targets_of(model)
        self.before: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def add(self, adapter: Adapter, factor: float) -> None:
        for path, tensor in adapter.saved.items():
            self._change(path, "weight", tensor, 0.0)
        for path, pair in adapter.pairs.items():
            delta = factor * pair.delta()
            kept = self._gain(path, pair, factor)
            added = kept * delta
            parts = (added.T, kept.T) if pair.of_embedding else (added, kept)
            self._change(path, "weight", *parts)
            if pair.bias is not None:
                self._change(path, "bias", factor * pair.scale * pair.bias)
        for path, bias in adapter.biases.items():
            self._change(path, "bias", factor * bias, 1.0 - factor)

    def _gain(self, path: str, pair: LoRAPair, factor: float) -> Tensor:
        """Return what a module's outputs are multiplied with [outputs, 1]."""
        if pair.magnitude is None:
            return torch.ones(1, 1)
        target = self.targets[path]
        weight = self.model.get_parameter(f"{target.layer}.weight")[target.rows]
        return row_lengths(weight, pair).gain(factor).unsqueeze(1)

    def _change(self, path: str, leaf: str, added: Tensor, kept: Tensor | float = 1.0) -> None:
        """Make a module's weight or bias `kept` times what it was, plus `added`."""
        target = self.targets[path]
        owner = self.model.get_submodule(target.layer)
        old: nn.Parameter | None = getattr(owner, leaf)
        self.before.append((owner, leaf, old))
        weight: Tensor = owner.weight  # type: ignore[assignment]
        new = weight.new_zeros(len(weight)) if old is None else old.detach().clone()
        rows = new[target.rows]
        kept = kept.to(rows.device) if isinstance(kept, Tensor) else kept
        rows.copy_(kept * rows.float() + added.float().to(rows.device))
        setattr(owner, leaf, nn.Parameter(new, requires_grad=False))

    def undo(self) -> None:
        for owner, leaf, old in reversed(self.before):
            setattr(owner, leaf, old)
        self.before.clear()
