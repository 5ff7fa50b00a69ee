"""How far drafts of a head agree with what its target says: acceptance, measured offline.

The target's greedy continuations are made once by the engine; then each position is drafted from as
if it were the latest, all side by side, and compared. No verification runs, and none is needed:
greedy verification accepts exactly the tokens that agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.speculation.heads import (
    HydraHead,
    MedusaHead,
    Paths,
    SequentialHead,
    TreeShape,
    commit,
    draft_tree,
    new_cache,
    static_tree,
)
from workbench.speculation.heads.attention import bare_context
from workbench.speculation.heads.unrolled import UnrolledBackend
from workbench.train.heads_capture import Captured, capture, training_backend
from workbench.train.heads_data import continuations

Drafter = MedusaHead | SequentialHead | DecoderLM


@dataclass(frozen=True, slots=True)
class Acceptance:
    """length: tokens a verification pass commits on average, the bonus token counted. agreed[i]:
    how often a chain's token i + 1 agrees, whatever those before it did; accepted[i]: how often
    it and all before it do. num_passes, num_tokens: what the average is over.
    """

    length: float
    agreed: tuple[float, ...]
    accepted: tuple[float, ...]
    num_passes: int
    num_tokens: int


@torch.inference_mode()
def measure_acceptance(
    head: Drafter,
    model: DecoderLM,
    prompts: Sequence[Sequence[int]],
    *,
    depth: int = 4,
    max_tokens: int = 64,
    texts: Sequence[Sequence[int]] | None = None,
    tree: Paths | TreeShape | None = None,
) -> Acceptance:
    """Return how a head's drafts agree with the target's greedy text behind prompts of token ids.

    head: Medusa, a `SequentialHead`, or a model with the same vocabulary. texts: the greedy
    continuations, where they are known already. tree: paths for Medusa, a shape for a sequential
    head; None drafts a chain of `depth`. Raises `ConfigError` for what cannot be measured so.
    """
    if isinstance(head, HydraHead) or not isinstance(head, Drafter):
        fix = "Measure it through an engine."
        raise ConfigError("head", type(head).__name__, "has no chain to measure", fix)
    texts = continuations(model, prompts, max_tokens) if texts is None else texts
    passes: list[int] = []
    agreed: list[Tensor] = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([[*prompt, *text]], device=model.device)
        points = () if isinstance(head, DecoderLM) else head.needs
        seen = capture(model, ids, points, training_backend(model))
        first = len(prompt)  # the first token that was generated; it has no state yet
        if isinstance(head, MedusaHead):
            ranks = medusa_ranks(head, seen)
            matches = ranks[:, first - 1 :] == 0
            lengths = (
                tree_lengths(ranks, tree) if isinstance(tree, tuple) else run_lengths(ranks == 0)
            )
        else:
            same = unrolled_matches(head, seen, depth)
            matches = same[:, first - 1 :]
            lengths = run_lengths(same)
            if isinstance(tree, TreeShape) and isinstance(head, SequentialHead):
                passes += drafted_lengths(head, seen, first, tree)
                lengths = None
        if lengths is not None:
            passes += hops(lengths.tolist(), first, ids.shape[1])
        agreed.append(matches.float().cpu())
    return _summary(passes, agreed)


def medusa_ranks(head: MedusaHead, seen: Captured, most: int = 10) -> Tensor:
    """Return the rank [heads, n - 1] each head gives the token it is about; `most` if beyond.

    Column t is of the draft behind token t + 1; where the text ends, the rank is `most` too.
    """
    logits = head(seen.states[0].to(head.dtype), bare_context(seen.backend))
    ids, n = seen.token_ids[0], seen.token_ids.shape[1]
    ranks = torch.full((head.num_heads, n - 1), most, device=ids.device)
    for i in range(head.num_heads):
        right = ids[2 + i :].unsqueeze(1)
        best = logits[i, : len(right)].topk(most, dim=-1).indices
        found = (best == right).int()
        ranks[i, : len(right)] = torch.where(found.any(1), found.argmax(1), most)
    return ranks


@torch.inference_mode()
def medusa_accuracy(head: MedusaHead, seen: Captured, most: int = 10) -> Tensor:
    """Return how often each head's token of each rank is right over windows: [heads, most]."""
    counts = torch.zeros(head.num_heads, most + 1)
    for row in range(len(seen.token_ids)):
        one = replace(
            seen,
            token_ids=seen.token_ids[row : row + 1],
            states=seen.states[row : row + 1],
            final=seen.final[row : row + 1],
        )
        for i, ranks in enumerate(medusa_ranks(head, one, most)):
            known = ranks[: len(ranks) - 1 - i]
            counts[i] += torch.bincount(known.cpu(), minlength=most + 1)
    return counts[:, :most] / counts.sum(1, keepdim=True)


