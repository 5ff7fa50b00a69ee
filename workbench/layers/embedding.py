"""The token embedding: `nn.Embedding` whose rows start as uninitialised memory.

A checkpoint overwrites them. With a tied head, the head's weight is the same parameter. Where a
batch holds embeddings in place of tokens, they are put in here, so that a probe of this module sees
what the layers see.
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.batch import ForwardContext


class Embedding(nn.Embedding):
    """Token ids [T] to rows [T, hidden] of a [vocab, hidden] table."""

    def reset_parameters(self) -> None:
        """Leave the table as it is: it comes from a checkpoint or from `init_weights`."""

    def forward(self, token_ids: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """Map token ids [T] to [T, hidden], the rows of `ctx.embeds` in their places.

        Without a context it is the plain table: `model.embedding(ids)` makes embeddings of tokens.
        """
        if ctx is None:
            return super().forward(token_ids)
        x = ctx.backend.embedding(token_ids, self.weight)
        if ctx.lora is not None:
            x = ctx.lora.embed(self, token_ids, x)
        if ctx.embeds is None:
            return x
        return x.index_copy(0, ctx.embeds.positions, ctx.embeds.rows.to(x.dtype))
