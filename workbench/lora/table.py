"""`VariantTable`: the variants that requests in flight ask for, as kernels read them.

A variant is some adapters, each with a factor: their rank rows one after the other. The table's
tensors stay where they are until it has to grow, so that a captured pass goes on reading them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from workbench.lora.gains import GainTable
from workbench.lora.pool import Resident
from workbench.lora_batch import LoRATable
from workbench.request import AdapterUse

Uses = tuple[AdapterUse, ...]
_WIDTH = 16  # rank rows that a kernel's program takes at once


class VariantTable:
    """Rows by variant on a device, and the `gains` of those that are DoRA's."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._moves = device, 0
        self.gains = GainTable(device)
        self._places: dict[Uses, int] = {}
        self._make(16, _WIDTH)

    @property
    def generation(self) -> int:
        """How often the tensors were replaced."""
        return self._moves + self.gains.generation

    def _make(self, num_variants: int, width: int) -> None:
        shape, device = (num_variants, width), self.device
        self.width = width
        self.tensors = LoRATable(
            torch.zeros(shape, dtype=torch.int32, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(num_variants, dtype=torch.int32, device=device),
            [0] * num_variants,
        )
        self._places.clear()
        self.gains.clear(num_variants)
        self._moves += 1

    def places(self, wanted: list[Uses], find: Callable[[str], Resident]) -> dict[Uses, int]:
        """Return where these variants are, written first where they are not.

        find: where an adapter is on the device, by its name.
        """
        residents = {uses: [find(use.name) for use in uses] for uses in wanted}
        widest = max(sum(len(r.rows) for r in found) for found in residents.values())
        if widest > self.width or len(wanted) > len(self.tensors.widths):
            width, count = max(widest, self.width), max(len(wanted), len(self.tensors.widths))
            self._make(1 << (count - 1).bit_length(), max(_WIDTH, 1 << (width - 1).bit_length()))
        for uses, found in residents.items():
            if uses not in self._places:
                self._write(self._vacant(wanted), uses, found)
        return {uses: self._places[uses] for uses in wanted}

    def forget(self, name: str) -> None:
        """Drop the variants that an adapter is part of: its rows are another's from now on."""
        for uses in [uses for uses in self._places if any(use.name == name for use in uses)]:
            self.gains.free(self._places.pop(uses))

    def _vacant(self, wanted: Collection[Uses]) -> int:
        """Return a free place; that of a variant that is not wanted now where there is none."""
        taken = set(self._places.values())
        for place in range(len(self.tensors.widths)):
            if place not in taken:
                return place
        stale = next(uses for uses in self._places if uses not in wanted)
        self.gains.free(self._places[stale])
        return self._places.pop(stale)

    def _write(self, place: int, uses: Uses, residents: list[Resident]) -> None:
        rows: list[int] = []
        scales: list[float] = []
        shifts: list[float] = []
        for use, resident in zip(uses, residents, strict=True):
            count, constant = len(resident.rows), resident.constant
            rows += resident.rows
            scales += [use.scale] * count
            shifts += [0.0] * (count - constant) + [use.scale] * constant
        table, rank = self.tensors, len(rows)
        self._put(table.rows[place, :rank], rows)
        self._put(table.scales[place, :rank], scales)
        self._put(table.shifts[place, :rank], shifts)
        self._put(table.ranks[place], rank)
        table.widths[place] = rank
        if residents[0].lengths:  # such a one is never combined
            self.gains.write(place, residents[0].lengths, uses[0].scale)
        self._places[uses] = place

    def _put(self, into: Tensor, values: float | list[int] | list[float]) -> None:
        """Write numbers behind the passes that are queued; without waiting for these, as a copy
        from memory that is not pinned would."""
        held = torch.tensor(values, dtype=into.dtype, pin_memory=self.device.type == "cuda")
        into.copy_(held, non_blocking=True)
