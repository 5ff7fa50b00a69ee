"""Bitmasks on logits: exact, in place, and nothing but the guided rows."""

from __future__ import annotations

import random

import pytest
import torch

from workbench.sample.bitmask import (
    allocate_bitmask,
    apply_bitmask,
    num_words,
    single_bit,
    unpack,
    unpack_plain,
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the logits are."""
    return torch.device(request.param)


def random_mask(num_rows: int, vocab_size: int) -> torch.Tensor:
    """Return random words, the spare bits of the last one included."""
    size = (num_rows, num_words(vocab_size))
    return torch.randint(-(2**31), 2**31, size, dtype=torch.int64).to(torch.int32)


def allowed_ids(mask: torch.Tensor, vocab_size: int) -> list[int]:
    """Read a mask bit by bit, in plain Python."""
    words = [word & 0xFFFFFFFF for word in mask.tolist()]
    return [i for i in range(vocab_size) if words[i // 32] >> (i % 32) & 1]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 100, 4096])
def test_unpack_reads_every_bit(vocab_size: int, device: torch.device) -> None:
    mask = random_mask(3, vocab_size)
    found = unpack(mask.to(device), vocab_size).cpu()
    assert found.shape == (3, vocab_size)
    for row in range(3):
        assert found[row].nonzero().flatten().tolist() == allowed_ids(mask[row], vocab_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_forbids_what_is_not_allowed(
    dtype: torch.dtype, num_rows: int, device: torch.device
) -> None:
    logits = torch.randn(num_rows, 67).to(dtype).to(device)
    mask, before = random_mask(num_rows, 67), logits.clone()
    apply_bitmask(logits, mask.to(device))
    allowed = unpack(mask, 67).to(device)
    assert torch.equal(logits[allowed], before[allowed])
    assert bool((logits[~allowed] == float("-inf")).all())


def test_other_rows_stay_bit_for_bit(device: torch.device) -> None:
    logits = torch.randn(6, 67, device=device)
    logits[0, 3] = float("nan")
    logits[2, 5] = -0.0
    before = logits.clone()
    apply_bitmask(logits, random_mask(2, 67).to(device), torch.tensor([4, 1], device=device))
    others = [0, 2, 3, 5]
    assert torch.equal(logits[others].view(torch.int32), before[others].view(torch.int32))
    assert bool((logits[[1, 4]] == float("-inf")).any(dim=1).all())


def test_rows_take_masks_in_the_order_given(device: torch.device) -> None:
    logits = torch.zeros(3, 40, device=device)
    mask = torch.zeros(2, 2, dtype=torch.int32)
    mask[0, 0], mask[1, 0] = 1 << 5, 1 << 6
    apply_bitmask(logits, mask.to(device), torch.tensor([2, 0], device=device))
    assert logits[2].argmax() == 5
    assert logits[0].argmax() == 6


def test_a_wider_mask_than_the_logits_is_cut() -> None:
    logits = torch.zeros(1, 10)
    apply_bitmask(logits, torch.full((1, 3), -1, dtype=torch.int32))
    assert torch.equal(logits, torch.zeros(1, 10))


def test_logits_made_in_inference_mode_are_written_too() -> None:
    with torch.inference_mode():
        logits = torch.zeros(2, 32)
    apply_bitmask(logits, torch.zeros(1, 1, dtype=torch.int32), torch.tensor([1]))
    assert logits[:, 0].tolist() == [0.0, float("-inf")]


@pytest.mark.parametrize("vocab_size", [1, 2, 31, 32, 67, 4099])
@pytest.mark.parametrize("rows", [None, [3, 0], [], [0, 1, 2, 3, 4]], ids=str)
def test_equals_the_definition(
    rows: list[int] | None, vocab_size: int, device: torch.device
) -> None:
    logits = torch.randn(5, vocab_size, device=device)
    logits[0, 0] = float("nan")
    logits[4, 0] = -0.0
    mask = random_mask(5 if rows is None else len(rows), vocab_size).to(device)
    mask[:1] = 0
    chosen = None if rows is None else torch.tensor(rows, dtype=torch.int64, device=device)
    expected, strided = logits.clone(), logits.repeat(1, 2)[:, :vocab_size]
    for row, allowed in zip(range(5) if rows is None else rows, mask.cpu(), strict=True):
        ids = set(allowed_ids(allowed, vocab_size))
        expected[row, [i for i in range(vocab_size) if i not in ids]] = float("-inf")
    apply_bitmask(logits, mask, chosen)
    apply_bitmask(strided, mask, chosen)
    for found in (logits, strided.contiguous()):
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("vocab_size", [1, 2, 31, 32, 67, 4099])
def test_unpacking_equals_plain_torch(vocab_size: int, device: torch.device) -> None:
    mask = random_mask(7, vocab_size + 50).to(device)[:, : num_words(vocab_size)]
    assert torch.equal(unpack(mask, vocab_size), unpack_plain(mask, vocab_size))


def test_random_masks_round_trip() -> None:
    chance = random.Random(0)
    ids = sorted(chance.sample(range(1000), 77))
    mask = allocate_bitmask(1, 1000)
    for i in ids:
        word = int(mask[0, i // 32]) | 1 << i % 32
        mask[0, i // 32] = word - 2**32 if word >= 2**31 else word
    assert unpack(mask, 1000)[0].nonzero().flatten().tolist() == ids == allowed_ids(mask[0], 1000)


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 100])
def test_a_mask_of_one_token_is_known(vocab_size: int) -> None:
    source = random.Random(vocab_size)
    for _ in range(40):
        mask = random_mask(3, vocab_size)
        mask[0] = 0
        mask[0, -1] = -1 << vocab_size % 32 if vocab_size % 32 else 0  # behind the vocabulary
        place = source.randrange(vocab_size)
        mask[0, place // 32] |= 1 << place % 32 if place % 32 < 31 else -(2**31)
        counts = [len(allowed_ids(row, vocab_size)) for row in mask]
        assert counts[0] == 1
        assert single_bit(mask, vocab_size) == [count == 1 for count in counts]
