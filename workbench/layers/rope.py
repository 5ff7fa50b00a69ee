"""Rotary position embedding: the angles by which queries and keys turn, with every common scaling.

`RotaryEmbedding` gives cos and sin for packed tokens; a backend applies them. Frequencies
are worked out in float32 on the CPU, whatever the default device or dtype, so that a model made on
the meta device, or cast to bfloat16, keeps exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.batch import Backend
from workbench.config import ModelConfig, RopeScaling
from workbench.ops.reference import angles


class RotaryEmbedding(nn.Module):
    """Angles for head size D: pair i of a head turns by position * inv_freq[i].

    `dynamic` (NTK) scaling depends on how long the sequence is when a token is computed, so it
    takes that length per token. All other kinds depend on the position alone.
    """

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.scaling = config.rope_scaling
        self.amplitude = attention_factor(self.scaling)
        self._exact = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.register_buffer("inv_freq", self._exact, persistent=False)

    def forward(
        self,
        positions: Tensor,
        rope_lens: Tensor | None = None,
        backend: Backend | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (cos, sin), each [T, D/2] float32, for positions [T].

        rope_lens [T] is read by `dynamic` scaling only: the sequence length each token is rotated
        for. Without it a token counts as the last of its sequence (length = position + 1), which is
        how tokens are rotated that are generated one by one. backend: works them out (None: torch).
        """
        compute = angles if backend is None else backend.angles
        return compute(positions, self.frequencies(positions, rope_lens), self.amplitude)

    def frequencies(self, positions: Tensor, rope_lens: Tensor | None) -> Tensor:
        """Return the inverse frequencies [D/2], or [T, D/2] where each token has its own."""
        scaling = self.scaling
        if scaling is None or scaling.kind != "dynamic":
            return self.inv_freq
        assert scaling.original_context is not None, "dynamic scaling knows its trained context"
        lens = (positions + 1 if rope_lens is None else rope_lens).float().unsqueeze(-1)
        trained = float(scaling.original_context)
        stretch = scaling.factor * lens.clamp(min=trained) / trained - (scaling.factor - 1)
        theta = self.theta * stretch ** (self.head_dim / (self.head_dim - 2))
        stretched = 1.0 / theta ** _exponents(self.head_dim, positions.device)
        return torch.where(lens > trained, stretched, self.inv_freq)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> RotaryEmbedding:
        """Follow a move to another device, but stay in float32 and never on meta's empty values."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = self._exact.to(self.inv_freq.device)
        return self

    def extra_repr(self) -> str:
        """Base and scaling, for the module tree."""
        return f"theta={self.theta}, scaling={self.scaling.kind if self.scaling else None}"


def inverse_frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Return [dim/2] float32 on the CPU: radians per position, after static scaling."""
    inv_freq = 1.0 / theta ** _exponents(dim, torch.device("cpu"))
    if scaling is None or scaling.kind == "dynamic":
        return inv_freq
    if scaling.kind == "linear":
        return inv_freq / scaling.factor
    assert scaling.original_context is not None, f"{scaling.kind} scaling knows its trained context"
    if scaling.kind == "llama3":
        return _llama3(inv_freq, scaling, scaling.original_context)
    return _yarn(inv_freq, theta, scaling, scaling.original_context)


def attention_factor(scaling: RopeScaling | None) -> float:
    """Return what cos and sin are multiplied by: 1, except for YaRN's temperature."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _temperature(scaling.factor, scaling.mscale) / _temperature(
            scaling.factor, scaling.mscale_all_dim
        )
    return _temperature(scaling.factor, 1.0)


def _temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _exponents(dim: int, device: torch.device) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim


def _llama3(inv_freq: Tensor, scaling: RopeScaling, trained: int) -> Tensor:
    """Slow pairs are stretched by the factor, fast ones left alone, those between blended."""
    turns = trained * inv_freq / (2 * math.pi)  # full turns of a pair over the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return inv_freq * keep + inv_freq / scaling.factor * (1 - keep)


def _yarn(inv_freq: Tensor, theta: float, scaling: RopeScaling, trained: int) -> Tensor:
    """As `_llama3`, but blended linearly over the pair's index instead of its turns."""
    dim = 2 * inv_freq.shape[0]

    def index_of(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = (
        last - first if last != first else 0.001
    )  # 0.001 as in transformers: no division by zero
    stretch = ((torch.arange(dim // 2, device=inv_freq.device).float() - first) / width).clamp(0, 1)
    return inv_freq * (1 - stretch) + inv_freq / scaling.factor * stretch
