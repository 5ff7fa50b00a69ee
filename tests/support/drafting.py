"""Proposers for tests: random trees of which one path may be right, as far as chance wants."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workbench.draft import Draft
from workbench.models import DecoderLM
from workbench.speculation import Candidate, DraftModel, ProposalContext


class RandomTrees:
    """The adversary: any tree that is allowed, with the true continuation somewhere in it, or not.

    truth: the whole token list that a prompt comes to, where it is known, by its tokens. chain: no
    branches (for layers with a window). rows: distributions come along, as if tokens were drawn.
    """

    name = "random trees"
    needs: tuple[str, ...] = ()

    def __init__(
        self,
        seed: int = 0,
        *,
        truth: Mapping[tuple[int, ...], list[int]] | None = None,
        chain: bool = False,
        largest: int = 9,
        vocab: int = 320,
    ) -> None:
        self.source, self.truth = random.Random(seed), dict(truth or {})
        self.chain, self.largest, self.vocab = chain, largest, vocab
        self.made = self.asked = 0

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        self.asked += 1
        return [self._draft(candidate) for candidate in context.candidates]

    def _draft(self, candidate: Candidate) -> Draft | None:
        size = self.source.randint(0, min(self.largest, candidate.max_tokens))
        if size == 0:
            return None
        self.made += 1
        prompt = candidate.sequence.request.prompt_token_ids
        known = self.truth.get(tuple(prompt), [])
        here = len(candidate.token_ids)
        right = known[:here] == candidate.token_ids
        tokens, parents, depths = [], [], []
        true_path = {-1}
        taken: set[tuple[int, int]] = set()
        for node in range(size):
            deep_enough = [p for p in range(-1, node) if p < 0 or depths[p] < candidate.max_depth]
            parent = node - 1 if self.chain else self.source.choice(deep_enough)
            if parent not in deep_enough:
                break
            depth = 1 if parent < 0 else depths[parent] + 1
            true = known[here + depth - 1] if right and here + depth - 1 < len(known) else None
            token = self.source.randrange(self.vocab)
            hit = parent in true_path and true is not None and self.source.random() < 0.75
            if hit:
                token = true
            if (parent, token) in taken:
                token = next(t for t in range(self.vocab) if (parent, t) not in taken)
            taken.add((parent, token))
            if parent in true_path and token == true:
                true_path.add(node)
            tokens.append(token)
            parents.append(parent)
            depths.append(depth)
        return Draft(tuple(tokens), tuple(parents), proposer=self.name)


class Decoyed:
    """What a model of the same weights says next, each token behind a wrong one beside it."""

    name = "decoyed"
    needs: tuple[str, ...] = ()

    def __init__(self, model: DecoderLM, length: int = 3) -> None:
        self.inner = DraftModel(model, length, backend="sdpa")
        self.slots_ahead = self.inner.slots_ahead

    def bind(self, model: Any, cache: Any) -> None:
        self.inner.bind(model, cache)

    def close(self) -> None:
        self.inner.close()

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        return [draft and self._spoiled(draft) for draft in self.inner.propose(context)]

    def _spoiled(self, draft: Draft) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        last = -1
        for token in draft.token_ids:
            tokens += [(token + 1) % 320, token]
            parents += [last, last]
            last = len(tokens) - 1
        return Draft(tuple(tokens), tuple(parents), proposer=self.name)


class Right:
    """Proposes the next `length` tokens of what a prompt is known to come to."""

    name = "right"
    needs: tuple[str, ...] = ()

    def __init__(self, truth: Mapping[tuple[int, ...], list[int]], length: int = 6) -> None:
        self.truth, self.length = dict(truth), length

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        return [self._draft(candidate) for candidate in context.candidates]

    def _draft(self, candidate: Candidate) -> Draft | None:
        known = self.truth[tuple(candidate.sequence.request.prompt_token_ids)]
        here, length = len(candidate.token_ids), min(self.length, candidate.max_depth)
        tokens = known[here : here + length]
        return Draft(tuple(tokens), proposer=self.name) if tokens else None


class Says:
    """Returns whatever a function makes of the context: for proposers that are wrong."""

    name = "says"
    needs: tuple[str, ...] = ()

    def __init__(self, answer: Callable[[ProposalContext], Any]) -> None:
        self.answer = answer

    def propose(self, context: ProposalContext) -> Any:
        return self.answer(context)


def truth_of(prompts: list[list[int]], outputs: list[list[int]]) -> dict[Any, list[int]]:
    """Return what each prompt comes to."""
    return {tuple(p): [*p, *o] for p, o in zip(prompts, outputs, strict=True)}


def drawn_chain(
    candidate: Candidate, q: Callable[[list[int]], torch.Tensor], length: int
) -> Draft | None:
    """Return a chain drawn from q, a function of the tokens before, with its distributions."""
    generator, tokens, rows = candidate.generator(), list(candidate.token_ids), []
    for _ in range(min(length, candidate.max_depth)):
        row = q(tokens)
        tokens.append(int(torch.multinomial(row, 1, generator=generator)))
        rows.append(row)
    new = tuple(tokens[len(candidate.token_ids) :])
    return Draft(new, probabilities=torch.stack(rows), proposer="drawn") if new else None
