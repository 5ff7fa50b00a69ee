"""Writing slots and gathering blocks of a layer's KV tensor."""

from __future__ import annotations

import pytest
import torch

from workbench.errors import ConfigError
from workbench.ops import get_backend
from workbench.ops.paging import gather, write


def test_write_then_gather() -> None:
    kv = torch.zeros(2, 5, 4, 2, 3)
    k, v = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    slots = torch.tensor([3, 19, 0, 8, 9, 10])
    write(kv, slots, k, v)
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(kv[0, slot // 4, slot % 4], k[token])
        assert torch.equal(kv[1, slot // 4, slot % 4], v[token])
    assert kv.count_nonzero() == 2 * k.numel()
    keys, values = gather(kv, torch.tensor([[2, 0], [4, 4]]))
    assert keys.shape == values.shape == (2, 8, 2, 3)
    assert torch.equal(keys[0], torch.cat((kv[0, 2], kv[0, 0])))
    assert torch.equal(values[1], torch.cat((kv[1, 4], kv[1, 4])))


def test_gathered_blocks_are_copies_also_in_scratch() -> None:
    kv = torch.randn(2, 5, 4, 2, 3)
    ids = torch.tensor([[1, 3, 0]])
    plain = gather(kv, ids)
    scratch = torch.full((2, 100), torch.nan)
    reused = gather(kv, ids, scratch)
    for a, b in zip(plain, reused, strict=True):
        assert torch.equal(a, b)
        b.zero_()
    assert kv.count_nonzero() == kv.numel()


def test_values_are_cast_to_the_caches_dtype() -> None:
    kv = torch.zeros(2, 1, 2, 1, 2, dtype=torch.bfloat16)
    write(kv, torch.tensor([1]), torch.ones(1, 1, 2) * 1.001, torch.ones(1, 1, 2))
    assert kv[0, 0, 1].tolist() == [[1.0, 1.0]]


def test_an_unknown_backend() -> None:
    with pytest.raises(
        ConfigError, match=r"backend='best': no such backend\. Known: auto, reference"
    ):
        get_backend("best")
