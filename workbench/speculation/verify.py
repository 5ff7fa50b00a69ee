"""`Verifier`: from the logits of a pass to what each row goes on with.

The sampler is asked once, for every row and every node of a draft (see `nodes`), so a node's token
is the very one that plain decoding would draw there; where it would take the largest logit of all,
that is looked up at once. By default a path is followed as far as the
draft has these tokens: exact for every kind of request, and token for token what it is without
speculation. Drafts that come with the distributions they were drawn from are verified by rejection,
and any rule of `rules` can be asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from workbench.batch import StepPlan
from workbench.describe import Described
from workbench.draft import Draft
from workbench.request import Sequence, TokenLogprobs
from workbench.results import Accepted, SampledTokens
from workbench.sample import token_logprobs
from workbench.sample.greedy import INVALID, likeliest
from workbench.sample.largest import takes_largest
from workbench.speculation.chance import SeededChance
from workbench.speculation.nodes import NodeViews
from workbench.speculation.proposer import Verified
from workbench.speculation.rules import ExactMatch, Rejection, Rule, Synthetic


class DrawsTokens(Protocol):
    """What the verifier asks of a sampler; see `Sampler` for both."""

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return a token for each row."""

    def with_probabilities(
        self, logits: Tensor, sequences: list[Sequence]
    ) -> tuple[SampledTokens, Tensor]:
        """Return a token for each row, and the distributions they were drawn from."""


_EXACT, _REJECTION = ExactMatch(), Rejection()


class _Row(NamedTuple):
    """A sampled row: its draft, if any, and where its logits begin."""

    sequence: Sequence
    draft: Draft | None
    base: int


class _Outcome(NamedTuple):
    """Accepted nodes, the token that follows, and by which rule; None: the sampler's own tokens."""

    nodes: tuple[int, ...]
    token_id: int
    rule: Rule | None = None


class Verifier(Described):
    """Decides on a plan's drafts. rule: for all of them; None: exact match for drafts that are
    given, rejection for those that were drawn."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule
        self._views = NodeViews()
        self.verified: dict[int, Verified] = {}  # of the latest plan with drafts, by sequence id
        # Whom it was asked about last, and whether the largest logit is all they want.
        self._sequences: list[Sequence] = []
        self._sampler: DrawsTokens | None = None
        self._largest = False

    def __call__(self, plan: StepPlan, logits: Tensor, sampler: DrawsTokens) -> SampledTokens:
        """Return what follows each of `plan.sampled`; logits as in `ForwardOutput`.

        Raises what the sampler does.
        """
        rows = _rows(plan)
        rules = [self._rule_for(row) for row in rows]
        p: Tensor | None = None
        if any(rule is not None and not isinstance(rule, Synthetic) for rule in rules):
            drawn, p = sampler.with_probabilities(logits, self._views.rows(plan))
        else:
            drawn = self._draw(plan, logits, sampler)
        outcomes = [
            _follow(row, drawn) if rule is None else _ask(row, rule, p, drawn)
            for row, rule in zip(rows, rules, strict=True)
        ]
        self.verified = {
            row.sequence.sequence_id: _verified(row.draft, row.base, outcome, drawn.token_ids)
            for row, outcome in zip(rows, outcomes, strict=True)
            if row.draft is not None
        }
        result = SampledTokens([outcome.token_id for outcome in outcomes])
        if drawn.logprobs is not None:
            result.logprobs = [None] * len(rows)
        for place, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            _report(place, row, outcome, drawn, logits, result)
        return result

    def _draw(self, plan: StepPlan, logits: Tensor, sampler: DrawsTokens) -> SampledTokens:
        """Return a token for each row of logits."""
        sequences = [plan.sequences[row] for row in plan.sampled]
        if sequences != self._sequences or sampler is not self._sampler:
            self._sequences, self._sampler = sequences, sampler
            self._largest = takes_largest(sampler, sequences)
        if self._largest:
            token_ids: list[int] = likeliest(logits).tolist()
            if INVALID not in token_ids:  # else the sampler says why
                return SampledTokens(token_ids)
        return sampler(logits, self._views.rows(plan))

    def _rule_for(self, row: _Row) -> Rule | None:
        """Return the rule for a row; None: follow the sampler's tokens."""
        if row.draft is None:
            return None
        rule = self.rule
        if rule is None:
            rule = _REJECTION if row.draft.is_drawn else _EXACT
        if isinstance(rule, Rejection) and not row.draft.is_drawn:
            rule = _EXACT
        # p of a greedy row has one token, and every exact rule takes just that.
        follows = isinstance(rule, ExactMatch) or (
            row.sequence.request.params.greedy and not rule.lossy
        )
        return None if follows else rule

    def describe(self) -> dict[str, Any]:
        """Return the rule, and whether tokens are the model's own."""
        if self.rule is None:
            return {"rule": "exact match; rejection for drawn drafts"}
        return {"rule": self.rule.name, "lossy": self.rule.lossy}


