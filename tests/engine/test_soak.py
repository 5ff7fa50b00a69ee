"""Soak: many random steps with everything at once; outputs stay exact and nothing leaks.

`WORKBENCH_SOAK_STEPS=100000 pytest tests/engine/test_soak.py` runs it at length.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest
from drafting import RandomTrees
from drive import MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench.engine import Engine
from workbench.errors import RequestError, RequestFinished
from workbench.request import RequestOutput
from workbench.sample import Sampler
from workbench.sampling_params import SamplingParams
from workbench.speculation import NGram, SuffixAutomaton

STEPS = int(os.environ.get("WORKBENCH_SOAK_STEPS", "3000"))
PROMPTS = [*random_prompts(6, seed=71, longest=40), [5, 6] * 9, [5, 6] * 9 + [7]]
MENU = [
    greedy(12),
    drawn(3, 18, logprobs=2),
    drawn(4, 9, n=3),
    drawn(5, 8, n=1, best_of=2),
    SamplingParams(beam_width=3, n=2, max_tokens=8, ignore_eos=True),
    greedy(10, repetition_penalty=1.3, no_repeat_ngram_size=3, logit_bias={9: -2.0}),
    drawn(6, 10, prompt_logprobs=1),
]
POLICIES = ["fcfs", "shortest_first", "priority", "fair_share", "longest_prefix_match"]


def tokens(output: RequestOutput) -> list[list[int]]:
    return [completion.token_ids for completion in output.outputs]


class Soak:
    """An engine that random things happen to, and what its requests must come to."""

    def __init__(self, engine: Engine, plain: Engine, source: random.Random) -> None:
        self.engine, self.plain, self.source = engine, plain, source
        self.order: dict[str, tuple[int, int]] = {}  # request -> (prompt, parameters)
        self.oracle: dict[tuple[int, int], list[list[int]]] = {}
        self.saved: tuple[Any, dict[str, tuple[int, int]]] | None = None
        self.seen: Counter[str] = Counter()

    def act(self) -> None:
        """Do one random thing between two steps."""
        names = list(self.engine.requests)
        kinds = {"nothing": 60, "add": 14, "abort": 2, "fork": 3, "pause": 2, "resume": 4}
        kinds |= {"swap": 1, "checkpoint": 0.4, "restore": 0.3}
        [kind] = self.source.choices(list(kinds), list(kinds.values()))
        if kind == "add" and len(names) < 24:
            order = self.source.randrange(len(PROMPTS)), self.source.randrange(len(MENU))
            tenant = self.source.choice(["a", "b"])
            name = self.engine.add(PROMPTS[order[0]], MENU[order[1]], tenant=tenant)
            self.order[name] = order
        elif kind in ("abort", "fork", "pause", "resume") and names:
            try:
                self._touch(kind, self.source.choice(names))
            except (RequestError, RequestFinished):
                return
        elif kind == "swap":
            self.engine.swap(
                scheduler_policy=self.source.choice(POLICIES),
                sampler=Sampler(),
                backend=self.source.choice(["sdpa", "reference"]),
                proposer=self.source.choice(
                    ["off", NGram(4, max_n=2), RandomTrees(1, vocab=12), SuffixAutomaton(pool=2)]
                ),
            )
        elif kind == "checkpoint":
            self.saved = self.engine.checkpoint(), dict(self.order)
        elif kind == "restore" and self.saved is not None:
            state, self.order = self.saved[0], dict(self.saved[1])
            self.engine.restore(state)
        else:
            return
        self.seen[kind] += 1

    def _touch(self, kind: str, name: str) -> None:
        if kind == "fork":
            twin = self.engine.fork(name, SamplingParams(temperature=1.0, seed=1, max_tokens=30))
            self.order.pop(twin, None)  # goes its own way: only its end is looked at
        else:
            getattr(self.engine, kind)(name)
            if kind == "abort":
                self.order.pop(name, None)

    def collect(self) -> None:
        """Take out what has ended and compare it with a run by itself."""
        for name, record in self.engine.requests.items():
            if not record.finished:
                continue
            output, order = self.engine.forget(name), self.order.pop(name, None)
            if order is None:
                continue
            if order not in self.oracle:
                prompt, params = PROMPTS[order[0]], MENU[order[1]]
                [expected] = self.plain.generate([prompt], params)
                self.oracle[order] = tokens(expected)
            assert tokens(output) == self.oracle[order], (order, name)
            self.seen["compared"] += 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak(make_engine: MakeEngine) -> None:
    source = random.Random(2026)
    engine = make_engine(
        num_blocks=46,
        block_size=4,
        max_sequences=7,
        max_batch_tokens=24,
        preemption="swap",
        host_blocks=24,
        chunking="equal_progress",
    )
    soak = Soak(engine, make_engine(backend="reference", prefix_reuse=False), source)
    for step in range(STEPS):
        soak.act()
        engine.step()
        soak.collect()
        if step % 50 == 0:
            engine.cache.check()
    for name in engine.requests:
        engine.resume(name)
    engine.run()
    soak.collect()
    assert not engine.requests
    assert soak.seen["compared"] > STEPS / 30
    assert min(soak.seen[kind] for kind in ("add", "abort", "fork", "pause", "swap")) > STEPS / 300
    assert soak.seen["restore"]
    stats = engine.cache.stats()
    assert stats.offloads
    assert stats.restores
    assert engine.cache.blocks.num_used == 0
