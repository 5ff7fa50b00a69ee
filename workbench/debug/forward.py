"""One forward pass of one of our models over one sequence, without a cache, with all it computes.

`record` gives what each operation puts out; `run` shows every attention to a function. Both leave
the model as it came, and an engine that uses it does not notice, between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.debug.points import Point
from workbench.errors import RequestError
from workbench.layers import Attention, DecoderLayer, GatedMLP
from workbench.models import DecoderLM
from workbench.ops import get_backend
from workbench.ops.watched import AttentionCall, WatchedBackend

Outputs = dict[Point, Tensor]
# What a module was given, and gave out -> what that says of which operations.
Take = Callable[[Any, Any], dict[str, Tensor]]


def token_ids_of(model: DecoderLM, tokens: str | list[int]) -> list[int]:
    """Return token ids of a text or a list; raise `RequestError` for what the model cannot take."""
    if isinstance(tokens, str):
        if model.tokenizer is None:
            problem, fix = "the model has no tokenizer", "Give a list of token ids."
            raise RequestError("tokens", tokens, problem, fix)
        tokens = model.tokenizer.encode(tokens)
    ids, vocab = list(tokens), model.config.vocab_size
    if not ids or len(ids) > model.config.context:
        fix = f"Give 1 to {model.config.context} tokens."
        raise RequestError("tokens", f"{len(ids)} tokens", "too few or too many", fix)
    wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < vocab]
    if wrong:
        fix = "Use this model's tokenizer."
        raise RequestError("tokens", wrong[0], f"is outside the vocabulary of {vocab}", fix)
    return ids


@torch.no_grad()
def run(
    model: DecoderLM,
    token_ids: list[int],
    watch: Callable[[AttentionCall], None],
    *,
    backend: str = "reference",
    num_prompt_tokens: int | None = None,
) -> Tensor:
    """Return the logits [T, vocab] of a sequence, and show each layer's attention to `watch`.

    num_prompt_tokens: of a sequence that was continued, for models whose rotations depend on it.
    """
    count = len(token_ids)
    watched = WatchedBackend(get_backend(backend, model.device), watch)
    ctx = ForwardContext.without_cache([count], watched, model.device)
    if model.needs_rope_lens and num_prompt_tokens is not None:
        ctx.rope_lens = (ctx.positions + 1).clamp_min(num_prompt_tokens)
    hidden = model(torch.tensor(token_ids, device=model.device), ctx)
    return model.logits(hidden, ctx)


def record(model: DecoderLM, token_ids: list[int], *, backend: str = "reference") -> Outputs:
    """Return what each operation puts out for a sequence, [T, …] float32 on the CPU.

    Operations that a family does not have, or does in another module, are not among them.
    """
    seen: Outputs = {}

    def attention(call: AttentionCall) -> None:
        q, k = call.rotated()
        for op, value in (("q_rope", q), ("k_rope", k), ("attention", call.out)):
            seen[Point(call.layer, op)] = plain(value)

    with _hooks(model, seen):
        seen[Point(None, "head")] = plain(run(model, token_ids, attention, backend=backend))
    return seen


def plain(value: Tensor) -> Tensor:
    """Return a copy in float32 on the CPU: what comes later may reuse the memory."""
    return value.detach().to("cpu", torch.float32, copy=True)


@contextmanager
def _hooks(model: DecoderLM, seen: Outputs) -> Iterator[None]:
    """Fill `seen` from what modules are given and give out, while the block lasts."""
    handles = []
    try:
        for layer, module, take in _takers(model):
            handles.append(module.register_forward_hook(_hook(seen, layer, take)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(seen: Outputs, layer: int | None, take: Take) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, given: Any, out: Any) -> None:
        for op, value in take(given, out).items():
            seen[Point(layer, op)] = plain(value)

    return hook


def _takers(model: DecoderLM) -> Iterator[tuple[int | None, nn.Module, Take]]:
    """Yield (layer, module, what it says of which operations)."""
    yield None, model.embedding, lambda _, out: {"embedding": out}
    yield None, model, lambda _, out: {"norm": out}
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer)]
    for number, layer in enumerate(layers):
        yield number, layer, lambda _, out: {"mlp_residual": out[0] + out[1]}
        yield number, layer.attention_norm, lambda _, out: {"attention_norm": out[0]}
        yield number, layer.attention.qkv_proj, _split_qkv(layer.attention)
        yield number, layer.attention.o_proj, lambda _, out: {"o_proj": out}
        yield number, layer.mlp_norm, _norm_and_residual
        if isinstance(layer.mlp, GatedMLP):  # experts have only some of the tokens each
            yield number, layer.mlp.gate_up_proj, _split_gate_up
            yield number, layer.mlp.down_proj, lambda x, out: {"activation": x[0], "down_proj": out}


def _norm_and_residual(_: Any, out: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"attention_residual": out[1], "mlp_norm": out[0]}


def _split_qkv(attention: Attention) -> Take:
    def take(_: Any, out: Tensor) -> dict[str, Tensor]:
        heads = out.view(out.shape[0], -1, attention.head_dim)
        parts = heads.split_with_sizes(attention.split_sizes, 1)
        return dict(zip(("q_proj", "k_proj", "v_proj"), parts, strict=True))

    return take


def _split_gate_up(_: Any, out: Tensor) -> dict[str, Tensor]:
    gate, up = out.chunk(2, -1)
    return {"gate_proj": gate, "up_proj": up}