def _rows(plan: StepPlan) -> list[_Row]:
    rows, base = [], 0
    for row in plan.sampled:
        draft = plan.drafts.get(row)
        rows.append(_Row(plan.sequences[row], draft, base))
        base += 1 + (0 if draft is None else len(draft))
    return rows


def _follow(row: _Row, drawn: SampledTokens) -> _Outcome:
    """Go on as long as the draft has the tokens that were drawn."""
    tokens, draft = drawn.token_ids, row.draft
    if draft is None:
        return _Outcome((), tokens[row.base])
    if draft.is_chain and not drawn.errors:
        right = 0
        after = tokens[row.base : row.base + len(draft)]
        for guess, token_id in zip(draft.token_ids, after, strict=True):
            if guess != token_id:
                break
            right += 1
        return _Outcome(tuple(range(right)), tokens[row.base + right])
    children, guesses = draft.children(), draft.token_ids
    nodes: list[int] = []
    place = row.base
    while True:
        token_id, below = tokens[place], children[place - row.base]
        node = next((node for node in below if guesses[node] == token_id), None)
        if node is None or place in drawn.errors:
            return _Outcome(tuple(nodes), token_id)
        nodes.append(node)
        place = row.base + 1 + node


def _ask(row: _Row, rule: Rule, p: Tensor | None, drawn: SampledTokens) -> _Outcome:
    assert row.draft is not None, "a rule is asked about a draft"
    chance = SeededChance(row.sequence.seed, row.sequence.num_output_tokens)
    if isinstance(rule, Synthetic):  # costs what following the drawn tokens costs
        nodes = rule.path(row.draft, chance)
        return _Outcome(nodes, drawn.token_ids[row.base + (nodes[-1] + 1 if nodes else 0)], rule)
    assert p is not None, "made where any rule asks for it"
    verdict = rule(row.draft, p[row.base : row.base + 1 + len(row.draft)], chance)
    return _Outcome(*verdict, rule)


def _verified(draft: Draft, base: int, outcome: _Outcome, token_ids: list[int]) -> Verified:
    return Verified(draft, tuple(token_ids[base : base + 1 + len(draft)]), outcome.nodes)


def _report(
    place: int,
    row: _Row,
    outcome: _Outcome,
    drawn: SampledTokens,
    logits: Tensor,
    result: SampledTokens,
) -> None:
    """Note a row's errors, accepted tokens, log-probabilities, and whether it had a choice."""
    last = row.base + (outcome.nodes[-1] + 1 if outcome.nodes else 0)
    if last in drawn.errors:
        result.errors[place] = drawn.errors[last]
    entries: list[TokenLogprobs] | None = None
    wanted = row.sequence.num_tracked
    if wanted is not None and drawn.logprobs is not None:
        path = [row.base, *(row.base + 1 + node for node in outcome.nodes)]
        if outcome.rule is not None:
            entries = _entries(row, outcome, logits[path], wanted)
        else:
            found = [drawn.logprobs[i] for i in path]
            entries = [entry for entry in found if entry is not None]
        assert result.logprobs is not None, "made where any row reports"
        result.logprobs[place] = entries[-1] if len(entries) == len(path) else None
    if last in drawn.forced:
        result.forced |= {place}
    if row.draft is not None:
        tokens = tuple(row.draft.token_ids[node] for node in outcome.nodes)
        before = None if entries is None else tuple(entries[: len(tokens)])
        rule = outcome.rule
        lossy = rule.name if rule is not None and rule.lossy else ""
        result.accepted[place] = Accepted(outcome.nodes, tokens, before, lossy)


def _entries(row: _Row, outcome: _Outcome, logits: Tensor, wanted: int) -> list[TokenLogprobs]:
    """Return what is reported of the accepted tokens and the one that follows them."""
    assert row.draft is not None, "only a draft has other tokens than the sampler's"
    tokens = [*(row.draft.token_ids[node] for node in outcome.nodes), outcome.token_id]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    token_ids = torch.tensor(tokens, device=logits.device)
    return token_logprobs(logprobs, token_ids, [wanted] * len(tokens))
