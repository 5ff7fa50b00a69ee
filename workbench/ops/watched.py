"""`WatchedBackend`: a backend that does what another one does, and shows every attention.

Queries and keys as they meet are inside a backend's attention, where no probe of a module reaches.
Works with every backend, because it only looks at what goes in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.batch import Backend, ForwardContext


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's attention over a packed batch; see `Backend.attention` for its arguments.

    q, k, v [T, heads, D] as they were given, before rotation; `out` [T, H, D].
    """

    backend: Backend
    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    ctx: ForwardContext
    scale: float
    rope: tuple[Tensor, Tensor] | None
    window: int | None
    out: Tensor

    def rotated(self) -> tuple[Tensor, Tensor]:
        """Return q and k as the backend's own `rope` turns them."""
        return (
            (self.q, self.k) if self.rope is None else self.backend.rope(self.q, self.k, *self.rope)
        )


class WatchedBackend:
    """Stands in for `inner`, and calls `watch` after each layer's attention."""

    def __init__(self, inner: Backend, watch: Callable[[AttentionCall], None]) -> None:
        self.inner, self.watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

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
        """Have `inner` write k, v and attend; see `Backend.attention`."""
        out = self.inner.attention(q, k, v, layer, ctx, scale=scale, rope=rope, window=window)
        self.watch(AttentionCall(self.inner, layer, q, k, v, ctx, scale, rope, window, out))
        return out