def unrolled_matches(head: SequentialHead | DecoderLM, seen: Captured, depth: int) -> Tensor:
    """Return whether each drafted token is the text's: [depth, n - 1], column t behind token t + 1.

    The head drafts greedily from every position, each as it would by itself.
    """
    ids, is_model = seen.token_ids[0], isinstance(head, DecoderLM)
    # A model's slot t holds token t; a head's the pair of token t + 1, and has no last slot.
    tokens = ids if is_model else ids[1:]
    backend = UnrolledBackend(seen.backend, len(tokens))
    features: Tensor | None = None
    rows = []
    for step in range(depth):
        ctx = backend.context(1, ids.device, ahead=step)
        if isinstance(head, DecoderLM):
            tokens = head.logits(head(tokens, ctx), ctx).argmax(-1)
        else:
            if features is None:
                features = head.features(seen.states[0, :-1].to(head.dtype), ctx)
            out = head(tokens, features, ctx)
            tokens = head.target_ids(head.logits(out, ctx).argmax(-1))
            features = head.carry(out, ctx)
        drafted = tokens[1:] if is_model else tokens
        right = torch.zeros(len(ids) - 1, dtype=torch.bool, device=ids.device)
        known = len(ids) - 2 - step  # drafts beyond the text cannot agree
        right[:known] = drafted[:known] == ids[2 + step :]
        rows.append(right)
    return torch.stack(rows)


def run_lengths(same: Tensor) -> Tensor:
    """Return how many tokens are accepted in each column of matches [depth, n]: [n]."""
    return same.int().cumprod(0).sum(0)


def tree_lengths(ranks: Tensor, paths: Paths) -> Tensor:
    """Return how deep each column of ranks [heads, n] goes in a static tree: [n]."""
    tree = static_tree(paths)
    inside = torch.zeros(len(tree.parents), ranks.shape[1], dtype=torch.bool, device=ranks.device)
    nodes = zip(tree.parents.tolist(), tree.depths.tolist(), tree.ranks.tolist(), strict=True)
    for node, (parent, depth, rank) in enumerate(nodes):
        own = ranks[depth - 1] == rank
        inside[node] = own if parent < 0 else own & inside[parent]
    return (inside * tree.depths.to(ranks.device).unsqueeze(1)).max(0).values


def hops(lengths: Sequence[int], first: int, end: int) -> list[int]:
    """Return what each pass commits where decoding goes from token `first` to `end`.

    lengths[t]: tokens accepted behind token t + 1. The last pass may run into the end; it does not
    count.
    """
    passes, latest = [], first
    while latest + lengths[latest - 1] + 1 < end:
        passes.append(lengths[latest - 1] + 1)
        latest += passes[-1]
        if latest >= end - 1:
            break
    return passes


def drafted_lengths(
    head: SequentialHead, seen: Captured, first: int, shape: TreeShape
) -> list[int]:
    """Return what each pass commits with a dynamic tree, drafted as a proposer does."""
    ids, states, backend = seen.token_ids[0], seen.states[0], seen.backend
    cache = new_cache(head, 1, max_len=len(ids))
    passes, latest = [], first
    while latest < len(ids) - 1:
        span = slice(cache.lens[0], latest)
        tokens = ids[span.start + 1 : latest + 1]
        out = commit(head, cache, [0], tokens, states[span], [len(tokens)], backend)
        tree = draft_tree(head, cache, [0], out, shape, backend)
        parents, drafted = tree.parents[0].tolist(), tree.token_ids[0].tolist()
        length, node = 0, -1
        while latest + length + 1 < len(ids):
            right = int(ids[latest + length + 1])
            pairs = enumerate(zip(parents, drafted, strict=True))
            node = next((i for i, pair in pairs if pair == (node, right)), -1)
            if node < 0:
                break
            length += 1
        if latest + length + 1 < len(ids):  # a pass cut short by the text's end does not count
            passes.append(length + 1)
        latest += length + 1
    return passes


def _shares(texts: Sequence[Tensor]) -> tuple[float, ...]:
    """Return each depth's mean over texts' rows [depth, n], drafts beyond a text's end left out."""
    means = []
    for depth in range(len(texts[0])):
        known = [rows[depth, : max(0, rows.shape[1] - 1 - depth)] for rows in texts]
        means.append(float(torch.cat(known).mean()))
    return tuple(means)


def _summary(passes: list[int], agreed: list[Tensor]) -> Acceptance:
    return Acceptance(
        length=sum(passes) / max(1, len(passes)),
        agreed=_shares(agreed),
        accepted=_shares([rows.cumprod(0) for rows in agreed]),
        num_passes=len(passes),
        num_tokens=sum(passes),
    )
