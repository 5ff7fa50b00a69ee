"""Attention over rows of a `HeadCache`, as a `Backend` whose other operations are another's.

`HeadCache` makes these per forward pass. Layers do not notice: they ask `ctx.backend` as ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import Backend, ForwardContext


class BackendShell:
    """A backend that hands every operation but attention on to `inner`."""

    capturable = False
    batch_invariant = False

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = f"{inner.name}, attention apart"
        self.chosen_because = inner.chosen_because
        self.linear, self.rms_norm, self.add_rms_norm = (
            inner.linear,
            inner.rms_norm,
            inner.add_rms_norm,
        )
        self.layer_norm, self.add_layer_norm = inner.layer_norm, inner.add_layer_norm
        self.rope, self.silu_mul, self.gelu_mul = inner.rope, inner.silu_mul, inner.gelu_mul
        self.embedding, self.angles = inner.embedding, inner.angles
        self.prepare_lora, self.start_lora = inner.prepare_lora, inner.start_lora
        self.add_lora, self.gain_lora = inner.add_lora, inner.gain_lora
        self.check_model = inner.check_model

    def prepare(self, ctx: ForwardContext) -> Any:
        """Nothing to prepare: the rows came with the backend."""
        return None

    def graph_key(
        self, kv_lens: list[int], kv: Tensor, chunk_lens: Sequence[int] = (), num_tokens: int = 0
    ) -> Hashable:
        """Never asked: see `capturable`."""
        raise NotImplementedError(f"{self.name} cannot be captured")


def bare_context(backend: Backend) -> ForwardContext:
    """Return a context for what needs no attention: norms, matrices, the target's head."""
    return ForwardContext(backend, torch.empty(0, dtype=torch.int64), [], [])


class Rows(NamedTuple):
    """Where n new nodes of each of R rows lie in `kv` [layers, 2, all rows, max_len, K, D].

    rows [R]; slots [R, n]; seen [R, 1, n, length] bool: which slots each node looks at.
    """

    kv: Tensor
    rows: Tensor
    slots: Tensor
    seen: Tensor


class RowsBackend(BackendShell):
    """`Backend` whose attention writes to rows of a `HeadCache` and sees what masks say."""

    def __init__(self, inner: Backend, layout: Rows) -> None:
        super().__init__(inner)
        self.layout = layout

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
        """Write k, v [T, K, D] and attend from q [T, H, D] to what each token sees: [T, H, D]."""
        assert window is None, "heads see everything"
        if rope is not None:
            q, k = self.inner.rope(q, k, *rope)
        kv, rows, slots, seen = self.layout
        for side, new in enumerate((k, v)):
            new = new.to(kv.dtype).view(*slots.shape, *new.shape[1:])
            kv[layer, side][rows.unsqueeze(1), slots] = new
        stored = kv[layer, :, :, : seen.shape[3]].index_select(1, rows)
        keys, values = stored.transpose(2, 3).to(q.dtype)
        padded = q.view(*slots.shape, *q.shape[1:]).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            padded, keys, values, attn_mask=seen, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)
