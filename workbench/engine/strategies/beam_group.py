"""One group of a beam search: which candidates go on, which have finished, and when to stop.

Pure bookkeeping over scores: `BeamSearch` brings candidates and carries out what is decided here.
The rules are those of transformers' `generate` (v5), whose three kinds of early stopping differ
from the textbook's: see `BeamGroup.is_done`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workbench.request import Sequence, TokenLogprobs
from workbench.sampling_params import SamplingParams


class Candidate(NamedTuple):
    """A beam and a next token. score: the sum of log-probabilities with it, penalties included."""

    score: float
    parent: Sequence
    entry: TokenLogprobs


class Finished(NamedTuple):
    """A beam that ended. score: its log-probability / length ** length_penalty."""

    score: float
    sequence: Sequence


@dataclass(slots=True)
class BeamGroup:
    """`width` beams: `live` ones with their scores, best first, and the best finished ones."""

    params: SamplingParams
    width: int
    live: list[Sequence]
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[Finished] = field(default_factory=list)
    may_improve: bool = True
    out_of_candidates: bool = False

    def decide(
        self,
        candidates: list[Candidate],
        ended_by: Callable[[Candidate], Sequence | None],
        num_output: int,
        max_output: int,
    ) -> list[Candidate]:
        """Take in this step's candidates, best first; return those that go on, at most `width`.

        ended_by: the finished beam that a candidate makes, None if it goes on. num_output: output
        tokens with this one; max_output: how many there may be at most.
        """
        pairs = [(candidate, ended_by(candidate)) for candidate in candidates]
        going_on = [candidate for candidate, ended in pairs if ended is None][: self.width]
        self.out_of_candidates = not going_on
        if self.may_improve and not (self._is_full and self.params.early_stopping is True):
            scale = num_output**self.params.length_penalty
            for candidate, ended in pairs[: self.width]:  # an end counts only among the best
                if ended is not None:
                    self.finished.append(Finished(candidate.score / scale, ended))
            self.finished = sorted(self.finished, key=lambda f: f.score, reverse=True)
            del self.finished[self.width :]
        if going_on:
            self.may_improve = self.may_improve and self._improvable(
                going_on[0].score, num_output, max_output
            )
        return going_on

    def pack(self, places: dict[int, int]) -> dict[str, Any]:
        """Return its state as plain data."""
        return {
            "live": [places[id(beam)] for beam in self.live],
            "scores": list(self.scores),
            "finished": [[score, places[id(beam)]] for score, beam in self.finished],
            "may_improve": self.may_improve,
            "out_of_candidates": self.out_of_candidates,
        }

    def unpack(self, data: dict[str, Any], sequences: list[Sequence]) -> None:
        """Take the state of `pack` on."""
        self.live = [sequences[place] for place in data["live"]]
        self.scores = list(data["scores"])
        self.finished = [Finished(score, sequences[place]) for score, place in data["finished"]]
        self.may_improve = data["may_improve"]
        self.out_of_candidates = data["out_of_candidates"]

    @property
    def is_done(self) -> bool:
        """Whether the search is over: nothing goes on, or nothing better is to be expected."""
        full = self._is_full and self.params.early_stopping is True
        return self.out_of_candidates or full or not self.may_improve

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self.width

    def _improvable(self, best: float, num_output: int, max_output: int) -> bool:
        """Whether the best live beam could still beat the worst finished one.

        With `never`, if longer beams are favoured, at the longest length there may be; else at the
        present one, a heuristic.
        """
        if not self._is_full:
            return True
        longest = self.params.early_stopping == "never" and self.params.length_penalty > 0
        length = max_output if longest else num_output
        return bool(best / length**self.params.length_penalty > self.finished[-1].score)
