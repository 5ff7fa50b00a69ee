"""Paged attention against its definition, over batches that are awkward in every way."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, WINDOWS
from paged import Batch, dense_attention, make_batch
from torch import Tensor

from workbench.batch import Backend, ForwardContext
from workbench.ops import BACKENDS, get_backend
from workbench.ops.invariant import InvariantTriton


def attend(batch: Batch, window: int | None, scale: float = 0.3) -> Tensor:
    return batch.ctx.backend.attention(
        batch.q, batch.k, batch.v, 0, batch.ctx, scale=scale, window=window
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", CASES)
def test_attention_is_its_definition(
    backend: Backend, device: str, case: str, window: int | None
) -> None:
    rows, settings = CASES[case]
    strict = isinstance(backend, InvariantTriton) and window is not None
    if strict and settings.get("block_size", 16) % 16:
        pytest.skip("refused when an engine is built: lifted by blocks of a multiple of 16")
    batch = make_batch(backend, rows, device=device, **settings)
    actual = attend(batch, window).double().cpu()
    torch.testing.assert_close(actual, dense_attention(batch, 0.3, window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_keys_and_values_go_to_their_slots_and_nowhere_else(
    backend: Backend, device: str, case: str
) -> None:
    rows, settings = CASES[case]
    batch = make_batch(backend, rows, device=device, **settings)
    assert batch.ctx.kv is not None
    assert batch.ctx.slot_mapping is not None
    before = batch.ctx.kv[0].clone()
    attend(batch, None)
    expected = before.flatten(1, 2)
    for token, slot in enumerate(batch.ctx.slot_mapping.tolist()):
        expected[0, slot], expected[1, slot] = batch.k[token], batch.v[token]
    after = batch.ctx.kv[0].flatten(1, 2)
    torch.testing.assert_close(after, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 4])
def test_half_precision(
    backend: Backend, device: str, dtype: torch.dtype, window: int | None
) -> None:
    rows = [(1, 5), (1, 40), (1, 41), (3, 3), (2, 30)]
    batch = make_batch(backend, rows, dtype=dtype, device=device)
    actual = attend(batch, window)
    assert actual.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    expected = dense_attention(batch, 0.3, window)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=tolerance, atol=tolerance)


def test_a_cache_of_another_dtype(backend: Backend, device: str) -> None:
    """Queries may be wider than what the cache keeps; the result is that of the narrow keys.

    `native` multiplies in the cache's dtype, so it rounds queries and weights as the keys are.
    """
    rows = [(1, 5), (1, 40), (3, 3), (2, 30)]
    batch = make_batch(backend, rows, dtype=torch.bfloat16, device=device)
    batch.q = batch.q.float() * 1.001
    expected = dense_attention(batch, 0.3, None)
    batch.k, batch.v = batch.k.float(), batch.v.float()
    actual = attend(batch, None)
    assert actual.dtype == torch.float32
    tolerance = 1e-2 if backend.name == "native" else 1e-4
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lens", [[1], [6], [1, 9, 4], [17, 2, 2, 1]])
def test_without_a_cache(
    backend: Backend, device: str, lens: list[int], window: int | None
) -> None:
    batch = make_batch(backend, [(n, n) for n in lens], device=device)
    batch.ctx = ForwardContext.without_cache(lens, backend, device)
    actual = attend(batch, window).double().cpu()
    torch.testing.assert_close(actual, dense_attention(batch, 0.3, window), rtol=1e-4, atol=1e-5)


def test_layers_of_one_step_share_what_was_prepared(backend: Backend, device: str) -> None:
    """Windows may differ from layer to layer, and each layer has a tensor of its own."""
    rows = [(1, 5), (1, 40), (1, 60), (1, 30), (3, 7), (2, 30)]
    batch = make_batch(backend, rows, device=device, num_layers=4)
    for layer, window in enumerate([None, 4, None, 16]):
        actual = backend.attention(
            batch.q, batch.k, batch.v, layer, batch.ctx, scale=0.3, window=window
        )
        expected = dense_attention(batch, 0.3, window)
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-4, atol=1e-5)


def test_a_backend_serves_caches_of_different_shapes(backend: Backend, device: str) -> None:
    """What a backend keeps between steps (scratch memory) must not remember the last shape."""
    for settings in ({"dim": 16}, {"dim": 64}, {"dim": 8, "dtype": torch.float16}, {"dim": 16}):
        rows = [(1, 5), (1, 40), (3, 30)]
        batch = make_batch(backend, rows, device=device, **settings)
        expected = dense_attention(batch, 0.3, None)
        torch.testing.assert_close(
            attend(batch, None).double().cpu(), expected, rtol=5e-3, atol=5e-3
        )


def test_the_tables_padding_is_never_read(backend: Backend, device: str) -> None:
    rows = [(1, 3), (1, 60), (2, 5)]
    batch = make_batch(backend, rows, device=device)
    expected = attend(batch, None)
    again = make_batch(backend, rows, device=device)
    assert again.ctx.block_tables is not None
    last = again.ctx.kv[0].shape[1] - 1  # type: ignore[index]
    again.ctx.block_tables[0, 1:] = last
    again.ctx.block_tables[2, 1:] = last
    again.ctx.prepared = backend.prepare(again.ctx)
    assert torch.equal(attend(again, None), expected)


def test_every_backend_is_tested_here(request: pytest.FixtureRequest) -> None:
    known = {"reference", "sdpa", "native", "triton", "triton+sdpa"}
    elsewhere = {"triton+flashinfer"}  # test_flashinfer.py: it takes no float32
    assert set(BACKENDS) == known | elsewhere, "add the new one to conftest.py"
    assert get_backend("reference").describe()["name"] == "reference"
