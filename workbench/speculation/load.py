"""`Load`: what steps of about so many rows have taken, by how deep they drafted.

Kept by `Control`, one for each number of rows.
"""

from __future__ import annotations

from collections import deque

WINDOW = 16  # latest times of a load and depth that count
DECAY = 0.95  # of what is known about acceptance, per drafted step
PROBE = 32  # drafted steps between two plain ones, and the first pause between two tries


class Load:
    """What is known of steps of about so many rows, and what is done there.

    depth: of the drafts now; left: steps until that is decided again. pause: how long the next
    pause is, where nothing pays. since_plain: drafted steps since the last plain one. unmeasured:
    tries since the last that was measured.
    """

    def __init__(self) -> None:
        self.times: dict[int, deque[float]] = {}
        self.depth = self.left = 0
        self.pause = PROBE
        self.decisions = self.turn = self.since_plain = self.unmeasured = 0
        self.tried_at = -1
        self._typical: dict[int, float] = {}  # of `times`, where these have not changed since
        self._worth: dict[int, tuple[float, float]] = {}  # plain steps, of drafted ones; decayed

    def add(self, kind: int, seconds: float) -> float:
        """Note what a step took; return what such a step typically takes."""
        self.times.setdefault(kind, deque(maxlen=WINDOW)).append(seconds)
        self._typical.pop(kind, None)
        self.since_plain = self.since_plain + 1 if kind > 0 else 0
        return self.time(kind) or seconds

    def learn(self, depth: int, worth: float) -> None:
        """Note how many plain steps a drafted one was worth."""
        steps, of = self._worth.get(depth, (0.0, 0.0))
        self._worth[depth] = DECAY * steps + worth, DECAY * of + 1

    def speed(self, depth: int) -> float | None:
        """Return how many plain steps' work is done in a second at a depth; None: not known."""
        time, worth = self.time(depth), self._worth.get(depth)
        return None if time is None or worth is None else worth[0] / worth[1] / time

    def time(self, kind: int) -> float | None:
        """Return the lower quartile of the latest times: what other programs do only adds to it."""
        typical = self._typical.get(kind)
        if typical is None and (times := self.times.get(kind)):
            typical = self._typical[kind] = sorted(times)[len(times) // 4]
        return typical

    def foreseen(self, depth: int, tried: list[int], plain: float) -> float:
        """Return what a step of this depth will take: on the line through the depths that were
        tried, or through the one and a plain step."""
        if not tried:
            return 2 * plain
        low, high = min(tried), max(tried)
        most = self.time(high) or plain
        least, begin = (self.time(low) or plain, low) if low < high else (plain, 0)
        slope = max(0.0, most - least) / (high - begin)
        return most + slope * max(0, depth - high)
