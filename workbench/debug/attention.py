"""`attention_weights`: what chosen heads of chosen layers look at, in a prompt or a request.

The sequence is computed once more, without the cache, and weights are worked out from the queries
and keys that its attention was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.debug.forward import run, token_ids_of
from workbench.describe import Described
from workbench.engine import Engine
from workbench.errors import RequestError
from workbench.models import DecoderLM
from workbench.ops.reference import causal_mask
from workbench.ops.watched import AttentionCall


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttentionWeights(Described):
    """Weights [len(layers), len(heads), T, T] float32 on the CPU: row t is what token t looks at.

    heads: query heads. tokens: each token as text, where there is a tokenizer.
    """

    weights: Tensor
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def of(self, layer: int, head: int) -> Tensor:
        """Return one head's weights [T, T]."""
        return self.weights[self.layers.index(layer), self.heads.index(head)]

    def strongest(self, position: int, count: int = 5) -> list[tuple[int, int, int, float]]:
        """Return (layer, head, token looked at, weight) of what a token looks at most."""
        flat = self.weights[:, :, position].flatten()
        values, places = flat.topk(min(count, len(flat)))
        shape = self.weights[:, :, position].shape
        rows = torch.stack(torch.unravel_index(places, shape), -1).tolist()
        return [
            (self.layers[i], self.heads[h], k, value)
            for (i, h, k), value in zip(rows, values.tolist(), strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return which weights these are."""
        return {"layers": self.layers, "heads": self.heads, "tokens": len(self.token_ids)}


def attention_weights(
    source: DecoderLM | Engine,
    tokens: str | list[int],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    branch: int = 0,
    backend: str = "reference",
) -> AttentionWeights:
    """Return attention weights of a prompt, or of a request in an engine.

    source: a model, and `tokens` a text or token ids; or an engine, and `tokens` the id of one of
    its requests, running or ended, of which all tokens are taken (`branch`: of which continuation).
    That is the model's own attention: what a dropping policy took out of the cache is in it.
    layers, heads: which (None: all). Memory: 4 bytes x layers x heads x T². Raises `RequestError`
    for what is not there, and for requests that bring embeddings.
    """
    num_prompt = None
    if isinstance(source, Engine):
        model, ids, num_prompt = _of_request(source, tokens, branch)
    else:
        model, ids = source, token_ids_of(source, tokens)
    config = model.config
    chosen_layers = _chosen("layers", layers, config.num_layers)
    chosen_heads = _chosen("heads", heads, config.num_heads)
    found: dict[int, Tensor] = {}

    def watch(call: AttentionCall) -> None:
        if call.layer in chosen_layers:
            found[call.layer] = weights_of(call, chosen_heads)

    run(model, ids, watch, backend=backend, num_prompt_tokens=num_prompt)
    tokenizer = model.tokenizer
    texts = tuple(tokenizer.decode([i]) for i in ids) if tokenizer is not None else ()
    stacked = torch.stack([found[layer] for layer in chosen_layers])
    return AttentionWeights(stacked, chosen_layers, chosen_heads, tuple(ids), texts)


def weights_of(call: AttentionCall, heads: Sequence[int]) -> Tensor:
    """Return the weights [heads, T, T] float32, on the CPU, of an attention over one sequence
    without a cache."""
    q, k = (part.float() for part in call.rotated())
    group = q.shape[1] // k.shape[1]  # query heads that share a key head
    index = torch.tensor(heads, device=q.device)
    scores = torch.einsum("qhd,khd->hqk", q[:, index], k[:, index // group]) * call.scale
    mask = causal_mask(len(q), len(k), call.window, q.device)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).cpu()


def _of_request(engine: Engine, name: object, branch: int) -> tuple[DecoderLM, list[int], int]:
    """Return the model, a request's tokens, and how many of them are its prompt."""
    if not isinstance(name, str):
        raise RequestError("tokens", name, "is no request's id", "Pass a model for a prompt.")
    record = engine.find(name)
    if record.request.embeds is not None:
        problem = "the request brings embeddings"
        raise RequestError("tokens", name, problem, "Use a request of tokens alone.")
    if not 0 <= branch < len(record.sequences):
        problem = f"the request has {len(record.sequences)} continuations"
        raise RequestError("branch", branch, problem, "Count from 0.")
    sequence = record.sequences[branch]
    return engine.model, list(sequence.token_ids), sequence.num_prompt_tokens


def _chosen(field: str, wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return these numbers, or all there are."""
    chosen = tuple(range(count)) if wanted is None else tuple(wanted)
    wrong = [i for i in chosen if not isinstance(i, int) or not 0 <= i < count]
    if wrong or not chosen:
        raise RequestError(field, list(chosen), f"the model has {count}", "Count from 0.")
    return chosen
