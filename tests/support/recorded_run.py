"""Traces of runs that never were: seeded, of any size, with drafts, queues, preemption and pauses.

What an engine states about itself in the same order, without an engine, so that views can be shown
thousands of steps and hundreds of requests in a moment. Token texts are in the header.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from workbench import events
from workbench.events import Event
from workbench.trace import Trace

SCRIPT = "<script>window.harmed = 1</script>"
WORDS = ["def", " fib", "(", "n", "):", "\n    ", "return", " n", " if", " <", "1", " else", SCRIPT]
VOCAB = 64  # ids above the words are named w13, w14, …
MAX_BATCH_TOKENS = 256


@dataclass
class _Request:
    number: int
    prompt: int
    wanted: int
    computed: int = 0
    tokens: int = 0
    state: str = "waiting"
    made: list[int] = field(default_factory=list)


class RecordedRun:
    """Writes `trace`, step by step. drafts: None, `chain` or `tree`; logprobs: how many of the top.

    Requests come one by one while fewer than `num_requests` have; `max_running` of them run.
    """

    def __init__(
        self,
        num_requests: int,
        *,
        seed: int = 0,
        max_running: int = 8,
        drafts: str | None = None,
        logprobs: int = 0,
        prompt: tuple[int, int] = (5, 60),
        wanted: tuple[int, int] = (5, 40),
        draft: tuple[int, int] = (0, 5),
    ) -> None:
        self.random = random.Random(seed)
        self.left, self.max_running = num_requests, max_running
        self.drafts, self.logprobs, self.sizes = drafts, logprobs, (prompt, wanted)
        self.draft = draft
        texts = {str(i): WORDS[i] if i < len(WORDS) else f" w{i}" for i in range(VOCAB)}
        texts |= {str(VOCAB + i): chr(0xDC00 + byte) for i, byte in enumerate("é".encode())}
        header = {"model": "recorded", "max_batch_tokens": MAX_BATCH_TOKENS, "texts": texts}
        self.trace = Trace(header)
        self.step, self.now = 0, 0.0
        self.requests: list[_Request] = []

    def say(self, event: Event, seconds: float = 0.0) -> None:
        """Record an event, `seconds` after the one before."""
        self.now += seconds
        self.trace.events.append(event)
        self.trace.seconds.append(self.now)

    def run(self, num_steps: int) -> Trace:
        """Make steps and return the trace."""
        for _ in range(num_steps):
            self._arrivals()
            self._step()
        return self.trace

    def of(self, state: str) -> list[_Request]:
        """Return the requests in a state, as they came."""
        return [request for request in self.requests if request.state == state]

    def _arrivals(self) -> None:
        while self.left and self.random.random() < 0.4:
            self.left -= 1
            number = len(self.requests)
            prompt, wanted = (self.random.randint(*size) for size in self.sizes)
            ids = tuple(self.random.randrange(VOCAB) for _ in range(prompt))
            self.requests.append(_Request(number, prompt, wanted, tokens=prompt))
            name = f"r{number}"
            self.say(events.RequestAdded(self.step, name, number, prompt, wanted, ids), 1e-4)

    def _step(self) -> None:
        self.step += 1
        self._disturb()
        for request in self.of("waiting")[: self.max_running - len(self.of("running"))]:
            request.state = "running"
            self.say(events.SequenceAdmitted(self.step, request.number, request.computed))
        rows, budget = [], MAX_BATCH_TOKENS
        drafts: dict[int, int] = {}
        for request in self.of("running"):
            draft = 0
            if self.drafts and request.tokens - request.computed == 1 and budget > 8:
                draft = min(self.random.randint(*self.draft), budget - 1)
            new = min(budget, request.tokens - request.computed + draft)
            if new:
                rows.append((request.number, request.computed, new))
                drafts[request.number] = draft
                budget -= new
        sizes = len(self.of("waiting")), len(self.of("running"))
        self.say(events.StepPlanned(self.step, tuple(rows), *sizes))
        self._commit(rows, drafts)

    def _disturb(self) -> None:
        running, chance = self.of("running"), self.random.random()
        if running and chance < 0.03:
            request = running[-1]
            facts = "no free block for r0", request.computed
            self.say(events.Preempted(self.step, request.number, *facts))
            request.state, request.computed = "waiting", 0
        elif running and chance < 0.05:
            running[0].state = "paused"
            self.say(events.SequencePaused(self.step - 1, running[0].number))
        elif self.of("paused") and chance < 0.15:
            self.of("paused")[0].state = "waiting"
            self.say(events.SequenceResumed(self.step - 1, self.of("waiting")[0].number, False))
        elif running and self.of("waiting") and chance < 0.3:
            waits = self.of("waiting")[-1].number, running[0].number
            self.say(events.PrefixAwaited(self.step, *waits, 16))

    def _commit(self, rows: list[tuple[int, int, int]], drafts: dict[int, int]) -> None:
        made: list[tuple[int, int]] = []
        for number, start, new in rows:
            request = self.requests[number]
            if start + new - drafts[number] < request.tokens:
                request.computed = start + new
                continue
            tokens = [self._token()]
            if drafts[number]:
                tokens = self._verify(number, drafts[number])
            request.tokens += len(tokens)
            request.computed = request.tokens - 1
            request.made += tokens
            made += [(number, token) for token in tokens]
        for number in {number for number, _ in made}:
            request = self.requests[number]
            if len(request.made) >= request.wanted:
                request.state = "finished"
                ending = f"r{number}", number, "length", len(request.made)
                self.say(events.RequestFinished(self.step, *ending))
        total = sum(new for _, _, new in rows)
        run = 0.002 + 4e-5 * total * (0.7 + 0.6 * self.random.random())
        seconds = {"schedule": 2e-4, "run": run, "sample": 4e-4, "commit": 1e-4}
        told = tuple(self._logprob(token) for _, token in made) if self.logprobs else ()
        computed = tuple(self.requests[number].computed for number, _, _ in rows)
        facts = tuple(made), seconds, 64, computed, told, 0.9 * run
        self.say(events.StepDone(self.step, *facts), sum(seconds.values()))

    def _verify(self, number: int, count: int) -> list[int]:
        tree = self.drafts == "tree"
        tokens = [self._token() for _ in range(count)]
        parents = [
            self.random.randrange(max(-1, node - 4), node) if tree and node else node - 1
            for node in range(count)
        ]
        likely = tuple(round(self.random.random(), 3) for _ in range(count))
        accepted, last = [], -1
        for node in range(count):
            if parents[node] == last and self.random.random() < 0.6:
                accepted.append(node)
                last = node
        bonus = self._token()
        draft = tuple(tokens), tuple(parents), likely, tuple(accepted), bonus
        self.say(events.DraftVerified(self.step, number, "medusa", *draft))
        return [tokens[node] for node in accepted] + [bonus]

    def _token(self) -> int:
        return self.random.randrange(VOCAB)

    def _logprob(self, token: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        shares = sorted((self.random.random() ** 3 for _ in range(self.logprobs)), reverse=True)
        whole = sum(shares) * 1.1
        others = [self._token() for _ in shares]
        others[0 if self.random.random() < 0.7 else -1] = token
        top = tuple((i, math.log(share / whole)) for i, share in zip(others, shares, strict=True))
        return next(value for i, value in top if i == token), top
