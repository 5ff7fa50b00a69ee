"""`GainTable`: what DoRA variants in flight multiply outputs with, as kernels read it.

A variant that goes through a DoRA adapter has a row in each layer's gains; others have none and
cost nothing. Part of the table of variants, and like it in one place until it has to grow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workbench.lora.dora import RowLengths
from workbench.lora_batch import LoRAGain, LoRAGains

_NONE = -1
_FIRST_ROWS = 4


class GainTable:
    """Rows by variant, gains by layer. `generation` counts how often tensors were replaced."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.generation = device, 0
        self._layers: dict[nn.Module, LoRAGain] = {}
        self._free = list(range(_FIRST_ROWS))
        self._num_rows = _FIRST_ROWS
        self.clear(0)

    def clear(self, num_variants: int) -> None:
        """Forget every row, and have room for this many variants."""
        rows = torch.full((num_variants,), _NONE, dtype=torch.int32, device=self.device)
        self.tensors = LoRAGains(self._layers, rows, [_NONE] * num_variants)
        self._free = list(range(self._num_rows))
        self.generation += 1

    @property
    def num_bytes(self) -> int:
        """Bytes of the gains and shifts."""
        tensors = (tensor for gain in self._layers.values() for tensor in gain)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def scales(self, variant: int) -> bool:
        """Whether a variant has gains."""
        return variant >= 0 and self.tensors.places[variant] != _NONE

    def free(self, variant: int) -> None:
        """Take a variant's row back, if it has one."""
        row = self.tensors.places[variant]
        if row != _NONE:
            self._free.append(row)
            self._point(variant, _NONE)

    def write(self, variant: int, lengths: Mapping[nn.Module, RowLengths], factor: float) -> None:
        """Give a variant the gains of an adapter times `factor`."""
        if not lengths:
            return
        if not self._free:
            self._grow()
        for layer, of_layer in lengths.items():
            if layer not in self._layers:
                self._layers[layer] = self._make(of_layer)
                self.generation += 1
        row = self._free.pop()
        for layer, (gains, shifts) in self._layers.items():
            found = lengths.get(layer)
            gain = None if found is None else found.gain(factor)
            shift = None if found is None or gain is None else found.shift(gain, factor)
            _put(gains[row], gain, 1.0)
            if shifts is not None:
                _put(shifts[row], shift, 0.0)
        self._point(variant, row)

    def _point(self, variant: int, row: int) -> None:
        self.tensors.rows[variant] = row
        self.tensors.places[variant] = row

    def _make(self, of_layer: RowLengths) -> LoRAGain:
        shape = self._num_rows, len(of_layer.magnitude)
        gain = torch.ones(shape, device=self.device)
        return LoRAGain(gain, torch.zeros_like(gain) if of_layer.bias is not None else None)

    def _grow(self) -> None:
        more = self._num_rows
        for layer, (gain, shift) in self._layers.items():
            wider = torch.cat((gain, torch.ones_like(gain)))
            moved = None if shift is None else torch.cat((shift, torch.zeros_like(shift)))
            self._layers[layer] = LoRAGain(wider, moved)
        self._free = list(range(more, 2 * more))
        self._num_rows = 2 * more
        self.generation += 1


def _put(into: Tensor, values: Tensor | None, otherwise: float) -> None:
    if values is None:
        into.fill_(otherwise)
    else:
        into.copy_(values)
