"""`SpeculationConfig`: how far an engine speculates, by which rule, and what it does when it fails.

Frozen and checked when made. What to propose is the proposer's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from workbench.config import require_choice, require_positive
from workbench.errors import ConfigError
from workbench.keywords import known_keywords
from workbench.speculation.rules import RULES, Rule, Synthetic


@known_keywords(ConfigError)
@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """max_depth, max_tokens: how deep and how large one sequence's draft may be.

    lengths: a schedule by load, pairs (running sequences, depth): from that many on, drafts are at
    most so deep; 0 is none. adaptive: choose the depth of each step from measured times and
    acceptance, so that speculation costs at most max_slowdown over plain decoding. min_acceptance:
    the share of draft tokens that must be accepted of late; below it drafts stop, but for a few to
    see whether it has changed.

    rule: "auto" (exact), a name in `workbench.speculation.RULES`, or a rule; those that are `lossy`
    change the distribution of tokens, and results say so. synthetic_acceptance: accept each token
    with this probability whatever it is, for studies of speed; the text means nothing.

    on_proposer_error: what becomes of a request whose proposer raised or returned no draft: "fail"
    ends it with that error, "plain" decodes on without drafts and notes it in its metrics.
    """

    max_depth: int = 32
    max_tokens: int = 64
    lengths: tuple[tuple[int, int], ...] = ()
    adaptive: bool = False
    max_slowdown: float = 0.02
    min_acceptance: float = 0.0
    rule: str | Rule = "auto"
    synthetic_acceptance: float | None = None
    on_proposer_error: Literal["fail", "plain"] = "fail"

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        require_positive("SpeculationConfig.max_depth", self.max_depth)
        require_positive("SpeculationConfig.max_tokens", self.max_tokens)
        require_choice(
            "SpeculationConfig.on_proposer_error", self.on_proposer_error, ("fail", "plain")
        )
        for name in ("max_slowdown", "min_acceptance", "synthetic_acceptance"):
            _fraction(name, getattr(self, name))
        pairs = tuple(tuple(pair) for pair in self.lengths)
        if any(len(p) != 2 or not all(isinstance(n, int) and n >= 0 for n in p) for p in pairs):
            fix = "Give pairs (running sequences, depth), such as ((1, 8), (16, 2), (64, 0))."
            raise ConfigError("SpeculationConfig.lengths", self.lengths, "is no schedule", fix)
        object.__setattr__(self, "lengths", tuple(sorted(pairs)))
        self.make_rule()

    def make_rule(self) -> Rule | None:
        """Return the rule, None for the automatic one; raise `ConfigError` if there is no such."""
        if self.synthetic_acceptance is not None:
            return Synthetic(self.synthetic_acceptance)
        if not isinstance(self.rule, str):
            if not callable(self.rule) or not hasattr(self.rule, "lossy"):
                fix = "Pass an object such as `rules.Typical()`, with `name` and `lossy`."
                raise ConfigError("SpeculationConfig.rule", self.rule, "is no rule", fix)
            return self.rule
        if self.rule == "auto":
            return None
        require_choice("SpeculationConfig.rule", self.rule, ("auto", *RULES))
        return RULES[self.rule]()

    def depth(self, num_sequences: int) -> int:
        """Return how deep drafts may be while so many sequences run."""
        depth = self.max_depth
        for least, scheduled in self.lengths:
            if num_sequences >= least:
                depth = min(self.max_depth, scheduled)
        return depth


def _fraction(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= 1):
        field, fix = f"SpeculationConfig.{name}", "0.02 is 2 %."
        raise ConfigError(field, value, "must be a number from 0 to 1", fix)
