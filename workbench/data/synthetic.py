"""Seeded synthetic workloads: Poisson or bursty arrivals, shared prefixes, several turns.

The same arguments give the same requests, on any machine.
"""

from __future__ import annotations

import random
from itertools import count

from workbench.data.workload import TimedRequest, Workload
from workbench.errors import InvalidValue

_BLOCK = 16
# Standard deviation of the gaps between arrivals over their mean.
_VARIATION = {"poisson": 1.0, "bursty": 4.0}

Lengths = tuple[int, int]


def make_synthetic(
    num_sessions: int,
    *,
    rate: float,
    seed: int,
    arrivals: str = "poisson",
    prompt_tokens: Lengths = (64, 512),
    output_tokens: Lengths = (16, 256),
    num_prefixes: int = 0,
    prefix_tokens: int = 0,
    turns: Lengths = (1, 1),
    think_seconds: float = 10.0,
) -> Workload:
    """Return a workload of `num_sessions` conversations that begin at `rate` per second.

    arrivals: `poisson`, or `bursty` (gamma-distributed gaps whose deviation is 4 times their mean).
    Pairs are the least and the most, drawn evenly. num_prefixes, prefix_tokens: system prompts, one
    of which begins each conversation. turns: requests of a conversation; each prompt is all that
    was said before and something new of `prompt_tokens`, and comes `think_seconds` (mean of an
    exponential) after the one before. Raises `InvalidValue` for what makes no sense.
    """
    _check(num_sessions, rate, arrivals, num_prefixes, prefix_tokens, think_seconds)
    for name, pair in (
        ("prompt_tokens", prompt_tokens),
        ("output_tokens", output_tokens),
        ("turns", turns),
    ):
        _check_lengths(name, pair)
    source, fresh = random.Random(f"synthetic-{seed}"), count()
    shape = 1 / _VARIATION[arrivals] ** 2
    prefixes = [_blocks(prefix_tokens, fresh) for _ in range(num_prefixes)]
    requests, now = [], 0.0
    for session in range(num_sessions):
        when, said = now, source.choice(prefixes) if prefixes else ()
        for turn in range(source.randint(*turns)):
            said = (*said, *_blocks(source.randint(*prompt_tokens), fresh))
            num_output = source.randint(*output_tokens)
            length = len(said) * _BLOCK
            requests.append(TimedRequest(when, length, num_output, said, session, turn))
            said = (*said, *_blocks(num_output, fresh))  # the answer, as far as we know it
            when += source.expovariate(1 / think_seconds) if think_seconds else 0.0
        now += source.gammavariate(shape, 1 / (shape * rate))
    requests.sort(key=lambda request: request.arrival)
    return Workload(f"{arrivals}-{seed}", tuple(requests), _BLOCK, seed)


def _blocks(num_tokens: int, fresh: count[int]) -> tuple[int, ...]:
    """Return new blocks for so many tokens, rounded up: a session's parts begin at whole blocks."""
    return tuple(next(fresh) for _ in range(-(-num_tokens // _BLOCK)))


def _check(
    num_sessions: int,
    rate: float,
    arrivals: str,
    num_prefixes: int,
    prefix_tokens: int,
    think_seconds: float,
) -> None:
    if arrivals not in _VARIATION:
        raise InvalidValue("arrivals", arrivals, "no such kind", f"Known: {', '.join(_VARIATION)}.")
    for name, value in (("num_sessions", num_sessions), ("rate", rate)):
        if not 0 < value < float("inf"):
            raise InvalidValue(name, value, "must be above 0", "Raise it.")
    if not 0 <= think_seconds < float("inf"):
        raise InvalidValue("think_seconds", think_seconds, "must be 0 or more", "Raise it.")
    if num_prefixes < 0 or (num_prefixes > 0) != (prefix_tokens > 0):
        fix = "Give both `num_prefixes` and `prefix_tokens`, or neither."
        raise InvalidValue("num_prefixes", num_prefixes, f"with {prefix_tokens=}", fix)


def _check_lengths(name: str, pair: Lengths) -> None:
    if len(pair) != 2 or not 1 <= pair[0] <= pair[1]:
        raise InvalidValue(name, pair, "must be the least and the most, from 1 on", "Order them.")
