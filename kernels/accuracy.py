"""How near a kernel's outputs come to its reference's, by its spec's tolerance.

Used by the tuner and the benchmark, which refuse what is wrong before they time it, and by tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.kernels.quantised_kv import FP8
from workbench.kernels.spec import KernelSpec

# A kernel that quantises may round a tie, or a sum's last bit, the other way.
ONE_STEP = {torch.int8: (0.0, 1.0), FP8: (0.13, 2**-9)}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """max_err: the largest difference. share: the largest part of its tolerance that any uses."""

    max_err: float
    share: float

    @property
    def ok(self) -> bool:
        """Whether every element is within its tolerance."""
        return self.share <= 1.0


def tensors(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Return outputs as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def tolerance(spec: KernelSpec, dtype: torch.dtype, output: torch.Tensor) -> tuple[float, float]:
    """Return (rtol, atol) for an output of a kernel that was given inputs of `dtype`."""
    return ONE_STEP.get(output.dtype, spec.tolerance[dtype])


def accuracy(spec: KernelSpec, dtype: torch.dtype, outputs: Any, expected: Any) -> Accuracy:
    """Compare outputs with the reference's; NaN where the reference has none is infinitely far."""
    worst = share = 0.0
    for got, wanted in zip(tensors(outputs), tensors(expected), strict=True):
        if not got.numel():
            continue
        rtol, atol = tolerance(spec, dtype, got)
        for ours, theirs in zip(got.flatten().split(1 << 26), wanted.flatten().split(1 << 26),
                                strict=True):  # fmt: skip
            ours, theirs = ours.float(), theirs.float()
            error = (ours - theirs).abs()
            error = error.masked_fill(ours.isnan() & theirs.isnan(), 0.0)
            error = error.nan_to_num(nan=torch.inf)
            allowed = atol + rtol * theirs.abs().nan_to_num(nan=0.0)
            worst = max(worst, float(error.max()))
            share = max(share, float((error / allowed).max()))
    return Accuracy(worst, share)
