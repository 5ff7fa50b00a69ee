"""Attention over an 8-bit cache is attention over what the cache keeps, on every backend."""

from __future__ import annotations

import pytest
import torch
from paged import dense_attention, make_batch

from workbench.batch import Backend
from workbench.kernels.quantised_kv import FP8, dequantised, quantise
from workbench.ops import TritonBackend

ROWS = {
    "decodes": [(1, 1), (1, 17), (1, 300), (1, 16)],
    "chunks": [(5, 5), (4, 21), (16, 32)],
    "decodes and chunks": [(1, 5), (1, 40), (3, 3), (2, 30), (9, 17)],
}


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
@pytest.mark.parametrize("dtype", [torch.int8, FP8])
def test_attention_over_what_is_kept(
    backend: Backend, device: str, dtype: torch.dtype, rows: list[tuple[int, int]], window: int
) -> None:
    if isinstance(backend, TritonBackend) and device == "cpu" and dtype == FP8:
        pytest.skip("triton's interpreter rounds fp8 wrongly: lifted by a GPU")
    batch = make_batch(backend, rows, device=device, dim=16)
    ctx = batch.ctx
    assert ctx.kv is not None
    # What nobody owns has a scale of NaN.
    kept, scales = quantise(ctx.kv[0].nan_to_num(0.0), dtype)
    scales[ctx.kv[0].isnan().any(-1)] = torch.nan
    ctx.kv, ctx.kv_scales = [kept], [scales.transpose(2, 3).contiguous()]
    ctx.prepared = backend.prepare(ctx)
    for sides in (batch.keys, batch.values):
        for row, side in enumerate(sides):
            bytes_, own = quantise(side, dtype)
            sides[row] = dequantised(bytes_, own.T)
    actual = backend.attention(batch.q, batch.k, batch.v, 0, ctx, scale=0.3, window=window)
    expected = dense_attention(batch, 0.3, window)
    tolerance = 4e-3 if device == "cuda" else 1e-4  # kernels multiply in half precision there
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=tolerance, atol=tolerance)
