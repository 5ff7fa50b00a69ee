"""Text that a model writes itself, many rows of one length side by side: what heads learn from.

The engine serves requests; here all rows begin and end together, so one contiguous cache and one
plain pass a token are enough, and a GPU writes a million tokens in a second or two. Used by
`workbench train own-text`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.ops import get_backend
from workbench.speculation.heads.attention import BackendShell, bare_context


class EqualRowsBackend(BackendShell):
    """`Backend` over rows that are all equally long: kv [layers, 2, rows, K, length, D]."""

    def __init__(self, inner: Backend, kv: Tensor) -> None:
        super().__init__(inner)
        self.kv, self.start, self.stop = kv, 0, 0

    def context(self, num_tokens: int) -> ForwardContext:
        """Return a context for the next `num_tokens` tokens of every row."""
        self.start, self.stop = self.stop, self.stop + num_tokens
        num_rows, device = self.kv.shape[2], self.kv.device
        positions = torch.arange(self.start, self.stop, device=device).repeat(num_rows)
        return ForwardContext(self, positions, [num_tokens] * num_rows, [self.stop] * num_rows)

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
        """Keep k, v [T, K, D] and attend causally from q [T, H, D]: [T, H, D]."""
        assert window is None or window >= self.kv.shape[4], "rows are shorter than any window"
        if rope is not None:
            q, k = self.inner.rope(q, k, *rope)
        num_rows, num_new = self.kv.shape[2], self.stop - self.start
        num_heads, head_dim = q.shape[1:]
        for side, new in enumerate((k, v)):
            new = new.view(num_rows, num_new, *new.shape[1:]).transpose(1, 2)
            self.kv[layer, side, :, :, self.start : self.stop] = new
        keys, values = self.kv[layer, :, :, :, : self.stop]
        if num_new == 1:  # heads that share a key stand in for queries of it
            q = q.view(num_rows, k.shape[1], num_heads // k.shape[1], head_dim)
            return F.scaled_dot_product_attention(q, keys, values, scale=scale).reshape(
                num_rows, num_heads, head_dim
            )
        assert self.start == 0, "several tokens only at the start"
        q = q.view(num_rows, num_new, num_heads, head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)


@torch.inference_mode()
def write_rows(
    model: DecoderLM,
    prompts: Tensor,
    length: int,
    temperatures: Tensor | float = 0.0,
    *,
    seed: int = 0,
) -> Tensor:
    """Return prompts [rows, n] gone on with to `length` tokens: [rows, length] int64, on the CPU.

    temperatures: one, or one for each row; 0 is greedy. An end token does not end a row: what
    follows is what the model begins next. Raises `ConfigError` for rows beyond the context.
    """
    num_rows, num_given = prompts.shape
    config = model.config
    if not 0 < num_given < length <= config.context:
        fix = f"Give rows of {num_given + 1} to {config.context} tokens."
        raise ConfigError("length", length, "has no room for prompt and text", fix)
    shape = (config.num_layers, 2, num_rows, config.num_kv_heads, length, config.head_dim)
    kv = torch.empty(shape, dtype=model.dtype, device=model.device)
    backend = EqualRowsBackend(get_backend("sdpa", model.device), kv)
    heat = torch.as_tensor(temperatures, device=model.device).expand(num_rows).unsqueeze(1)
    noise = torch.Generator(model.device).manual_seed(seed)
    rows = torch.empty(num_rows, length, dtype=torch.int64, device=model.device)
    rows[:, :num_given] = prompts
    new = rows[:, :num_given]
    for place in range(num_given, length):
        hidden = model(new.flatten(), backend.context(new.shape[1]))
        last = hidden.view(num_rows, new.shape[1], -1)[:, -1]
        logits = model.logits(last, bare_context(backend)).float()
        # the greatest of logits + T x Gumbel noise is a draw at temperature T
        gumbel = torch.empty_like(logits).exponential_(generator=noise).clamp_(min=1e-20).log_()
        rows[:, place] = (logits - heat * gumbel).argmax(-1)
        new = rows[:, place : place + 1]
    return rows.cpu()


def own_rows(
    model: DecoderLM,
    stream: Tensor,
    num_rows: int,
    length: int,
    *,
    starts: Tensor | None = None,
    temperatures: tuple[float, ...] = (0.0, 0.8),
    prompt_tokens: tuple[int, ...] = (16, 32, 64, 128),
    batch: int = 4096,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield batches [rows, length] of the model's own text behind pieces of a stream [N].

    Half of the pieces begin at `starts` (places where documents begin), the others anywhere. The
    temperatures take turns by row, the pieces' lengths by batch.
    """
    source = torch.Generator().manual_seed(seed)
    heat = torch.tensor(temperatures)
    for number, begun in enumerate(range(0, num_rows, batch)):
        count = min(batch, num_rows - begun)
        given = prompt_tokens[number % len(prompt_tokens)]
        places = torch.randint(len(stream) - given, (count,), generator=source)
        if starts is not None:
            fitting = starts[starts <= len(stream) - given]
            chosen = torch.randint(len(fitting), (count // 2,), generator=source)
            places[: count // 2] = fitting[chosen]
        prompts = stream[places.unsqueeze(1) + torch.arange(given)].long()
        mixed = heat[torch.arange(count) % len(heat)]
        device = model.device
        yield write_rows(model, prompts.to(device), length, mixed.to(device), seed=seed + number)
