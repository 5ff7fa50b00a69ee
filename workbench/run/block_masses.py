"""`BlockMasses`: how much attention the last tokens of some rows pay to each block of theirs.

Watches the attention of every layer in a pass (`workbench.ops.watched`) and works the weights out
again from queries and cached keys, in float32: a further product with all keys, which a dropping
policy has asked for. Made by the runner for a pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.quantised_kv import dequantised
from workbench.ops.watched import AttentionCall


class BlockMasses:
    """Adds up weights over layers and query heads, for these rows of the batch.

    Every layer must see all tokens, and lie in one KV group.
    """

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self._total: Tensor | None = None  # [R, B]
        self._num_blocks: list[int] = []

    def __call__(self, call: AttentionCall) -> None:
        """Take in a layer's attention."""
        assert call.window is None, "a layer with a window of its own"
        masses = last_token_masses(call, self.rows)
        self._total = masses if self._total is None else self._total + masses
        size = call.ctx.any_kv.shape[2]
        self._num_blocks = [-(-call.ctx.kv_lens[row] // size) for row in self.rows]

    def by_row(self) -> dict[int, list[float]]:
        """Return each row's sums, one for each block that it has looked at."""
        assert self._total is not None, "no attention was seen"
        rows = zip(self.rows, self._total.tolist(), self._num_blocks, strict=True)
        return {row: masses[:count] for row, masses, count in rows}


def last_token_masses(call: AttentionCall, rows: list[int]) -> Tensor:
    """Return [R, B] float32: the weights that each row's last token gives to its blocks' tokens,
    summed over these and over query heads."""
    ctx, index = call.ctx, torch.tensor(rows, device=call.q.device)
    assert ctx.kv is not None, "without a cache there are no blocks"
    assert ctx.query_starts is not None, "a context with a cache has query starts"
    assert ctx.block_tables is not None, "a context with a cache has block tables"
    assert ctx.context_lens is not None, "a context with a cache has context lengths"
    q = call.rotated()[0][ctx.query_starts[index + 1].long() - 1]  # [R, H, D]
    tables = ctx.block_tables[index].long()
    keys = ctx.kv[call.layer][0][tables].float()  # [R, B, block_size, K, D]
    scales = ctx.scales(call.layer)
    if scales is not None:
        keys = dequantised(keys, scales[0][tables])
    count, num_blocks, size, kv_heads, dim = keys.shape
    grouped = q.view(count, kv_heads, -1, dim).float()
    scores = torch.einsum("rkgd,rbskd->rkgbs", grouped, keys).flatten(3) * call.scale
    seen = torch.arange(num_blocks * size, device=q.device) < ctx.context_lens[index, None]
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return weights.sum((1, 2)).view(count, num_blocks, size).sum(-1)
