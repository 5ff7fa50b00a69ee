"""The counter-based numbers: the published algorithm, uniform, and unrelated between neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import chi_square_p

from workbench.sample.random import GOLDEN, _mix, inverse_cdf, stream_keys, uniforms

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """Sebastiano Vigna's public description of the generator, in whole numbers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def grid(seeds: range, indices: range) -> torch.Tensor:
    """Return the uniforms of every (seed, index), [seeds, indices]."""
    keys = stream_keys(list(seeds))[:, None].expand(-1, len(indices))
    return uniforms(keys, torch.tensor(list(indices)).expand_as(keys))


def test_the_hash_gives_the_published_outputs() -> None:
    # The first three outputs of splitmix64 seeded with 0.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = torch.tensor([1, 2, 3]) * GOLDEN
    assert [value & MASK for value in _mix(states).tolist()] == known


@settings(deadline=None)
@given(st.integers(0, 2**80), st.integers(0, 2**40))
def test_equals_whole_number_arithmetic(seed: int, index: int) -> None:
    key = splitmix64(seed & MASK)
    expected = (splitmix64((key + index * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53
    assert uniforms(stream_keys([seed]), torch.tensor([index])).tolist() == [expected]


def test_uniform_over_seeds_and_indices() -> None:
    for numbers in (grid(range(400), range(500)), grid(range(7_000_000, 7_200_000), range(1))):
        assert 0.0 <= float(numbers.min()) <= float(numbers.max()) < 1.0
        counts = torch.histc(numbers.float(), 128, 0, 1)
        assert chi_square_p(counts, torch.full((128,), numbers.numel() / 128)) > 1e-3


@pytest.mark.parametrize("axis", [0, 1], ids=["neighbouring seeds", "neighbouring indices"])
@pytest.mark.parametrize("distance", [1, 2, 64])
def test_neighbours_are_independent(axis: int, distance: int) -> None:
    numbers = grid(range(1000, 1500), range(500))
    here = numbers.narrow(axis, 0, 500 - distance)
    there = numbers.narrow(axis, distance, 500 - distance)
    n = here.numel()
    correlation = torch.corrcoef(torch.stack([here.flatten(), there.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4 / n**0.5
    cells = (here * 16).long() * 16 + (there * 16).long()
    counts = torch.bincount(cells.flatten(), minlength=256)
    assert chi_square_p(counts, torch.full((256,), n / 256)) > 1e-3


def test_every_bit_is_fair() -> None:
    bits = (grid(range(300), range(300)) * 2**53).long().flatten()
    n = len(bits)
    for bit in range(53):
        ones = int(((bits >> bit) & 1).sum())
        assert abs(ones - n / 2) < 5 * (n / 4) ** 0.5, f"bit {bit}"


def test_draw_at_both_ends_skips_weight_zero() -> None:
    weights = torch.tensor([[0, 0, 3, 0, 5, 0, 0]] * 4)
    below_one = 1 - 2.0**-53
    draws = inverse_cdf(weights, torch.tensor([0.0, below_one, 0.374, 0.376], dtype=torch.float64))
    assert draws.tolist() == [2, 4, 2, 4]
    # A sum beyond float64's whole numbers: u * total rounds up to the total itself.
    huge = torch.tensor([[2**61 - 1, 0, 1, 0]])
    assert inverse_cdf(huge, torch.tensor([below_one], dtype=torch.float64)).tolist() in ([0], [2])


@pytest.mark.gpu
def test_same_numbers_and_draws_on_the_gpu() -> None:
    keys, indices = stream_keys(list(range(5000))), torch.arange(5000)
    here, there = uniforms(keys, indices), uniforms(keys.cuda(), indices.cuda())
    assert torch.equal(here, there.cpu())
    weights = torch.randint(0, 2**40, (5000, 777))
    assert torch.equal(inverse_cdf(weights, here), inverse_cdf(weights.cuda(), there).cpu())
