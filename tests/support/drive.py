"""Driving an engine in tests: parameters, and the tokens of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.engine import Engine
from workbench.sampling_params import SamplingParams

MakeEngine = Callable[..., Engine]
Alone = Callable[..., list[list[int]]]


def greedy(max_tokens: int = 24, **settings: Any) -> SamplingParams:
    """Return greedy parameters that go on past the end token, so that lengths are known."""
    return SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **settings}
    )


def drawn(seed: int, max_tokens: int = 24, **settings: Any) -> SamplingParams:
    """Return parameters that draw at temperature 1.3 with a seed."""
    chosen = {"max_tokens": max_tokens, "temperature": 1.3, "seed": seed, "ignore_eos": True}
    return SamplingParams(**{**chosen, **settings})


def tokens_of(
    engine: Engine,
    prompts: Sequence[Any],
    params: SamplingParams | list[SamplingParams],
) -> list[list[int]]:
    """Return the tokens of every prompt, all in flight together."""
    return [output.outputs[0].token_ids for output in engine.generate(prompts, params)]
