"""`DraftModel`: a smaller model of the same tokens guesses a few of them, one after the other.

Leviathan et al. 2023, Chen et al. 2023. Its keys and values lie in the blocks of the target's cache
(see `CompanionKV`), so it finds a prefix where the target does. What it has computed is told by
tokens: a rejected draft, a preemption or a rewind needs no word, and after a wholly accepted draft
the two tokens that it has not seen (its last guess and the one that follows) are caught up.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.batch import StepPlan
from workbench.cache import CompanionKV, KVCache
from workbench.config import require_positive
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.run import Runner
from workbench.sample.params import to_device
from workbench.speculation.follower import Follower
from workbench.speculation.proposer import Candidate, ProposalContext, ProposerMemory

PASS_TOKENS = 2048  # new tokens of one forward pass: a long prompt is caught up in several


class DraftModel(Described):
    """Proposes chains of up to `max_draft` tokens.

    model: what drafts, or the name or folder to load it from. sampled: draw from its distribution
    at the request's temperature and hand this over, to be verified by rejection; otherwise its
    likeliest tokens are proposed. backend: for its own passes, which are replayed from a tape or
    CUDA graphs where the target's decodes would be.
    """

    name = "draft model"
    needs: tuple[str, ...] = ()

    def __init__(
        self,
        model: DecoderLM | str | Path,
        max_draft: int = 4,
        *,
        sampled: bool = False,
        backend: str = "auto",
    ) -> None:
        """Raise `ConfigError` for sizes that mean nothing."""
        require_positive(f"{type(self).__name__}.max_draft", max_draft)
        self.source, self.max_draft, self.sampled = model, max_draft, sampled
        self.backend = backend
        self.model: DecoderLM | None = None
        self._loaded: tuple[DecoderLM, DecoderLM] | None = None  # for which target, and what
        self._followers: dict[int, Follower] = {}
        self._step = 0

    @property
    def slots_ahead(self) -> int:
        """How many slots behind a sequence's last computed token it writes: all but for its last
        guess, and one for the token that it follows."""
        return self.max_draft

    @property
    def preparations(self) -> int:
        """How many of its passes were captured or recorded: see `Runner.preparations`."""
        return 0 if self.model is None else self.runner.preparations

    def memory(self, model: DecoderLM, block_size: int) -> ProposerMemory:
        """Return what it takes beside a target; loads the model, and raises what `bind` does."""
        draft = self._drafter(model)
        shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        tensors = (*draft.parameters(), *draft.buffers())
        own = {t.untyped_storage().data_ptr(): t for t in tensors if id(t) not in shared}
        weights = sum(tensor.untyped_storage().nbytes() for tensor in own.values())
        return ProposerMemory(
            self.name,
            weights,
            CompanionKV.block_bytes(draft, block_size),
            draft.config,
            PASS_TOKENS,
        )

    def bind(self, model: DecoderLM, cache: KVCache) -> None:
        """Load the model and make room beside the cache's blocks; `ConfigError` unless it speaks
        the same tokens."""
        draft = self._drafter(model)
        self.close()
        self.model = draft
        self.kv = CompanionKV(cache, draft)
        self.runner = Runner(draft, self.kv, self.backend)
        self._tensor = self.kv.tensors[0]

    def _drafter(self, model: DecoderLM) -> DecoderLM:
        """Return the model that drafts for a target, loaded once."""
        if self._loaded is None or self._loaded[0] is not model:
            draft = self._load(model)
            check_same_tokens(draft, model)
            self._loaded = model, draft
        return self._loaded[1]

    def _load(self, model: DecoderLM) -> DecoderLM:
        if isinstance(self.source, DecoderLM):
            return self.source
        dtype = str(model.dtype).removeprefix("torch.")
        return load_model(self.source, device=str(model.device), dtype=dtype)

    @torch.inference_mode()
    def propose(self, context: ProposalContext) -> list[Draft | None]:
        """Return a chain for every candidate that the blocks and its context have room for."""
        assert self.model is not None, "bound to an engine's model first"
        if self.kv.tensors[0] is not self._tensor:  # the cache was made anew
            self.runner.forget_addresses()
            self._followers.clear()
            self._tensor = self.kv.tensors[0]
        for number in [n for n, f in self._followers.items() if f.target.finished]:
            del self._followers[number]
        found = [self._start(candidate) for candidate in context.candidates]
        rows = [row for row in found if row is not None]
        if rows:
            self._draft(rows)
        return [None if row is None else row.draft(self.name) for row in found]

    def _start(self, candidate: Candidate) -> Follower | None:
        """Return a candidate's follower, with what it has to compute; None where there is no room
        for a draft."""
        target = candidate.sequence
        follower = self._followers.get(target.sequence_id)
        if follower is None or follower.target is not target:
            follower = self._followers[target.sequence_id] = Follower(target, self.kv)
        assert self.model is not None
        room = self.model.config.context - target.num_tokens + 1
        length = min(self.max_draft, candidate.max_tokens, candidate.max_depth, room)
        return follower if follower.begin(candidate, length) else None

    def _draft(self, rows: list[Follower]) -> None:
        """Let every row guess as many tokens as it is to."""
        self._prompts(rows)
        rows, logits = self._catch_up(rows)
        guesses, whose = [], []
        for ahead in range(max(row.length for row in rows)):
            guesses.append(tokens := self._choose(rows, logits))
            whose.append(rows)
            if going := [i for i, row in enumerate(rows) if row.length > ahead + 1]:
                if len(going) < len(rows):
                    tokens = tokens[to_device(torch.tensor(going), tokens.device)]
                    rows = [rows[i] for i in going]
                logits = self._decode(rows, tokens, ahead)
        # Read at once: until here nothing has waited for a GPU, unless tokens are drawn.
        told = iter(torch.cat(guesses).tolist())
        for row in (row for group in whose for row in group):
            row.sequence.token_ids.append(next(told))
        for row in whose[0]:
            row.computed(row.sequence.num_tokens - 1)

    def _prompts(self, rows: list[Follower]) -> None:
        """Compute what is too much for the pass in which all rows catch up."""
        while long := [row for row in rows if row.behind > self.max_draft + 1]:
            left, part, counts = PASS_TOKENS, [], []
            for row in sorted(long, key=lambda row: row.behind):
                if count := min(row.behind - 1, left):
                    part.append(row)
                    counts.append(count)
                    left -= count
            plan = self._plan(part, counts)
            plan.num_decodes = next((i for i, n in enumerate(counts) if n > 1), len(counts))
            self._run(plan, part)

    def _catch_up(self, rows: list[Follower]) -> tuple[list[Follower], Tensor]:
        """Compute the tokens that are left up to the last; return the rows, and logits [R, V].

        Rows of several are run as if they verified these: such passes are replayed.
        """
        rows = sorted(rows, key=lambda row: row.behind)
        counts = [row.behind for row in rows]
        plan = self._plan(rows, counts)
        plan.num_decodes = counts.count(1)
        plan.sampled = list(range(len(rows)))
        plan.drafts = {
            i: Draft(tuple(row.sequence.token_ids[1 - n :]))
            for i, (row, n) in enumerate(zip(rows, counts, strict=True))
            if n > 1
        }
        logits = self._run(plan, rows)
        if not plan.drafts:
            return rows, logits
        last = [end - 1 for end in accumulate(counts)]
        return rows, logits[to_device(torch.tensor(last), logits.device)]

    def _decode(self, rows: list[Follower], tokens: Tensor, ahead: int) -> Tensor:
        """Compute the rows' latest guesses, tokens [R], of which the host need not know."""
        plan = self._plan(rows, [1] * len(rows))
        plan.num_decodes, plan.sampled, plan.unread = len(rows), list(range(len(rows))), tokens
        return self._run(plan, rows)

    def _plan(self, rows: list[Follower], counts: list[int]) -> StepPlan:
        self._step += 1
        sequences = [row.sequence for row in rows]
        return StepPlan(self._step, sequences, [s.num_computed for s in sequences], counts)

    def _run(self, plan: StepPlan, rows: list[Follower]) -> Tensor:
        logits = self.runner.run(plan).logits
        for row, count in zip(rows, plan.num_new, strict=True):
            row.sequence.num_computed += count
        return torch.empty(0) if logits is None else logits

    def _choose(self, rows: list[Follower], logits: Tensor) -> Tensor:
        """Return each row's next token [R]."""
        tokens = logits.argmax(dim=-1)
        for i, row in enumerate(rows if self.sampled else ()):
            params = row.target.request.params
            if params.greedy:
                continue
            q = torch.softmax(logits[i].float() / params.temperature, dim=-1)
            tokens[i] = torch.multinomial(q.cpu(), 1, generator=row.generator())[0]
            row.rows.append(q)
        return tokens

    def close(self) -> None:
        """Give the room beside the cache back, and the model if it was loaded here."""
        if self.model is None:
            return
        self._followers.clear()
        self.runner.close()
        self.kv.close()
        self.model = self._loaded = None
        del self._tensor

    def describe(self) -> dict[str, Any]:
        """Return the model and how far it goes."""
        source = self.source
        shown = source.config.architecture if isinstance(source, DecoderLM) else str(source)
        how = "drawn" if self.sampled else "likeliest"
        facts = {"model": shown, "draft": f"{self.max_draft} tokens, {how}"}
        if self.model is not None:
            kept = self.kv.describe()
            facts |= {"keys": kept["memory"], "computed": kept["computed"]}
        return facts


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
