"""`BeamSearch`: keep the likeliest continuations, as sequences that fork and drop out.

A beam is a sequence whose tokens this strategy chooses: the sampler reports its likeliest next
tokens, and once every live beam has reported, the best candidates go on. A beam with several good
continuations is forked (its blocks are shared), one with none is dropped. Beams of one request need
not run in the same step: one that has reported has nothing left to compute and waits.

Diverse groups: Vijayakumar et al. 2016, with the Hamming diversity of transformers.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from workbench.engine.plain import pack_logprobs, unpack_logprobs
from workbench.engine.requests import Branching, RequestRecord
from workbench.engine.strategies.beam_group import BeamGroup, Candidate
from workbench.request import Sequence, TokenLogprobs
from workbench.sampling_params import SamplingParams


class BeamSearch:
    """The strategy of a request with `beam_width`, and the chooser of its sequences."""

    def __init__(self, params: SamplingParams) -> None:
        assert params.beam_width is not None
        self.params, self.width = params, params.beam_width
        self.settled = False
        self.groups: list[BeamGroup] = []
        self._offers: dict[int, TokenLogprobs] = {}  # sequence id -> its likeliest next tokens
        self._ended: Sequence | None = None  # by an error, a time-out or an abort

    def begin(self, first: Sequence) -> None:
        """Start every group with the prompt."""
        first.chooser = self
        width = self.width // self.params.beam_groups
        self.groups = [
            BeamGroup(self.params, width, [first]) for _ in range(self.params.beam_groups)
        ]

    def take(self, sequence: Sequence, entry: TokenLogprobs) -> None:
        """Note what the model offers after the sequence's last token."""
        self._offers[sequence.sequence_id] = entry

    def advance(self, record: RequestRecord, engine: Branching) -> list[Sequence]:
        """Choose and reorganise the beams, once every live one has reported."""
        live = self._live()
        self._ended = next((beam for beam in live if beam.finished), None)
        if self._ended is not None:
            return self._stop(live, engine)
        if not all(beam.sequence_id in self._offers for beam in live):
            return []
        chosen = self._choose(engine)
        self._offers.clear()
        if all(group.is_done for group in self.groups):
            record.sequences[:] = [*self._ranked(), *live]
            return self._stop(live, engine)
        dropped = self._carry_out(chosen, live, record, engine)
        record.sequences[:] = [*self._ranked(), *self._live()]
        return dropped

    def selected(self, record: RequestRecord) -> list[Sequence]:
        """Return the best finished beams, and live ones while there are too few."""
        if self._ended is not None:
            return [self._ended]
        return [*self._ranked(), *self._live()][: self.params.n] or record.sequences

    def pack(self, places: dict[int, int]) -> dict[str, Any]:
        """Return its state as plain data."""
        ids = {beam.sequence_id: places[id(beam)] for beam in self._live()}
        return {
            "settled": self.settled,
            "groups": [group.pack(places) for group in self.groups],
            "offers": [[ids[i], pack_logprobs(entry)] for i, entry in self._offers.items()],
            "ended": None if self._ended is None else places[id(self._ended)],
        }

    def unpack(self, data: dict[str, Any], sequences: list[Sequence]) -> None:
        """Take the state of `pack` on."""
        for group, state in zip(self.groups, data["groups"], strict=True):
            group.unpack(state, sequences)
        for sequence in sequences:
            sequence.chooser = None if sequence.finished else self
        self._offers = {
            sequences[place].sequence_id: unpack_logprobs(entry) for place, entry in data["offers"]
        }
        self._ended = None if data["ended"] is None else sequences[data["ended"]]
        self.settled = data["settled"]

    def _live(self) -> list[Sequence]:
        beams = {beam.sequence_id: beam for group in self.groups for beam in group.live}
        return list(beams.values())

    def _ranked(self) -> list[Sequence]:
        finished = [f for group in self.groups for f in group.finished]
        finished.sort(key=lambda f: f.score, reverse=True)
        return [f.sequence for f in finished]

    def _choose(self, engine: Branching) -> list[list[Candidate]]:
        """Let each group decide, in turn; return who goes on, by group."""

        def ended_by(candidate: Candidate) -> Sequence | None:
            return engine.ended_copy(candidate.parent, candidate.entry)

        taken: Counter[int] = Counter()
        chosen: list[list[Candidate]] = []
        for group in self.groups:
            chosen.append([])
            if group.is_done:
                continue
            first = group.live[0]
            sizes = first.num_output_tokens + 1, first.max_num_tokens - first.num_prompt_tokens
            candidates = self._candidates(group, taken)
            going_on = group.decide(candidates, ended_by, *sizes)
            taken.update(c.entry.token_id for c in going_on or candidates[: group.width])
            if not group.is_done:
                chosen[-1] = going_on
        return chosen

    def _candidates(self, group: BeamGroup, taken: Counter[int]) -> list[Candidate]:
        """Return the group's best candidates, best first; ties go to the better beam and lower id.

        As many as always leave `width` that do not end.
        """
        candidates = []
        for rank, (beam, score) in enumerate(zip(group.live, group.scores, strict=True)):
            offer = self._offers[beam.sequence_id]
            for token_id, logprob in offer.top:
                if logprob == -math.inf:
                    break
                total = score + logprob - self.params.diversity_penalty * taken[token_id]
                entry = TokenLogprobs(token_id, logprob, offer.top)
                candidates.append((total, -rank, -token_id, Candidate(total, beam, entry)))
        candidates.sort(reverse=True)
        keep = group.width * (1 + max(1, len(group.live[0].stop_ids)))
        return [candidate for *_, candidate in candidates[:keep]]

    def _carry_out(
        self,
        chosen: list[list[Candidate]],
        live: list[Sequence],
        record: RequestRecord,
        engine: Branching,
    ) -> list[Sequence]:
        """Fork, extend and drop beams; return the dropped ones."""
        uses = Counter(c.parent.sequence_id for group in chosen for c in group)
        for group, going_on in zip(self.groups, chosen, strict=True):
            group.live, group.scores = [], [candidate.score for candidate in going_on]
            for _, parent, entry in going_on:
                uses[parent.sequence_id] -= 1
                if uses[parent.sequence_id]:  # others need it as it is
                    beam = engine.branch(record, parent, parent.num_tokens, entry)
                else:
                    beam = parent
                    engine.extend(parent, entry)
                group.live.append(beam)
        kept = {beam.sequence_id for beam in self._live()}
        dropped = [beam for beam in live if beam.sequence_id not in kept]
        for beam in dropped:
            engine.finish(beam, "dropped")
        return dropped

    def _stop(self, live: list[Sequence], engine: Branching) -> list[Sequence]:
        """End the search: what still runs is dropped, or ends as the one that was ended did."""
        self.settled = True
        reason = self._ended.finish_reason if self._ended is not None else None
        for beam in live:
            engine.finish(beam, reason or "dropped")
        for group in self.groups if self._ended is None else ():
            group.live, group.scores = [], []
        return live
