"""Attention over rows of a `HeadCache`, as a `Backend` whose other operations are another's.

`HeadCache` makes these per forward pass. Layers do not notice: they ask `ctx.backend` as ever.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

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

    def graph_key(self, kv_lens: list[int], kv: Tensor) -> Hashable:
        """Never asked: see `capturable`."""
        raise NotImplementedError(f"{self.name} cannot be captured")


def bare_context(backend: Backend) -> ForwardContext:
    """Return a context for what needs no attention: norms, matrices, the target's head."""
    return ForwardContext(backend, torch.empty(0, dtype=torch.int64), [], [])


@dataclass(slots=True)
class Rows:
    """Where T packed tokens of R rows lie in `kv` [layers, 2, all rows, K, max_len, D].

    rows [R]: None where they are all of `kv`'s, in order. row_of, slot_of [T]. packed [R, n] bool:
    which places of a padded batch the tokens fill; None: all. seen [R, 1, n, length] bool: which
    slots each place looks at; None: all.
    """

    kv: Tensor
    rows: Tensor | None
    row_of: Tensor
    slot_of: Tensor
    packed: Tensor | None
    seen: Tensor | None
    length: int
    num_rows: int


class RowsBackend(BackendShell):
    """`Backend` whose attention writes to and reads from rows of a `HeadCache`."""

    def __init__(self, inner: Backend, layout: Rows) -> None:
        super().__init__(inner)
        self.layout = layout

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put keys and values [T, K, D], already rotated, where the tokens lie."""
        at = self.layout
        for side, new in enumerate((k, v)):
            at.kv[layer, side][at.row_of, :, at.slot_of] = new.to(at.kv.dtype)

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
        self.write(layer, k, v)
        at = self.layout
        stored = at.kv[layer, :, :, :, : at.length]
        keys, values = stored if at.rows is None else stored.index_select(1, at.rows)
        if at.packed is None:
            padded = q.view(at.num_rows, -1, *q.shape[1:])
        else:
            padded = q.new_zeros(*at.packed.shape, *q.shape[1:])
            padded[at.packed] = q
        out = F.scaled_dot_product_attention(
            padded.transpose(1, 2),
            keys.to(q.dtype),
            values.to(q.dtype),
            attn_mask=at.seen,
            scale=scale,
            enable_gqa=True,
        ).transpose(1, 2)
        return out.flatten(0, 1) if at.packed is None else out[at.packed]
