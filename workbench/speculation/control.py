"""`Control`: how deep drafts are in each step, from what steps have cost and how much was accepted.

A ledger keeps the promise that speculation costs at most a small share over plain decoding: each
drafted step books its time less what plain decoding would have taken to come as far, and while the
sum exceeds `max_slowdown` of all time spent, nothing is drafted. A batch comes as far as its
slowest sequence; who runs ahead only makes later steps smaller, unless others wait for its place.
Depths are tried out of what that leaves (the very first on credit); one that is measured to pay is
used; where none does, tries come ever more rarely. Times are looked up by load. It is asked in
every step, which may take less than a millisecond: decisions last, and a pause is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.describe import Described
from workbench.speculation.config import SpeculationConfig
from workbench.speculation.load import DECAY, PROBE, WINDOW, Load

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_FEWEST = 4  # plain steps that must be measured before anything is drafted
_PACE = 0.1  # of a sequence's pace that its latest step makes up
_KEPT = 256  # steps whose time counts for what may be lost
_LONGEST = 4096  # steps between two tries where nothing pays
_EACH = 8  # plain steps of which one is looked at, in a pause
_AGAIN = 4  # so often in a row a try that could not be measured is made again at once
_RESERVE = 0.25  # of what may be lost: for what steps do not show, such as this class's own time
_EXACT = 4  # so many sequences are a load of their own; more are rounded up to a power of two
# Kinds of steps beside plain ones (0) and drafted ones (their depth).
_ASKED = -1  # the proposer was asked, and had no idea
_AFTER = -2  # a plain one after a drafted one, which finds other things in the caches


class Control(Described):
    """Decides on the depth of one engine's drafts, by its `SpeculationConfig`."""

    def __init__(self, config: SpeculationConfig) -> None:
        self.config = config
        self.total = 0.0  # seconds of the steps seen, at most of `_KEPT`: what is not spent expires
        self.debt = 0.0  # seconds that drafted steps took beyond plain ones for their tokens
        self._loads: dict[int, Load] = {}
        # Of each sequence that is drafted for, what it makes of what they make on average.
        self._paces: dict[int, float] = {}
        self._slowest = 1.0  # pace of a batch's slowest
        self._drafted = self._accepted = 0.0  # tokens, decayed
        self._wrong = 0.0  # drafts that were not right to their end, decayed
        # Where too little is accepted: steps until the next draft, and between the two after it.
        self._rest, self._pause = 0, PROBE
        self._after_draft = False  # whether the step before this one was drafted
        self._passing, self._passed = 0, 0  # plain steps not to be looked at, and that were not

    @property
    def watches(self) -> bool:
        """Whether it has to be told of plain steps."""
        return self.config.adaptive

    def pauses(self, num_sequences: int) -> bool:
        """Whether it is decided that the next step of so many sequences has no drafts."""
        load = self._load(num_sequences)
        return self.config.adaptive and load.depth == 0 and load.left > 0

    def passes_over(self) -> bool:
        """Whether a plain step need not be told of; it counts like the next that is."""
        if self._passing <= 0:
            return False
        self._passing, self._passed = self._passing - 1, self._passed + 1
        return True

    def depth(self, num_sequences: int) -> int:
        """Return how deep the next step's drafts may be; 0: none."""
        bound = self.config.depth(num_sequences)
        if bound < 1 or (self.config.min_acceptance > 0 and self._rests()):
            return 0
        if not self.config.adaptive:
            return bound
        load = self._load(num_sequences)
        if load.left > 0 and load.depth <= bound:
            load.left -= 1
        else:
            load.depth, load.left = self._decide(load, bound)
        return load.depth

    def observe_plain(self, num_sequences: int, seconds: float) -> None:
        """Take in a step for which nobody was asked: of so many rows, all decoding; `seconds` of
        the whole step."""
        if not self.config.adaptive:
            return
        load = self._load(num_sequences)
        kind = _AFTER if self._after_draft else 0
        self._after_draft = False
        cost = load.add(kind, seconds)
        self._book(cost, load.time(0) if kind else None, 1.0, also=self._passed * cost)
        self._passed = 0
        if kind == 0 and load.left > _EACH and len(load.times[0]) == WINDOW:
            self._passing = _EACH - 1

    def observe(
        self,
        made: Mapping[int, int],
        depth: int,
        drafted: int,
        accepted: int,
        seconds: float,
        *,
        queue: bool = False,
    ) -> None:
        """Take in a step of rows that all decode, for which the proposer was asked.

        made: how many tokens each sequence made, by its number; depth: what `depth` said; drafted,
        accepted: draft tokens, 0 if it had no idea; seconds: of the whole step; queue: whether
        others wait for the places of these.
        """
        if drafted:
            self._drafted = DECAY * self._drafted + drafted
            self._accepted = DECAY * self._accepted + accepted
            if accepted >= self.config.min_acceptance * drafted:
                self._rest, self._pause = 1, PROBE  # it may be better again: look once more
        if not self.config.adaptive:
            return
        load, kind = self._load(len(made)), depth if drafted else _ASKED
        if drafted:
            short = sum(tokens <= depth for tokens in made.values())
            self._wrong = DECAY * self._wrong + short
        self._after_draft, self._passing, self._passed = kind > 0, 0, 0
        cost = load.add(kind, seconds)
        worth = self._worth(made, load, queue)
        if kind > 0:
            load.learn(depth, worth)
            load.unmeasured = 0
        self._book(cost, load.time(0), worth)
        if kind > 0 and self._allowance < 0:
            load.left = 0

    def unmeasured(self, num_sequences: int) -> None:
        """Take in that a step's time says nothing, as it made something for later steps (captured a
        graph, say): what it tried is not tried yet."""
        load = self._load(num_sequences)
        load.unmeasured += 1
        if load.unmeasured <= _AGAIN:
            load.tried_at, load.left = -1, 0

    def _worth(self, made: Mapping[int, int], load: Load, queue: bool) -> float:
        """Return how many plain steps would have come as far as a step."""
        paces, rows = self._paces, len(made)
        usual = sum(made.values()) / rows
        # Who is new is taken for as slow as the slowest have been.
        known = {n: paces.get(n, self._slowest) for n in made}
        self._paces = {n: (1 - _PACE) * known[n] + _PACE * made[n] / usual for n in made}
        ratio = min(1.0, *self._paces.values())
        self._slowest = (1 - _PACE) * self._slowest + _PACE * ratio
        slowest = max(1.0, ratio * usual)
        share = 1.0 / rows if queue or rows == 1 else self._share(load, rows)
        return slowest + share * (sum(made.values()) - rows * slowest)

    def _share(self, load: Load, rows: int) -> float:
        """Return what a row fewer takes from a plain step; 0 where that is not known."""
        plain = load.time(0)
        smaller = [n for n, other in self._loads.items() if n < rows and other.time(0) is not None]
        if plain is None or not smaller:
            return 0.0
        most = max(smaller)
        less = self._loads[most].time(0) or plain
        return max(0.0, 1 - less / plain) / (rows - most)

    def _book(self, cost: float, plain: float | None, worth: float, *, also: float = 0.0) -> None:
        total, most = self.total + cost + also, _KEPT * cost
        self.total = min(total, most)
        # What expires has been given for what was lost: else a loss above it was never made good.
        self.debt = max(0.0, self.debt - self._share_lost * max(0.0, total - most))
        if plain is not None:
            # Gains are no licence to lose them later: the promise holds at any time.
            self.debt = max(0.0, self.debt + cost - plain * worth)

    def step_time(self, num_sequences: int, depth: int) -> float | None:
        """Return what a step of this load and depth takes, in seconds; None: not known."""
        return self._load(num_sequences).time(depth)

    @property
    def _allowance(self) -> float:
        return self._share_lost * (self.total - self.debt) - self.debt

    @property
    def _share_lost(self) -> float:
        """What share of all time may be lost."""
        return (1 - _RESERVE) * self.config.max_slowdown

    def _load(self, num_sequences: int) -> Load:
        rounded = 1 << (num_sequences - 1).bit_length()
        number = num_sequences if num_sequences <= _EXACT else rounded
        load = self._loads.get(number)
        if load is None:
            load = self._loads[number] = Load()
        return load

    def _rests(self) -> bool:
        """Whether too little was accepted of late for another draft to be made now."""
        if self._accepted >= self.config.min_acceptance * self._drafted:
            self._rest, self._pause = 0, PROBE
            return False
        if self._rest == 0:
            self._rest, self._pause = self._pause, min(2 * self._pause, _LONGEST)
        self._rest -= 1
        return self._rest > 0

    def _decide(self, load: Load, bound: int) -> tuple[int, int]:
        """Return the depth from now on, and for how many steps after this one."""
        plain = load.time(0)
        if plain is None or len(load.times[0]) < _FEWEST:
            return 0, 0
        if load.depth and load.since_plain >= PROBE:
            return 0, 1
        depths = [d for d in DEPTHS if d < bound] + [bound]
        known = {d: speed for d in depths if (speed := load.speed(d)) is not None}
        best = max(known, key=lambda d: known[d], default=0)
        pays = best > 0 and known[best] * plain > 1
        if self._allowance < 0:
            pays = False
        elif not pays or load.decisions % 4 == 3:
            other = self._other(load, depths, known, plain, pays=pays)
            if other:
                load.decisions += 1
                return other, 0
        if not pays:
            pause = load.pause
            if load.tried_at == load.turn:  # else it could not be afforded, and may be soon
                load.pause = min(2 * load.pause, _LONGEST)
            load.turn += 1
            return 0, pause
        load.pause = PROBE
        load.decisions += 1
        return best, 7

    def _other(
        self, load: Load, depths: list[int], known: dict[int, float], plain: float, *, pays: bool
    ) -> int:
        """Return a depth to try: one that was not, else one after the other; 0: not now."""
        if not pays and load.tried_at == load.turn:
            return 0  # one try after each pause
        first = self._drafted == 0  # of all: on credit
        tried, left = list(known), self._allowance
        risks = {d: self._risk(load, d, tried, plain) for d in depths}
        depth = depths[(load.decisions // 4 + load.turn) % len(depths)]
        if untried := [d for d in depths if d not in known and (first or risks[d] <= left)]:
            times = {d: load.foreseen(d, tried, plain) for d in untried}
            depth = max(untried, key=lambda d: self._hoped(d) / times[d])
        elif risks[depth] > left:
            return 0
        load.tried_at = load.turn
        return depth

    def _risk(self, load: Load, depth: int, tried: list[int], plain: float) -> float:
        """Return how much longer a step of this depth may take than plain ones for its tokens.

        Of the first there is nothing known: a plain step, then.
        """
        if not tried:
            return plain
        return max(0.0, load.foreseen(depth, tried, plain) - plain * self._hoped(depth))

    def _hoped(self, depth: int) -> float:
        """Return how many tokens a row makes in a step, if each of a draft is as often right."""
        right = self._accepted / (self._accepted + self._wrong + 1)
        return sum(right**place for place in range(depth + 1))

    def describe(self) -> dict[str, Any]:
        """Return what was measured."""
        rate = f"{self._accepted / self._drafted:.0%}" if self._drafted else "nothing yet"
        facts = {"accepted lately": rate}
        if self.config.adaptive:
            facts["time lost"] = f"{self.debt / self.total:+.1%}" if self.total else "nothing yet"
        return facts
