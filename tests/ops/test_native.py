"""The C kernels: right for every size, and the same bits for a row whatever is around it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from paged import dense_attention, make_batch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.ops import NativeBackend, get_backend
from workbench.ops.compiled import load_library

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(scope="module")
def native() -> NativeBackend:
    """The backend; its kernels are compiled once."""
    return NativeBackend(torch.device("cpu"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Set two threads in torch for one test, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(1, 1), (3, 5), (16, 4), (31, 7), (32, 8), (33, 9), (64, 3), (100, 70), (288, 96), (1280, 33)],
)
def test_linear(
    native: NativeBackend, inputs: int, outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    weight = noise(outputs, inputs, seed=1, dtype=dtype)
    b = noise(outputs, seed=2, dtype=dtype) if bias else None
    for rows in (1, 2, 5, 6, 7, 12, 29):
        x = noise(rows, inputs, dtype=dtype)
        actual = native.linear(x, weight, b)
        assert actual.dtype == dtype
        scale = inputs**0.5 * TOLERANCE[dtype]
        torch.testing.assert_close(
            actual.double(), exact(x, weight, b), rtol=TOLERANCE[dtype], atol=scale
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_from_1_to_300_rows_is_the_same_row_by_row(
    native: NativeBackend, dtype: torch.dtype
) -> None:
    """Tiles, blocks and threads differ with the number of rows; no bit of a row may."""
    weight, x = noise(70, 200, seed=1, dtype=dtype), noise(300, 200, dtype=dtype)
    alone = torch.cat([native.linear(row[None], weight) for row in x])
    for rows in range(1, 301):
        assert torch.equal(native.linear(x[:rows], weight), alone[:rows]), rows
    torch.testing.assert_close(
        alone.double(), exact(x, weight, None), rtol=TOLERANCE[dtype], atol=14 * TOLERANCE[dtype]
    )


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_over_blocks_larger_than_the_caches_and_two_threads(
    native: NativeBackend, dtype: torch.dtype
) -> None:
    weight, x = noise(1030, 1500, seed=1, dtype=dtype), noise(50, 1500, dtype=dtype)
    both = native.linear(x, weight)
    torch.testing.assert_close(
        both.double(), exact(x, weight, None), rtol=TOLERANCE[dtype], atol=40 * TOLERANCE[dtype]
    )
    torch.set_num_threads(1)
    assert torch.equal(native.linear(x, weight), both)


def test_linear_takes_any_stride_and_shape(native: NativeBackend) -> None:
    weight, wide = noise(9, 40, seed=1), noise(6, 100)
    expected = native.linear(wide[:, 20:60].contiguous(), weight)
    assert torch.equal(native.linear(wide[:, 20:60], weight), expected)
    assert torch.equal(native.linear(wide[:, 20:60].view(2, 3, 40), weight).flatten(0, 1), expected)
    assert torch.equal(native.linear(wide.t().contiguous().t()[:, 20:60], weight), expected)
    columns = weight.t().contiguous().t()  # not row-major: torch's own product
    torch.testing.assert_close(native.linear(wide[:, 20:60], columns), expected)
    assert native.linear(wide[:0, 20:60], weight).shape == (0, 9)


def test_linear_does_not_spread_not_a_number(native: NativeBackend) -> None:
    weight, x = noise(9, 40, seed=1), noise(6, 40)
    expected = native.linear(x, weight)
    x[2, 3], x[4, 0] = torch.nan, torch.inf
    actual = native.linear(x, weight)
    healthy = [0, 1, 3, 5]
    assert torch.equal(actual[healthy], expected[healthy])
    assert actual[2].isnan().all()
    assert not actual[4].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [6, 8, 40, 64, 72, 128, 256])
@pytest.mark.parametrize("window", [None, 50])
def test_rotation_inside_attention_is_rotation_before_it(
    native: NativeBackend, dim: int, window: int | None, dtype: torch.dtype
) -> None:
    rows = [(1, 1), (1, 150), (3, 3), (9, 140)]
    settings = {"dim": dim, "heads": 6, "kv_heads": 2, "dtype": dtype}
    batch = make_batch(native, rows, **settings)
    angles = noise(len(batch.q), dim // 2, seed=5) * 3
    cos, sin = angles.cos(), angles.sin()
    fused = native.attention(
        batch.q, batch.k, batch.v, 0, batch.ctx, scale=0.1, rope=(cos, sin), window=window
    )
    wide = make_batch(get_backend("reference"), rows, **{**settings, "dtype": torch.float32})
    wide.q, wide.k, wide.v = batch.q.float(), batch.k.float(), batch.v.float()
    plain = wide.ctx.backend.attention(
        wide.q, wide.k, wide.v, 0, wide.ctx, scale=0.1, rope=(cos, sin), window=window
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(fused.float(), plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100, 3000])
def test_long_contexts_are_put_together_from_parts(
    native: NativeBackend, window: int | None, dtype: torch.dtype
) -> None:
    rows = [(1, 5000), (1, 4096), (1, 30), (3, 4098), (40, 2060)]
    small = {"heads": 2, "kv_heads": 1, "dim": 8, "dtype": dtype}
    batch = make_batch(native, rows, **small)
    actual = native.attention(batch.q, batch.k, batch.v, 0, batch.ctx, scale=0.3, window=window)
    plain = make_batch(get_backend("reference"), rows, **{**small, "dtype": torch.float32})
    for name in ("q", "k", "v"):
        setattr(plain, name, getattr(batch, name).float())
    plain.ctx.kv = [layer.float() for layer in batch.ctx.kv or []]
    expected = plain.ctx.backend.attention(
        plain.q, plain.k, plain.v, 0, plain.ctx, scale=0.3, window=window
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 70])
def test_a_token_attends_with_the_same_bits_however_it_is_batched(
    native: NativeBackend, window: int | None, dtype: torch.dtype
) -> None:
    """As one chunk, as several, and token by token, beside another row or alone."""
    length, heads = 200, {"heads": 4, "kv_heads": 2, "dim": 32, "dtype": dtype}
    whole = make_batch(native, [(length, length)], **heads)

    def attend(first: int, last: int, beside: bool) -> Tensor:
        rows = [(last - first, last), *([(7, 90)] if beside else [])]
        part = make_batch(native, rows, **heads)
        part.ctx.kv = whole.ctx.kv
        assert whole.ctx.block_tables is not None
        assert whole.ctx.slot_mapping is not None
        tables = part.ctx.block_tables = whole.ctx.block_tables.repeat(len(rows), 1)
        slots = whole.ctx.slot_mapping[first:last]
        if beside:  # the neighbour rewrites what is there already
            again = whole.ctx.slot_mapping[83:90]
            slots = torch.cat((slots, again))
        part.ctx.slot_mapping = slots
        part.ctx.prepared = native.prepare(part.ctx)
        span = [*range(first, last), *(range(83, 90) if beside else ())]
        q, k, v = whole.q[span], whole.k[span], whole.v[span]
        out = native.attention(q, k, v, 0, part.ctx, scale=0.3, window=window)
        assert len(tables) == len(rows)
        return out[: last - first]

    expected = native.attention(whole.q, whole.k, whole.v, 0, whole.ctx, scale=0.3, window=window)
    for sizes in ([100, 100], [1, 63, 64, 65, 7], [1] * 200):
        for beside in (False, True):
            ends = torch.tensor(sizes).cumsum(0).tolist()
            parts = [attend(e - n, e, beside) for e, n in zip(ends, sizes, strict=True)]
            assert torch.equal(torch.cat(parts), expected), (len(sizes), beside)
    reference = dense_attention(whole, 0.3, window)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(expected.double(), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pointwise_operations_at_their_limits(native: NativeBackend, dtype: torch.dtype) -> None:
    gate = torch.tensor([[-1e4, -100, -88.5, -20, -0.0, 0.0, 20, 100, 1e4, torch.inf]], dtype=dtype)
    up = torch.full_like(gate, 2)
    actual = native.silu_mul(torch.cat((gate, up), dim=1))
    expected = (F.silu(gate.double()) * 2).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=1e-30)
    assert native.silu_mul(torch.full((1, 2), torch.nan, dtype=dtype)).isnan().all()
    zeros = native.rms_norm(torch.zeros(2, 70, dtype=dtype), torch.ones(70, dtype=dtype), 1e-6)
    assert torch.equal(zeros, torch.zeros(2, 70, dtype=dtype))


def test_gradients_are_refused(native: NativeBackend) -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    x = torch.ones(1, 4)
    for operation in (
        lambda: native.linear(x, weight),
        lambda: native.rms_norm(x, weight[0], 1e-5),
        lambda: native.silu_mul(x * weight[:1]),
    ):
        with pytest.raises(ConfigError, match=r"backend='native': computes no gradients"):
            operation()
        with torch.no_grad():
            operation()


def test_work_is_done_alone_for_a_while_after_a_helper_came_late() -> None:
    """Other programs hold its core then: the caller would wait milliseconds for microseconds."""
    library = load_library()
    library.now.restype = ctypes.c_int64
    library.helper_came.argtypes = [ctypes.c_int64]
    library.team.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_int]
    time.sleep(0.25)  # whatever tests before this one saw is over
    assert library.team(99, 100, 2) == 1, "too little work to share"
    library.helper_came(library.now() + 1_000_000_000)  # it came at once
    assert library.team(100, 100, 2) == 2
    for _ in range(100):  # until we are not kept waiting ourselves between the two
        came = library.now()
        library.helper_came(came - 1_000_000)
        size = library.team(100, 100, 2)
        if library.now() - came < 100_000_000:
            break
    assert size == 1
    time.sleep(0.25)
    assert library.team(100, 100, 2) == 2, "and then it is tried again"
