"""Each filter against its definition, and what its order of ties promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling import law

from workbench.sample import min_p, rank, temperature, top_k, top_p
from workbench.sample.filters import ONE

# Steps of an eighth make ties frequent.
LOGITS = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=1, max_size=9)


def column(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return one row's parameter."""
    return torch.tensor([[value]], dtype=dtype)


def filtered(row: list[float], heat: float, k: int | None, p: float, floor: float) -> list[float]:
    """Compose the filters by hand, as a notebook would; return probabilities by token id."""
    logits = torch.tensor([row])
    ids = rank(logits)
    weights = temperature(logits.gather(1, ids), column(heat, torch.float32))
    if k is not None:
        weights = top_k(weights, column(k, torch.int64))
    weights = min_p(top_p(weights, column(p)), column(floor))
    dense = torch.zeros_like(weights).scatter_(1, ids, weights)
    return (dense.double() / dense.sum()).tolist()[0]


@settings(max_examples=300, deadline=None)
@given(
    LOGITS,
    st.floats(0.05, 5.0),
    st.none() | st.integers(1, 12),
    st.just(1.0) | st.floats(0.01, 1.0),
    st.just(0.0) | st.floats(0.0, 1.0),
)
def test_filters_equal_their_definition(
    row: list[float], heat: float, k: int | None, p: float, floor: float
) -> None:
    expected, margin = law(row, heat, k, p, floor)
    assume(margin > 1e-5)  # float32 may decide otherwise there, and may
    found = filtered(row, heat, k, p, floor)
    assert found == pytest.approx(expected, rel=0, abs=2e-6)
    # Kept and dropped are told apart, down to where fixed point ends.
    clear = [i for i, e in enumerate(expected) if e == 0 or e > 2**-39 * max(expected)]
    assert [found[i] > 0 for i in clear] == [expected[i] > 0 for i in clear]


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.data())
def test_a_partial_ranking_is_the_beginning_of_the_whole(
    row: list[float], data: st.DataObject
) -> None:
    row = [x if i % 3 else round(x) for i, x in enumerate(row)] + [0.0, -0.0, row[0], -torch.inf]
    width = data.draw(st.integers(1, len(row) + 2))
    logits = torch.tensor([row], dtype=torch.float32)
    row = logits.tolist()[0]
    expected = sorted(range(len(row)), key=lambda i: (-row[i], i))
    assert rank(logits).tolist()[0] == expected
    assert rank(logits, width).tolist()[0] == expected[:width]


def test_top_k_keeps_exactly_k_of_equals_those_of_lower_id() -> None:
    assert filtered([0.0, 1.0, 1.0, 1.0], 1.0, 2, 1.0, 0.0) == [0.0, 0.5, 0.5, 0.0]
    assert filtered([0.0, 1.0, 1.0, 1.0], 1.0, 1, 1.0, 0.0) == [0.0, 1.0, 0.0, 0.0]
    assert filtered([2.0, 1.0], 1.0, 99, 1.0, 0.0)[1] > 0.26


def test_top_p_keeps_the_smallest_set_even_of_equals() -> None:
    assert filtered([1.0] * 4, 1.0, None, 0.5, 0.0) == [0.5, 0.5, 0.0, 0.0]
    assert filtered([1.0] * 4, 1.0, None, 0.500001, 0.0)[:3] == [1 / 3] * 3
    assert filtered([1.0] * 4, 1.0, None, 5e-324, 0.0) == [1.0, 0.0, 0.0, 0.0]


def test_min_p_of_one_keeps_the_likeliest_and_its_equals() -> None:
    assert filtered([1.0, 3.0, 3.0, 2.99], 1.0, None, 1.0, 1.0) == [0.0, 0.5, 0.5, 0.0]


def test_temperatures_of_any_size_neither_overflow_nor_make_nan() -> None:
    logits = torch.tensor([[3e38, -3e38, 3e38, -torch.inf]])
    for heat in (1e-45, 1e-6, 1.0, 3e38):
        weights = temperature(logits, column(heat, torch.float32))
        assert weights[0, 0] == weights[0, 2] == ONE
        assert weights[0, 3] == 0
    nothing = column(0.0, torch.float32)  # what is left of 1e-300 in float32
    assert temperature(torch.tensor([[1.0, 0.999]]), nothing).tolist() == [[ONE, 0]]
    endless = column(torch.inf, torch.float32)
    assert temperature(torch.tensor([[9.0, 1.0, -torch.inf]]), endless).tolist() == [[ONE, ONE, 0]]
