"""Dropping policies: exactly the attention that is left, whatever happens to a sequence."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from drive import MakeEngine, drawn, greedy, tokens_of
from masked import dense_logprobs
from tiny import VOCAB, random_prompts

from workbench import events
from workbench.cache.dropping import HeavyHitter, KeptBlocks, SinkWindow, keep_all
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

Folder = Callable[[str], Path]
SIZE = 4
PROMPT = random_prompts(2, seed=71, longest=40)[0] or [1, 2]
LONG = [3 + 7 * i % (VOCAB - 5) for i in range(29)]


def forced(tokens: list[int], num_prompt: int, **settings: Any) -> SamplingParams:
    """Return parameters under which a request generates these tokens, and reports on each."""

    def force(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        logits.fill_(-torch.inf)
        logits[tokens[len(token_ids)]] = 0.0
        return logits

    count = len(tokens) - num_prompt
    chosen = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return SamplingParams(**{**chosen, "logits_processors": [force], **settings})


@pytest.fixture(scope="module")
def hf(request: pytest.FixtureRequest) -> Any:
    checkpoint: Folder = request.getfixturevalue("checkpoint")
    auto = transformers.AutoModelForCausalLM
    folder = checkpoint("llama")
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def sink_window(num_sinks: int, window: int) -> Callable[..., list[int]]:
    """Return by hand what is neither sink nor window, written with tokens, not with blocks."""

    def choose(length: int, kept: list[int], _: dict[int, float]) -> list[int]:
        wanted = {p for p in range(length + 1) if p < num_sinks or p > length - window}
        return [b for b in kept if not wanted & set(range(b * SIZE, (b + 1) * SIZE))]

    return choose


def heavy_hitter(num_heavy: int, num_recent: int) -> Callable[..., list[int]]:
    """Return by hand what neither is recent nor had attention."""

    def choose(length: int, kept: list[int], masses: dict[int, float]) -> list[int]:
        gone = [b for b in kept if (b + 1) * SIZE - 1 <= length - num_recent]
        for _ in range(num_heavy // SIZE):
            if gone:
                gone.remove(max(gone, key=lambda b: (masses[b], b)))
        return gone

    return choose


class Recorded:
    """A policy that remembers what it has left of the full blocks, call by call."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.kept = policy, []
        self.needs_attention = getattr(policy, "needs_attention", False)

    def __call__(self, kept: KeptBlocks) -> list[int]:
        dropped = self.policy(kept)
        self.kept.append([block.index for block in kept.blocks if block.index not in dropped])
        return dropped


POLICIES = {
    "sinks and window": (SinkWindow(6, 13), sink_window(6, 13)),
    "a window alone": (SinkWindow(0, 8), sink_window(0, 8)),
    "sinks alone": (SinkWindow(4, 1), sink_window(4, 1)),
    "heavy": (HeavyHitter(8, 10), heavy_hitter(8, 10)),
    "recent alone": (HeavyHitter(0, 6), heavy_hitter(0, 6)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "native"])
def test_it_is_dense_attention_under_a_mask(
    make_engine: MakeEngine, hf: Any, backend: str, name: str
) -> None:
    policy, choose = POLICIES[name]
    tokens, num_prompt = [*LONG, *random_prompts(1, 5)[0], *reversed(LONG)][:60], 11
    expected, kept = dense_logprobs(hf, tokens, num_prompt, SIZE, choose)
    watched = Recorded(policy)
    engine = make_engine(backend=backend, block_size=SIZE, dropping=watched)
    request = engine.add(tokens[:num_prompt], forced(tokens, num_prompt))
    while engine.has_work:
        engine.step()
        engine.cache.check()
    [output] = engine.forget(request).outputs
    assert output.token_ids == tokens[num_prompt:]
    got = [entry.logprob for entry in output.logprobs or []]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert watched.kept == kept[: len(watched.kept)]
    assert engine.cache.stats().dropped >= 5
