"""Drafting from every position of a text at once: the attention of EAGLE-3's training-time test.

Pass 0 runs over windows of text as usual. In pass j, slot t holds the j-th token that is drafted
behind the window's first t + 1: it sees pass 0's slots up to t, and of the passes since then its
own slot alone. So all positions draft side by side, as each would by itself. Differentiable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.speculation.heads.attention import BackendShell


class WindowsBackend(BackendShell):
    """`Backend` over packed windows of one length, `window` tokens each, that hold their own keys.

    Like the inner backend without a cache, but all windows at once.
    """

    def __init__(self, inner: Backend, window: int) -> None:
        super().__init__(inner)
        self.window = window

    def context(self, num_windows: int, device: torch.device, *, ahead: int = 0) -> ForwardContext:
        """Return a context for windows whose first token stands at position `ahead`."""
        positions = torch.arange(ahead, ahead + self.window, device=device).repeat(num_windows)
        lens = [self.window] * num_windows
        return ForwardContext(self, positions, lens, lens)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: ForwardContext,
        *,
        scale: float,
        rope: tuple[Tensor, Tensor] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attend causally within each window: q [T, H, D] and k, v [T, K, D] to [T, H, D]."""
        if rope is not None:
            q, k = self.inner.rope(q, k, *rope)
        q, k, v = (x.view(-1, self.window, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return self.attended(q, k, v, layer, scale, window).transpose(1, 2).flatten(0, 1)

    def attended(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, scale: float, window: int | None
    ) -> Tensor:
        """Attend over heads [B, H or K, n, D] to [B, H, n, D]."""
        mask = None
        if window is not None and window < self.window:
            ages = torch.arange(self.window, device=q.device)
            ages = ages.unsqueeze(1) - ages
            mask = (ages >= 0) & (ages < window)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )


class UnrolledBackend(WindowsBackend):
    """`WindowsBackend` that remembers each layer's keys, and from the second pass on unrolls.

    Every pass runs the same layers once, in contexts of `ahead` 0, 1, 2, …
    """

    def __init__(self, inner: Backend, window: int) -> None:
        super().__init__(inner, window)
        self._passes: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attended(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, scale: float, window: int | None
    ) -> Tensor:
        """Attend over pass 0 causally, and over the slot's own keys of later passes."""
        passes = self._passes.setdefault(layer, [])
        passes.append((k, v))
        if len(passes) == 1:
            return super().attended(q, k, v, layer, scale, window)
        assert window is None, "unrolled layers see everything"
        group = q.shape[1] // k.shape[1]
        (first_k, first_v), later = passes[0], passes[1:]
        first_k, first_v = (x.repeat_interleave(group, 1) for x in (first_k, first_v))
        q = q * scale
        n = self.window
        future = torch.full((n, n), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        scores = q @ first_k.transpose(2, 3) + future  # [B, H, n, n]
        own_k = [x.repeat_interleave(group, 1) for x, _ in later]
        own = torch.stack([(q * x).sum(-1) for x in own_k], -1)
        weights = torch.cat((scores, own.to(scores.dtype)), -1).softmax(-1, dtype=scores.dtype)
        out = weights[..., :n] @ first_v
        for j, (_, x) in enumerate(later):
            out = out + weights[..., n + j : n + j + 1] * x.repeat_interleave(group, 1)
        return out
