"""DoRA: the lengths of a layer's rows, from which the gain of an adapter follows for any factor.

A DoRA adapter gives each output's row of W + f s B A the length m: outputs are multiplied with
m / |W + f s B A|, the layer's bias aside (Liu et al. 2024, arXiv:2402.09353; PEFT's `dora.py`). The
square of that length is a polynomial in the request's factor f, made once when an adapter is read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.lora.adapter import LoRAPair

_ROWS = 8192  # of a weight that are in float32 at once


class RowLengths(NamedTuple):
    """Squares of the lengths of rows: base + 2 f cross + f^2 delta, and what they become.

    Each [outputs] float32 on the host. bias, and what the adapter adds to it, times f: where the
    layer has one.
    """

    magnitude: Tensor
    base: Tensor
    cross: Tensor
    delta: Tensor
    bias: Tensor | None = None
    bias_change: Tensor | None = None

    def gain(self, factor: float = 1.0) -> Tensor:
        """Return what outputs are multiplied with for an adapter times `factor` [outputs]."""
        squares = self.base + 2 * factor * self.cross + factor**2 * self.delta
        return self.magnitude / squares.sqrt()

    def shift(self, gain: Tensor, factor: float = 1.0) -> Tensor | None:
        """Return what is added then, so that the bias keeps its size [outputs]; None without."""
        if self.bias is None:
            return None
        bias = self.bias
        if self.bias_change is not None:
            bias = bias + factor * self.bias_change
        return (1 - gain) * bias

    @property
    def num_bytes(self) -> int:
        """Bytes in host memory."""
        return sum(tensor.nbytes for tensor in self if tensor is not None)


def plain_lengths(num_outputs: int) -> RowLengths:
    """Return lengths whose gain is 1, whatever the factor."""
    ones, zeros = torch.ones(num_outputs), torch.zeros(num_outputs)
    return RowLengths(ones, ones.clone(), zeros, zeros.clone())


@torch.no_grad()
def row_lengths(weight: Tensor, pair: LoRAPair) -> RowLengths:
    """Return the lengths of a module's rows for a pair with a magnitude.

    weight: the base's, [outputs, inputs], or an embedding's [vocab, hidden], whose outputs are the
    hidden ones. Sums are in float32, on the weight's device.
    """
    assert pair.magnitude is not None, "a pair of DoRA"
    weight = weight.T if pair.of_embedding else weight
    a, b = (half.to(weight.device).float() for half in (pair.a, pair.b))
    base, cross = [], []
    for begin in range(0, len(weight), _ROWS):
        rows, its = weight[begin : begin + _ROWS].float(), b[begin : begin + _ROWS]
        base.append(rows.square().sum(1))
        cross.append(pair.scale * ((rows @ a.T) * its).sum(1))
    delta = pair.scale**2 * ((b @ (a @ a.T)) * b).sum(1)
    lengths = torch.cat(base), torch.cat(cross), delta
    return RowLengths(pair.magnitude.float(), *(tensor.cpu() for tensor in lengths))
