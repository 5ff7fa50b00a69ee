"""A seed decides a request's tokens, whatever runs beside it and in whatever order."""

from __future__ import annotations

from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from tiny import random_prompts

from workbench.sampling_params import SamplingParams

FILTERS = [
    {},
    {"top_k": 12},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.6},
]


def test_a_seed_decides_whatever_the_batch(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str
) -> None:
    parts = {"backend": backend, "device": device}
    prompts = random_prompts(6, seed=20)
    params = [drawn(i, 20, **chosen) for i, chosen in enumerate(FILTERS)]
    expected = alone(prompts, params, **parts)
    together = make_engine(**parts)
    assert tokens_of(together, prompts, params) == expected
    backwards = tokens_of(together, prompts[::-1], params[::-1])
    assert backwards[::-1] == expected, "another order, now from the prefix cache"
    chunked = make_engine(**parts, max_batch_tokens=7, max_sequences=3, block_size=4)
    assert tokens_of(chunked, prompts, params) == expected


def test_seeds_differ_and_positions_differ(make_engine: MakeEngine) -> None:
    prompt = random_prompts(2, seed=21)[1]
    params = [drawn(seed, 30, temperature=2.0) for seed in range(8)]
    rows = tokens_of(make_engine(), [prompt] * 8, params)
    assert len({tuple(row) for row in rows}) == 8
    assert (
        tokens_of(make_engine(), [prompt] * 2, [drawn(3, 30)] * 2)[0]
        == (tokens_of(make_engine(), [prompt], drawn(3, 30))[0])
    )


def test_each_token_has_a_draw_of_its_own(make_engine: MakeEngine) -> None:
    """At a temperature where all tokens are alike, one draw repeated would repeat the token."""
    flat = SamplingParams(max_tokens=60, temperature=1e9, seed=5, ignore_eos=True)
    row = tokens_of(make_engine(), [[1, 2, 3]], flat)[0]
    assert len(set(row)) > 45


def test_the_engines_seed_decides_where_a_request_has_none(make_engine: MakeEngine) -> None:
    prompts = random_prompts(4, seed=22)
    loose = SamplingParams(max_tokens=20, temperature=1.5, ignore_eos=True)
    first, again, other, unseeded, twin = (
        tokens_of(make_engine(seed=seed), prompts, loose) for seed in (1, 1, 2, None, None)
    )
    assert first == again
    assert len({str(rows) for rows in (first, other, unseeded, twin)}) == 4
    same = tokens_of(make_engine(seed=1), [prompts[0]] * 2, loose)
    assert same[0] != same[1], "two requests of one engine draw differently"


def test_greedy_neighbours_do_not_move_a_draw(make_engine: MakeEngine, alone: Alone) -> None:
    prompts = random_prompts(5, seed=23)
    params = [greedy(12), drawn(9, 12), greedy(20), drawn(10, 6), greedy(3)]
    expected = alone(prompts, params)
    assert tokens_of(make_engine(), prompts, params) == expected
