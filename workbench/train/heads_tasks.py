"""What a head is trained to do: a fresh head of each kind, and its loss over windows of text.

Medusa: each head's cross entropy on the token it is about. EAGLE-3: the training-time test,
unrolled over its own outputs. A draft model: its target's distribution. Called by the loop; none of
these keeps any state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.models.llama import LlamaForCausalLM
from workbench.speculation.heads import (
    DraftVocabulary,
    Eagle3Flags,
    Eagle3Head,
    MedusaHead,
    default_aux_layers,
)
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.heads.unrolled import UnrolledBackend, WindowsBackend
from workbench.train.heads_capture import Captured

Kind = Literal["medusa", "eagle3", "draft"]
# Of captured windows: the loss, and how often each head or step agrees with the target: [depth].
LossFunction = Callable[[Captured], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Task:
    """module: what is trained. needs: the states that `loss` reads of captured windows."""

    kind: Kind
    module: MedusaHead | Eagle3Head | DecoderLM
    needs: tuple[str, ...]
    loss: LossFunction


def new_task(kind: str, model: DecoderLM, seed: int = 0, **options: Any) -> Task:
    """Return a fresh head of a kind beside its target, and its loss.

    Options are keywords of `medusa_task`, `eagle3_task` or `draft_task`. Raises `ConfigError` for
    another kind.
    """
    makers: dict[str, Callable[..., Task]] = {
        "medusa": medusa_task,
        "eagle3": eagle3_task,
        "draft": draft_task,
    }
    if kind not in makers:
        raise ConfigError("kind", kind, "is not trained here", f"Known: {', '.join(makers)}.")
    return makers[kind](model, seed, **options)


def medusa_task(
    model: DecoderLM,
    seed: int = 0,
    *,
    num_heads: int = 4,
    num_layers: int = 1,
    own_matrix: bool = True,
    labels: Literal["target", "text"] = "target",
) -> Task:
    """Return Medusa-1: the sum of the heads' cross entropies, the target frozen.

    labels: `text` is the paper's, the text's own tokens; `target` the distribution that the target
    has of the same token, which is what a draft is held against.
    """
    head = MedusaHead(model, num_heads=num_heads, num_layers=num_layers, own_matrix=own_matrix)
    head.to(model.device).init_weights(seed=seed)

    def loss(seen: Captured) -> tuple[Tensor, Tensor]:
        windows, n = seen.token_ids.shape
        hidden = seen.states.flatten(0, 1).float()
        logits = head(hidden, bare_context(seen.backend)).view(num_heads, windows, n, -1)
        truth = probabilities(seen.logits()) if labels == "target" else None
        losses, agreed = [], []
        for i in range(num_heads):
            own = logits[i, :, : n - 2 - i]
            if truth is None:
                right = seen.token_ids[:, 2 + i :]
                losses.append(nn.functional.cross_entropy(own.flatten(0, 1), right.flatten()))
            else:
                wanted = truth[:, 1 + i : n - 1]
                right = wanted.argmax(-1)
                losses.append(soft_cross_entropy(own, wanted).mean())
            agreed.append((own.argmax(-1) == right).float().mean())
        return torch.stack(losses).sum(), torch.stack(agreed).detach()

    return Task("medusa", head, head.needs, loss)


def eagle3_task(
    model: DecoderLM,
    seed: int = 0,
    *,
    intermediate_size: int | None = None,
    draft_ids: Tensor | None = None,
    flags: Eagle3Flags | None = None,
    unroll: int = 7,
    decay: float = 0.8,
) -> Task:
    """Return EAGLE-3 with its training-time test: sum of decay^i x soft cross entropy of pass i.

    draft_ids: the target's tokens that can be drafted; None: all. unroll: passes over its own
    outputs, 7 in the paper. Where the target's best token cannot be drafted, nothing is learnt.
    """
    shape = replace(
        model.config,
        architecture="draft head",
        num_layers=1,
        windows=(),
        intermediate_size=intermediate_size or model.config.intermediate_size,
    )
    flags = flags or Eagle3Flags(default_aux_layers(model.config.num_layers))
    size = model.config.vocab_size
    vocabulary = None if draft_ids is None else DraftVocabulary.of(draft_ids, size)
    head = Eagle3Head(model, shape, flags, vocabulary=vocabulary).to(model.device)
    head.init_weights(seed=seed)
    kept = None if vocabulary is None else vocabulary.t2d.nonzero()[:, 0]
    with torch.no_grad():  # what it says at first is what the target's head would
        rows = model.head.weight if kept is None else model.head.weight[kept]
        head.head.weight.copy_(rows)

    def loss(seen: Captured) -> tuple[Tensor, Tensor]:
        windows, n = seen.token_ids.shape
        backend, truth = UnrolledBackend(seen.backend, n - 1), seen.logits()
        best = truth.argmax(-1)
        probs = probabilities(truth if kept is None else truth[..., kept])
        learnt = torch.ones_like(best, dtype=torch.bool)
        if vocabulary is not None:
            learnt = vocabulary.t2d[best]
        ids = nn.functional.pad(seen.token_ids, (0, unroll))
        features: Tensor | None = None
        total, agreed = torch.zeros((), device=truth.device), []
        for i in range(unroll):
            ctx = backend.context(windows, truth.device, ahead=i)
            if features is None:
                # a float32 residual stream, also where products are narrower
                features = head.features(seen.states[:, :-1].flatten(0, 1).float(), ctx).float()
            out = head(ids[:, 1 + i : n + i].flatten(), features, ctx)
            logits = head.logits(out, ctx).view(windows, n - 1, -1)[:, : n - 1 - i]
            known = learnt[:, 1 + i :]
            losses = soft_cross_entropy(logits, probs[:, 1 + i :]) * known
            total = total + decay**i * losses.sum() / known.sum().clamp(min=1)
            right = head.target_ids(logits.argmax(-1)) == best[:, 1 + i :]
            agreed.append(right.float().mean())
            features = head.carry(out, ctx)
        return total, torch.stack(agreed).detach()

    return Task("eagle3", head, head.needs, loss)


def draft_task(
    model: DecoderLM,
    seed: int = 0,
    *,
    num_layers: int = 2,
    hidden_size: int = 256,
    intermediate_size: int = 640,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    from_layers: Sequence[int] | None = None,
) -> Task:
    """Return a small Llama with the target's tokens that learns the target's distribution.

    from_layers: begin as the target (a Llama) with these of its layers alone, in its own sizes.
    """
    if from_layers is not None:
        draft = thinned(model, from_layers)
        return Task("draft", draft, (), _distillation(draft))
    scaling = model.config.rope_scaling
    shape = replace(
        model.config,
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        windows=(),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        tied_head=True,
        dtype="float32",
        rope_scaling=None if scaling is not None and scaling.kind == "dynamic" else scaling,
    )
    draft = LlamaForCausalLM(shape).to(model.device)
    draft.init_weights(seed=seed)
    draft.tokenizer = model.tokenizer

    return Task("draft", draft, (), _distillation(draft))


def thinned(model: DecoderLM, layers: Sequence[int]) -> LlamaForCausalLM:
    """Return a float32 Llama of a Llama's embedding, norm and head and some of its layers.

    Raises `ConfigError` for another family, for layers that are none, and for windows.
    """
    field, count = "from_layers", model.config.num_layers
    if type(model) is not LlamaForCausalLM or any(w is not None for w in model.config.windows):
        fix = "Leave it out: a draft model of any size begins at random."
        raise ConfigError(field, type(model).__name__, "only plain Llamas are thinned", fix)
    if not layers or not all(0 <= layer < count for layer in layers):
        raise ConfigError(field, tuple(layers), f"the target has {count} layers", "Give some.")
    shape = replace(model.config, num_layers=len(layers), windows=(), dtype="float32")
    draft = LlamaForCausalLM(shape).to(model.device)
    places = {f"layers.{layer}.": f"layers.{i}." for i, layer in enumerate(layers)}
    theirs = {name: p for name, p in model.named_parameters() if not name.startswith("layers.")}
    for name, parameter in model.named_parameters():
        for prefix, own in places.items():
            if name.startswith(prefix):
                theirs[own + name.removeprefix(prefix)] = parameter
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            parameter.copy_(theirs[name])
    draft.tokenizer = model.tokenizer
    return draft


def _distillation(draft: DecoderLM) -> LossFunction:
    """Return the loss of a draft model: the target's distribution of each token."""

    def loss(seen: Captured) -> tuple[Tensor, Tensor]:
        windows, n = seen.token_ids.shape
        backend, truth = WindowsBackend(seen.backend, n), seen.logits()
        ctx = backend.context(windows, truth.device)
        logits = draft.logits(draft(seen.token_ids.flatten(), ctx), ctx).view(windows, n, -1)
        agreed = (logits.argmax(-1) == truth.argmax(-1)).float().mean()
        loss = soft_cross_entropy(logits, probabilities(truth)).mean()
        return loss, agreed.detach().unsqueeze(0)

    return loss


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax [..., V] of a target's logits in float32, what drafts are to learn."""
    return logits.softmax(-1, dtype=torch.float32)


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross entropy [...] of logits against wanted probabilities, both [..., V]."""
    return -(wanted * logits.log_softmax(-1, dtype=torch.float32)).sum(-1)
