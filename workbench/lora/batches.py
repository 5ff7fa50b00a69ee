"""`AdapterBatches`: a plan's adapters as tensors, for the runner.

One `LoRABatch` for each pass that an adapter takes part in; none where there is none, so that a
batch of the base alone costs nothing. Reads the device's slots, whose adapters the scheduler has
seen to.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.batch import Backend, StepPlan
from workbench.lora.slots import DeviceSlots
from workbench.lora_batch import (
    NO_VARIANT,
    LoRABatch,
    LoRAGains,
    Tiles,
    make_tiles,
    tile_numbers,
    tile_size,
)


class AdapterBatches:
    """Makes batches over what is on the device."""

    def __init__(self, slots: DeviceSlots) -> None:
        self.slots = slots

    def build(self, plan: StepPlan, backend: Backend) -> LoRABatch | None:
        """Return the adapters of a plan's packed tokens; None where there are none."""
        rows = self.variants(plan)
        if rows is None:
            return None
        tokens = np.repeat(rows, plan.num_new).tolist()
        batch = self.batch(tokens, make_tiles(tokens, self.slots.table.device))
        batch.replaced = self.replaced(plan, rows)
        batch.embeds = self._embeds(plan)
        batch.gains = self.gains(rows)
        batch.prepared = backend.prepare_lora(batch)
        return batch

    def batch(self, variants: list[int], tiles: Tiles) -> LoRABatch:
        """Return a batch of tokens of these variants."""
        return LoRABatch(self.slots.pool.weights, self.slots.table.tensors, variants, tiles)

    def gains(self, variants: list[int]) -> LoRAGains | None:
        """Return the gains of DoRA variants; None where none of these has any."""
        table = self.slots.table.gains
        return table.tensors if any(map(table.scales, variants)) else None

    def variants(self, plan: StepPlan) -> list[int] | None:
        """Return each row's place in the table of variants; None where no row has adapters."""
        wanted = list({s.request.lora: None for s in plan.sequences if s.request.lora})
        if not wanted:
            return None
        places = self.slots.places(wanted)
        return [places.get(sequence.request.lora, NO_VARIANT) for sequence in plan.sequences]

    def refill(
        self,
        held: dict[int, ReplayedAdapters],
        plan: StepPlan,
        backend: Backend,
        size: int,
        decodes: int = 0,
    ) -> ReplayedAdapters | None:
        """Return a plan's adapters in the buffers held for `size` tokens; None if it has none.

        decodes: for how many decodes there is room before the tokens of prompts. Buffers are made
        where there are none, and anew, all of them, if what they lead to moved.
        """
        if not any(sequence.request.lora for sequence in plan.sequences):
            return None
        if size not in held or not held[size].fill(plan, decodes):
            held.clear()
            held[size] = self.fixed(plan, backend, size, decodes)
        return held[size]

    def fixed(
        self, plan: StepPlan, backend: Backend, size: int, decodes: int = 0
    ) -> ReplayedAdapters:
        """Return a plan's adapters in new buffers for `size` tokens."""
        self.variants(plan)  # what it leads to may move
        buffers = ReplayedAdapters(self, size, backend)
        buffers.fill(plan, decodes)
        return buffers

    def why_eager(self, plan: StepPlan) -> str:
        """Return why a pass over a plan's adapters cannot be replayed; empty if it can."""
        return "an adapter changes the embedding" if self._embeds(plan) else ""

    def _embeds(self, plan: StepPlan) -> bool:
        embedding = self.slots.pool.model.embedding
        uses = (use for sequence in plan.sequences for use in sequence.request.lora)
        residents = (self.slots.find(use.name) for use in uses)
        return any(found.embeds or embedding in found.replaced for found in residents)

    def replaced(self, plan: StepPlan, rows: list[int]) -> dict[nn.Module, dict[int, Any]]:
        """Return the matrices that stand in place of the model's, by layer and variant."""
        found: dict[nn.Module, dict[int, Any]] = {}
        for sequence, place in zip(plan.sequences, rows, strict=True):
            for use in sequence.request.lora:
                for layer, weight in self.slots.find(use.name).replaced.items():
                    found.setdefault(layer, {})[place] = weight
        return found


class ReplayedAdapters:
    """The adapters of up to `tokens` tokens at fixed addresses, as a CUDA graph or a tape needs."""

    def __init__(self, batches: AdapterBatches, tokens: int, backend: Backend) -> None:
        self._batches, device = batches, batches.slots.table.device
        self.generation = batches.slots.generation
        on_gpu = device.type == "cuda"
        size = 4 * tokens
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=on_gpu)
        self._device = torch.zeros(size, dtype=torch.int32, device=device) if on_gpu else self._host
        self._moved = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        tiles = Tiles(self._device[:tokens], self._device[tokens:].view(-1, 3), 1, tokens)
        self.batch = batches.batch([NO_VARIANT] * tokens, tiles)
        self.batch.replayed = True
        self.batch.prepared = backend.prepare_lora(self.batch)

    @property
    def launches(self) -> tuple[Hashable, int, int, bool]:
        """What decides the launches, and what they read: a graph is one of these."""
        tiles, gained = self.batch.tiles, self.batch.gains is not None
        return self.generation, tiles.num_used, tiles.size, gained

    def fill(self, plan: StepPlan, decodes: int = 0) -> bool:
        """Write a plan's tokens; those beyond it go through no adapter. False, with nothing
        written, if what was captured would read what is no longer there. decodes: for how many
        there is room before the tokens of prompts."""
        rows = self._batches.variants(plan)
        assert rows is not None, "a plan with adapters"
        if self.generation != self._batches.slots.generation:
            return False
        size, tokens = len(self.batch.tiles.order), np.repeat(rows, plan.num_new).tolist()
        if decodes:
            count = plan.num_decodes
            tokens[count:count] = [NO_VARIANT] * (decodes - count)
        padded = tokens + [NO_VARIANT] * (size - len(tokens))
        if padded != self.batch.variants:  # from one decode to the next they usually stay
            self._write(padded)
        self.batch.refill(padded, self._batches.replaced(plan, rows))
        self.batch.gains = self._gains(rows)
        return True

    def _gains(self, rows: list[int]) -> LoRAGains | None:
        """Return the gains that a captured pass reads: a graph is one of those with or without; a
        tape is one for all, and has them as soon as there are any."""
        held = self._batches.slots.table.gains.tensors
        if self._moved is None:
            return held if held.layers else None
        return self._batches.gains(rows)

    def _write(self, variants: list[int]) -> None:
        self.batch.variants = ()  # what an interrupt leaves half written is written again
        size = tile_size(variants, self._device.device)
        order, tiles, count = tile_numbers(variants, size)
        if self._moved is not None:  # the copy of what was here before may be under way
            self._moved.synchronize()
        self._host.numpy()[:] = np.concatenate((order, tiles.ravel()))
        if self._moved is not None:
            self._device.copy_(self._host, non_blocking=True)
            self._moved.record()
        # Launches follow from a bound: of few values, as each is a graph's.
        bound = min(len(variants), _power_of_4(count))
        self.batch.tiles = self.batch.tiles._replace(num_used=bound, size=size)


def _power_of_4(least: int) -> int:
    return 1 << (max(0, least - 1).bit_length() + 1 & ~1)
