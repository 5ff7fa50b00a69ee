"""`Speculator`: an engine's speculation. Asks the proposer before a step, decides after its pass.

    propose ─► drafts ─► schedule ─► run ─► draw ─► commit ─► told

Without a proposer it does nothing but call the sampler. Beams, prompts with embeddings, requests
that keep activations and a sequence's last token are decoded plainly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.describe import Described
from workbench.draft import Draft
from workbench.errors import ConfigError
from workbench.events import DraftVerified, warn
from workbench.models import DecoderLM
from workbench.request import Sequence
from workbench.results import Drawing, ForwardOutput, SampledTokens, Settled
from workbench.run import Runner
from workbench.sample import Sampler, begin
from workbench.scheduler import Scheduler, lend
from workbench.speculation import (
    Candidate,
    ProposalContext,
    Proposer,
    ProposerFailed,
    SpeculationConfig,
    States,
    Verified,
    Verifier,
    get_proposer,
)
from workbench.speculation.asking import ask, check_proposer, name_of
from workbench.speculation.control import Control
from workbench.speculation.states import RowSlices, StateStore


class Proposed(NamedTuple):
    """Drafts by sequence id, and the sequences that ended because their proposer failed."""

    drafts: dict[int, Draft]
    failed: list[Sequence]


class Speculator(Described):
    """What an engine does about drafts. `proposer` is None while there is none."""

    def __init__(
        self,
        model: DecoderLM,
        cache: KVCache,
        scheduler: Scheduler,
        runner: Runner,
        proposer: str | Path | Proposer | None = None,
        config: SpeculationConfig | None = None,
    ) -> None:
        self.model, self.cache, self.scheduler, self.runner = model, cache, scheduler, runner
        self.proposer: Proposer | None = None
        self.config = SpeculationConfig()
        self.control = Control(self.config)
        self._depth = 0  # of the drafts that were asked for last
        self._preparations = runner.preparations
        self._needs: tuple[str, ...] = ()
        self._ahead = 0  # slots that the proposer writes behind what is computed
        self._states = StateStore()
        self._verified: dict[int, Verified] = {}  # of the latest step
        self.use(proposer, SpeculationConfig() if config is None else config)

    def swap(
        self, proposer: str | Path | Proposer | None, config: SpeculationConfig | None
    ) -> None:
        """Change what is given; see `Engine.swap`."""
        wanted = {"same": self.proposer, "off": None}.get(str(proposer), proposer)
        self.use(wanted, self.config if config is None else config)

    def use(self, wanted: str | Path | Proposer | None, config: SpeculationConfig) -> None:
        """Take another proposer, or none; raise `ConfigError` if it is none or does not fit."""
        if not isinstance(config, SpeculationConfig):
            raise ConfigError("speculation", config, "is no SpeculationConfig", "Pass one.")
        proposer = get_proposer(wanted, self.model)
        needs: tuple[str, ...] = ()
        if proposer is not None:
            needs = check_proposer(proposer, self.model)
            if proposer is not self.proposer and hasattr(proposer, "bind"):
                proposer.bind(self.model, self.cache)
        if proposer is not self.proposer:
            self._let_go()
        if proposer is not self.proposer or config is not self.config:
            self.control = Control(config)
        self.proposer, self.config = proposer, config
        self.verifier = Verifier(config.make_rule())
        if needs != self._needs:
            self._states.clear()
        self._needs = self.runner.captured = needs
        self._ahead = int(getattr(proposer, "slots_ahead", 0))

    def rests(self, num_sequences: int) -> bool:
        """Whether nobody is asked for drafts while so many sequences run, whatever they do."""
        return self.proposer is None or self.config.depth(num_sequences) < 1

    def pauses(self, num_sequences: int) -> bool:
        """Whether nobody will be asked in the next step either, if so many sequences run then."""
        return self.rests(num_sequences) or self.control.pauses(num_sequences)

    def propose(self) -> Proposed:
        """Return drafts for the sequences that decode in the next step."""
        self._depth = 0
        if self.proposer is None:
            return _NOTHING
        running = self.scheduler.running
        rests = self.rests(len(running))
        # What it does not see of a sequence now it lacks later: drafts are worse then, not wrong.
        self.runner.captured = () if rests else self._needs
        if rests or self.scheduler.drops:
            return _NOTHING
        candidates = self._candidates(running)
        if not candidates:
            return _NOTHING
        if self._ahead:
            self._lend(candidates)
        drafts: dict[int, Draft] = {}
        failed: list[Sequence] = []
        with self.scheduler.books.open("proposing"):  # a user's code runs in there
            context = ProposalContext(self.scheduler.step + 1, candidates, self.model, self.cache)
            answers = ask(self.proposer, context)
        for candidate, answer in zip(candidates, answers, strict=True):
            sequence = candidate.sequence
            if isinstance(answer, ProposerFailed):
                if self._failed(sequence, answer):
                    failed.append(sequence)
            elif answer is not None and len(answer):
                drafts[sequence.sequence_id] = answer
        return Proposed(drafts, failed)

    def draw(self, plan: StepPlan, output: ForwardOutput, sampler: Sampler) -> Drawing:
        """Begin to draw what each sampled row goes on with; accepted KV lies in place then."""
        if output.logits is None:
            return Settled(SampledTokens([]), "no row samples")
        rows = [plan.sequences[row] for row in plan.sampled]
        with self.scheduler.books.open("sampling"):  # users' processors run in there
            if not plan.drafts:
                unread, draw = int(plan.unread is not None), self.runner.draw
                return begin(sampler, output.logits, rows, unread, draw)
            sampled = self.verifier(plan, output.logits, sampler)
        moves = []
        for place, accepted in sampled.accepted.items():
            row = plan.sampled[place]
            first, number = plan.starts[row] + 1, plan.sequences[row].sequence_id
            nodes = enumerate(accepted.nodes)
            moves += [(number, first + node, first + i) for i, node in nodes if node != i]
        self.cache.move_tokens(moves)
        return Settled(sampled, "drafts are verified")

    def committed(
        self,
        plan: StepPlan,
        output: ForwardOutput,
        sampled: SampledTokens,
        seconds: Mapping[str, float],
    ) -> None:
        """Keep what the proposer needs of a committed step, tell of its drafts, count its cost."""
        if self.proposer is not None and (plan.drafts or self.control.watches):
            self._measure(plan, sampled, seconds)
        self._verified = self.verifier.verified if plan.drafts else {}
        if output.states:
            self._keep(plan, output, sampled)
        if plan.drafts and self.scheduler.bus:
            for place, accepted in sampled.accepted.items():
                row = plan.sampled[place]
                number, draft = plan.sequences[row].sequence_id, plan.drafts[row]
                facts = draft.proposer, draft.token_ids, draft.parents, draft.chances
                verdict = accepted.nodes, sampled.token_ids[place]
                self.scheduler.bus.emit(DraftVerified(plan.step, number, *facts, *verdict))

    def _measure(self, plan: StepPlan, sampled: SampledTokens, parts: Mapping[str, float]) -> None:
        """Tell the control of a step in which all rows decode, and nothing was made for later."""
        if not self._depth and self.control.passes_over():
            return
        before, own = self._preparations, int(getattr(self.proposer, "preparations", 0))
        self._preparations = self.runner.preparations + own
        count = plan.num_decodes + len(plan.drafts)
        if not count or count < len(plan.sequences):
            return
        if before != self._preparations:
            if self._depth and self.control.watches:
                self.control.unmeasured(count)
            return
        seconds = sum(parts.values())
        if not self._depth:
            self.control.observe_plain(count, seconds)
            return
        made = {sequence.sequence_id: 1 for sequence in plan.sequences}
        for place, run in sampled.accepted.items():
            made[plan.sequences[plan.sampled[place]].sequence_id] += len(run.nodes)
        accepted = sum(made.values()) - count
        drafted = sum(len(draft) for draft in plan.drafts.values())
        queue = self.scheduler.num_unfinished > len(plan.sequences)
        self.control.observe(made, self._depth, drafted, accepted, seconds, queue=queue)

    def close(self) -> None:
        """Let go of the proposer."""
        self._let_go()
        self.proposer = None
        self._states.clear()
        self._verified = {}
        del self.model, self.cache, self.scheduler, self.runner

    def _let_go(self) -> None:
        if self.proposer is not None and hasattr(self.proposer, "close"):
            self.proposer.close()

    def _candidates(self, running: list[Sequence]) -> tuple[Candidate, ...]:
        """Return who of these decodes in the next step and may be drafted for."""
        depth = self._depth = self.control.depth(len(running))
        if depth < 1:
            return ()
        found = []
        for sequence in running:
            room = sequence.max_num_tokens - sequence.num_tokens - 1
            if room > 0 and sequence.num_tokens - sequence.num_computed == 1 and _drafts(sequence):
                states = self._states.take(sequence.sequence_id)
                bounds = self.config.max_tokens, min(room, depth)
                verified = self._verified.get(sequence.sequence_id)
                found.append(Candidate(sequence, *bounds, states, verified))
        return tuple(found)

    def _lend(self, candidates: tuple[Candidate, ...]) -> None:
        """Make room for what the proposer writes in the cache, of blocks that nobody lacks."""
        lend(self.scheduler, [(c.sequence, min(self._ahead, c.max_depth)) for c in candidates])
        self.cache.settle()

    def _failed(self, sequence: Sequence, error: ProposerFailed) -> bool:
        """End a sequence, or note that it goes on plainly; return whether it ended."""
        if self.config.on_proposer_error == "plain":
            self.scheduler.decode_plainly(sequence, str(error))
            warn(f"{error}; {sequence.request.request_id} goes on without drafts", stacklevel=4)
            return False
        self.scheduler.refuse(sequence, str(error))
        return True

    def _keep(self, plan: StepPlan, output: ForwardOutput, sampled: SampledTokens) -> None:
        """Keep the rows of committed tokens for the next time the proposer is asked."""
        accepted = {plan.sampled[place]: a.nodes for place, a in sampled.accepted.items()}
        kept: list[int] = []  # places in the packed batch
        parts: list[tuple[int, int, int]] = []  # whose, from which position, how many
        offset = 0
        for row, (sequence, start, count) in enumerate(
            zip(plan.sequences, plan.starts, plan.num_new, strict=True)
        ):
            begin, offset = offset, offset + count
            if sequence.finished or not _drafts(sequence):
                self._states.drop(sequence.sequence_id)
                continue
            before = len(kept)
            if row in accepted:
                kept += [begin, *(begin + 1 + node for node in accepted[row])]
            else:
                kept += range(begin, offset)
            parts.append((sequence.sequence_id, start, len(kept) - before))
        states = output.states
        if len(kept) < offset:  # one gather for all of them
            device = next(iter(states.values())).device
            # By way of numpy: torch takes ten times as long for a list.
            index = torch.from_numpy(np.array(kept, dtype=np.int64)).to(device, non_blocking=True)
            states = {point: rows.index_select(0, index) for point, rows in states.items()}
        begin = 0
        for number, start, count in parts:
            rows = RowSlices(states, begin, begin + count)
            self._states.add(number, States(start, rows))
            begin += count

    def describe(self) -> dict[str, Any]:
        """Return who proposes and who decides."""
        if self.proposer is None:
            return {"proposer": "none"}
        plainly = "beams, prompts with embeddings, requests that keep activations"
        facts = {"proposer": name_of(self.proposer), **self.verifier.describe()}
        facts |= self.control.describe()
        return {**facts, "decoded plainly": plainly}


_NOTHING = Proposed({}, [])


def _drafts(sequence: Sequence) -> bool:
    """Whether a sequence may be drafted for at all."""
    return (
        sequence.chooser is None
        and sequence.activations is None
        and sequence.request.embeds is None
        and not sequence.metrics.proposer_error
    )
