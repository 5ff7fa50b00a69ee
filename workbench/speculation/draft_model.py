"""`DraftModel`: a smaller model of the same tokens guesses a few of them, one after the other.

Leviathan et al. 2023, Chen et al. 2023. It has a KV cache of its own. What it has computed of a
sequence is compared with the sequence each time, so a rejected draft, a preemption or a rewind
needs no word: whatever differs is computed again, and after a wholly accepted draft the two tokens
that it has not seen (its last guess and the one that follows) are caught up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.config import require_positive
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.request import Sequence
from workbench.run import Runner
from workbench.speculation.proposer import Candidate, ProposalContext

_PASS_TOKENS = 2048  # new tokens of one forward pass: a long prompt is caught up in several


class DraftModel(Described):
    """Proposes chains of up to `max_draft` tokens.

    model: what drafts, or the name or folder to load it from. sampled: draw from its distribution
    at the request's temperature and hand this over, to be verified by rejection; otherwise its
    likeliest tokens are proposed. num_blocks: of its cache (None: as many as the target's), where
    sequences that are not drafted for now make way. backend: for its own passes.
    """

    name = "draft model"
    needs: tuple[str, ...] = ()

    def __init__(
        self,
        model: DecoderLM | str | Path,
        max_draft: int = 4,
        *,
        sampled: bool = False,
        num_blocks: int | None = None,
        backend: str = "auto",
    ) -> None:
        """Raise `ConfigError` for sizes that mean nothing."""
        require_positive(f"{type(self).__name__}.max_draft", max_draft)
        if num_blocks is not None:
            require_positive(f"{type(self).__name__}.num_blocks", num_blocks)
        self.source, self.max_draft, self.sampled = model, max_draft, sampled
        self.num_blocks, self.backend = num_blocks, backend
        self.model: DecoderLM | None = None
        self._followers: dict[int, _Follower] = {}
        self._step = 0

    def bind(self, model: DecoderLM, cache: KVCache) -> None:
        """Load the model and allocate its cache; `ConfigError` unless it speaks the same tokens."""
        self.close()
        draft = self._load(model)
        check_same_tokens(draft, model)
        num_blocks = self.num_blocks or cache.blocks.groups[0].num_blocks
        self.model = draft
        self.cache = KVCache.for_model(draft, num_blocks, cache.block_size)
        self.runner = Runner(draft, self.cache, self.backend)

    def _load(self, model: DecoderLM) -> DecoderLM:
        if isinstance(self.source, DecoderLM):
            return self.source
        dtype = str(model.dtype).removeprefix("torch.")
        return load_model(self.source, device=str(model.device), dtype=dtype)

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a chain for every candidate that its cache and its context have room for."""
        assert self.model is not None, "bound to an engine's model first"
        for number in [n for n, f in self._followers.items() if f.target.finished]:
            self._drop(number)
        wanted = {c.sequence.sequence_id for c in context.candidates}
        rows = [row for c in context.candidates if (row := self._start(c, wanted)) is not None]
        if rows:
            logits = self._catch_up(rows)
            while True:
                for row, token in zip(rows, self._choose(rows, logits), strict=True):
                    row.sequence.token_ids.append(token)
                rows = [row for row in rows if row.num_drafted < row.length]
                if not rows:
                    break
                logits = self._pass(rows, [1] * len(rows))
        return [self._draft(candidate) for candidate in context.candidates]

    def _start(self, candidate: Candidate, wanted: set[int]) -> _Follower | None:
        """Return a candidate's follower, with room for its draft; None where there is none."""
        target, number = candidate.sequence, candidate.sequence.sequence_id
        follower = self._followers.pop(number, None)
        if follower is None or follower.target is not target:
            if number in self.cache.blocks.tables:
                self.cache.blocks.free(number)
            self.cache.blocks.open(number, None)
            follower = _Follower(target)
        self._followers[number] = follower  # the latest used goes last
        follower.begin(candidate, min(self.max_draft, candidate.max_tokens, candidate.max_depth))
        start, stop = follower.sequence.num_computed, target.num_tokens + follower.length - 1
        assert self.model is not None
        if stop > self.model.config.context:
            follower.length = 0
            return None
        self.cache.blocks.trim(number, start)
        while self.cache.blocks.lacks(number, start, stop):
            others = [n for n in self._followers if n not in wanted]
            if not others:
                follower.length = 0
                return None
            self._drop(others[0])
        self.cache.blocks.grow(number, start, stop)
        return follower

    def _catch_up(self, rows: list[_Follower]) -> Tensor:
        """Compute what the rows' sequences have and the model has not; return logits [R, V]."""
        found: dict[int, Tensor] = {}
        while behind := [row for row in rows if row.behind]:
            left, part, counts = _PASS_TOKENS, [], []
            for row in sorted(behind, key=lambda row: row.behind):
                count = min(row.behind, left)
                if count:
                    part.append(row)
                    counts.append(count)
                    left -= count
            logits = self._pass(part, counts)
            done = [row for row in part if not row.behind]
            found |= {id(row): logits[i] for i, row in enumerate(done)}
        return torch.stack([found[id(row)] for row in rows])

    def _pass(self, rows: list[_Follower], counts: list[int]) -> Tensor:
        """Compute the rows' next tokens, `counts` of each; return the logits after those that have
        no further ones, in order. Rows with one token come first."""
        self._step += 1
        plan = StepPlan(self._step)
        for row, count in zip(rows, counts, strict=True):
            plan.append(row.sequence, count)
        plan.num_decodes = next((i for i, n in enumerate(counts) if n > 1), len(counts))
        output = self.runner.run(plan)
        for row, count in zip(rows, counts, strict=True):
            row.sequence.num_computed += count
        return torch.empty(0) if output.logits is None else output.logits

    def _choose(self, rows: list[_Follower], logits: Tensor) -> list[int]:
        """Return each row's next token."""
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        for i, row in enumerate(rows):
            temperature = row.target.request.params.temperature
            if not self.sampled or row.target.request.params.greedy:
                continue
            q = torch.softmax(logits[i].float() / temperature, dim=-1)
            tokens[i] = int(torch.multinomial(q.cpu(), 1, generator=row.generator()))
            row.rows.append(q)
        return tokens

    def _draft(self, candidate: Candidate) -> Draft | None:
        row = self._followers[candidate.sequence.sequence_id]
        if row.length < 1:
            return None
        tokens = row.sequence.token_ids[candidate.sequence.num_tokens :]
        return Draft(tuple(tokens), (), torch.stack(row.rows) if row.rows else None, self.name)

    def _drop(self, number: int) -> None:
        del self._followers[number]
        self.cache.blocks.free(number)

    def close(self) -> None:
        """Give the cache back, and the model if it was loaded here."""
        if self.model is None:
            return
        self._followers.clear()
        self.runner.close()
        self.cache.close()
        self.model = None

    def describe(self) -> dict[str, Any]:
        """Return the model and how far it goes."""
        source = self.source
        shown = source.config.architecture if isinstance(source, DecoderLM) else str(source)
        how = "drawn" if self.sampled else "likeliest"
        return {"model": shown, "draft": f"{self.max_draft} tokens, {how}"}


class _Follower:
    """A target's tokens as the draft model knows them: `sequence`, then its guesses."""

    def __init__(self, target: Sequence) -> None:
        self.target = target
        self.sequence = replace(
            target, token_ids=[], num_computed=0, prompt_logprobs=None, activations=None
        )
        self.settled = 0  # tokens that are surely the target's: those are never taken back
        self.length = 0
        self.rows: list[Tensor] = []
        self._generator: torch.Generator | None = None
        self._make: Callable[[], torch.Generator] = torch.Generator

    @property
    def behind(self) -> int:
        """Tokens that are not computed yet."""
        return self.sequence.num_tokens - self.sequence.num_computed

    @property
    def num_drafted(self) -> int:
        """Guesses made so far."""
        return self.sequence.num_tokens - self.target.num_tokens

    def begin(self, candidate: Candidate, length: int) -> None:
        """Take over the target's tokens; keep what was computed of the same ones, but the last."""
        mine, theirs = self.sequence.token_ids, candidate.token_ids
        same = self.settled
        while same < len(mine) and same < len(theirs) and mine[same] == theirs[same]:
            same += 1
        self.sequence.token_ids = list(theirs)
        self.sequence.num_computed = min(self.sequence.num_computed, same, len(theirs) - 1)
        self.settled, self.length, self.rows = len(theirs), length, []
        self._generator, self._make = None, candidate.generator

    def generator(self) -> torch.Generator:
        """Return the numbers for this draft's draws."""
        self._generator = self._generator or self._make()
        return self._generator


def check_same_tokens(draft: DecoderLM, target: DecoderLM) -> None:
    """Raise `ConfigError` unless two models speak of the same tokens, on one device."""
    field, fix = "DraftModel.model", "Draft with a model of the target's own tokenizer."
    name = draft.config.architecture
    if draft.config.vocab_size != target.config.vocab_size:
        sizes = (
            f"a vocabulary of {draft.config.vocab_size}, the target's {target.config.vocab_size}"
        )
        raise ConfigError(field, name, sizes, fix)
    if draft.tokenizer is not None and target.tokenizer is not None:
        ids, wanted = draft.tokenizer.hf.get_vocab(), target.tokenizer.hf.get_vocab()
        if ids != wanted:
            pairs = sorted(wanted.items() - ids.items(), key=lambda pair: pair[1])
            other = f"token {pairs[0][1]} is another" if pairs else "it has further tokens"
            raise ConfigError(field, name, f"has another tokenizer: {other}", fix)
    if draft.device != target.device:
        problem = f"is on {draft.device}, the target on {target.device}"
        raise ConfigError(field, name, problem, "Load both on one device.")
