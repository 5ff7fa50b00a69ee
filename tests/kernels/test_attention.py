"""What attention kernels promise beyond one case each: any split, either fetch, padding, graphs."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import check

from workbench.kernels.launch import INTERPRETED
from workbench.kernels.paged_decode_bytes import unpacked
from workbench.kernels.paged_decode_splits import choose_splits
from workbench.kernels.quantised_kv import quantise
from workbench.kernels.registry import get_spec

DECODE, PREFILL = get_spec("paged_decode"), get_spec("prefill_attention")


@pytest.mark.parametrize("case", ["whole prompts", "window, new tokens", "blocks of 64"])
def test_the_copy_engine_fetches_the_same_tiles(case: str, device: torch.device) -> None:
    inputs = PREFILL.inputs(case, torch.float16, device)
    configs = [c for c in PREFILL.configs(inputs) if c["TMA"] and c["BLOCK_M"] == 64]
    assert configs
    for config in configs[:: max(1, len(configs) // 3)]:
        check(PREFILL, inputs, torch.float16, config=config)


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 128])
def test_any_number_of_splits(splits: int, device: torch.device) -> None:
    inputs = DECODE.inputs("ragged", torch.float32, device) | {"num_splits": splits}
    check(DECODE, inputs, torch.float32)


def test_lengths_may_change_under_a_plan(device: torch.device) -> None:
    """A captured graph keeps the grid and the tensors; what they hold is rewritten."""
    inputs = DECODE.inputs("split", torch.float32, device)
    plan = DECODE.plan(**inputs)
    for lens in ([1, 1], [0, 5], [299, 3], [300, 5]):
        inputs["context_lens"].copy_(torch.tensor(lens))
        torch.testing.assert_close(plan.run(), DECODE.reference(**inputs), rtol=1e-4, atol=1e-5)


def test_rows_of_a_larger_batch(device: torch.device) -> None:
    """Query starts need not begin at 0, and other rows' outputs stay as they are."""
    inputs = PREFILL.inputs("chunks and decodes", torch.float32, device)
    whole = PREFILL.reference(**inputs)
    out = torch.full_like(whole, 7.0)
    first = int(inputs["query_starts"][2])
    part = inputs | {
        "query_starts": inputs["query_starts"][2:],
        "context_lens": inputs["context_lens"][2:],
        "block_tables": inputs["block_tables"][2:],
        "num_tokens": len(whole) - first,
        "out": out,
    }
    PREFILL(**part)
    torch.testing.assert_close(out[first:], whole[first:], rtol=1e-4, atol=1e-5)
    assert (out[:first] == 7.0).all()


def test_decode_is_prefill_of_one_token(device: torch.device) -> None:
    inputs = DECODE.inputs("ragged", torch.float32, device)
    rows = len(inputs["context_lens"])
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
    inputs |= {"k": inputs["kv"][0], "v": inputs["kv"][1], "query_starts": starts}
    del inputs["num_splits"], inputs["kv"]
    expected = DECODE(**DECODE.inputs("ragged", torch.float32, device))
    torch.testing.assert_close(PREFILL(**inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "kv_heads", "longest"),
    [(1, 8, 16384), (1, 1, 131072), (64, 8, 8192), (1024, 8, 8192), (1, 8, 1), (7, 2, 130)],
)
def test_splits_fill_the_gpu_and_are_not_too_short(rows: int, kv_heads: int, longest: int) -> None:
    splits = choose_splits(rows, kv_heads, longest, rows * longest, 132)
    assert 1 <= splits <= 128
    assert splits == 1 or longest / splits >= 64
    programs = rows * kv_heads * splits
    assert programs >= 128 or splits == 128 or longest / splits < 512


def test_one_long_sequence_among_short_ones_is_split() -> None:
    alone = choose_splits(64, 8, 2048, 64 * 2048, 132)
    beside = choose_splits(64, 8, 131072, 131072 + 63 * 2048, 132)
    assert beside > 4 * alone


@triton.jit
def unpack_kernel(words, out, INT8: tl.constexpr, NATIVE: tl.constexpr, N: tl.constexpr):
    """Fill out [N, 2] with the two values of each word."""
    place = tl.arange(0, N)
    word = tl.load(words + place)
    tl.store(out + 2 * place, unpacked(word, False, INT8, NATIVE).to(tl.float32))
    tl.store(out + 2 * place + 1, unpacked(word, True, INT8, NATIVE).to(tl.float32))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_every_word_is_unpacked_exactly(dtype: torch.dtype, device: torch.device) -> None:
    """All 65,536 pairs of bytes; e4m3's two NaNs are never written, and may be anything."""
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).to(device)
    out = torch.empty(len(words), 2, device=device)
    unpack_kernel[(1,)](words, out, dtype == torch.int8, not INTERPRETED, len(words))
    expected = words.view(dtype).float().view(-1, 2)
    known = ~expected.isnan()
    assert known.sum() >= 2 * 65536 - 1024
    assert torch.equal(out[known], expected[known])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_token_keeps_its_size(dtype: torch.dtype) -> None:
    """Whatever a head's magnitude, the error is a small part of its largest element."""
    x = torch.randn(64, 3, 32, generator=torch.Generator().manual_seed(0))
    x *= 10.0 ** torch.linspace(-20, 20, 64)[:, None, None]
    kept, scales = quantise(x, dtype)
    error = (kept.float() * scales[..., None] - x).abs().amax(-1) / x.abs().amax(-1)
    assert error.max() < (0.5 / 127 if dtype == torch.int8 else 2**-4) * 1.01
    zeros, ones = quantise(torch.zeros(1, 2, 8), dtype)
    assert zeros.float().count_nonzero() == 0
    assert (ones == 1).all()


HOPPER = {"HOPPER": 1, "BLOCK_M": 128, "TMA": 1, "num_warps": 4}
HOPPER_ROWS = {
    "one tile": {"rows": [(128, 128)], "paged": False},
    "prompts": {"rows": [(300, 300), (5, 5), (129, 129), (1, 1)], "paged": False},
    "chunks": {"rows": [(40, 700), (1, 300), (200, 200)]},
    "chunks, blocks of 64": {"rows": [(40, 700), (1, 300), (200, 200)], "block_size": 64},
    "chunks, blocks of 256": {"rows": [(40, 700), (1, 300), (200, 200)], "block_size": 256},
    "groups of seven": {"rows": [(70, 200), (33, 33)], "heads": 14, "kv_heads": 2},
    "heads of 64": {"rows": [(70, 200), (133, 133)], "dim": 64},
    "no groups": {"rows": [(150, 150)], "heads": 2, "kv_heads": 2, "paged": False},
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("block_n", "stages"), [(128, 2), (64, 3)])
@pytest.mark.parametrize("name", HOPPER_ROWS)
def test_the_kernel_for_hopper(name: str, block_n: int, stages: int, dtype: torch.dtype) -> None:
    """Gluon has no interpreter, so it is held to the reference on a GPU of its kind alone."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU: lifted by one of capability 9.0")
    config = {**HOPPER, "BLOCK_N": block_n, "num_stages": stages}
    shape = {"heads": 8, "kv_heads": 2, "dim": 128, **HOPPER_ROWS[name]}
    inputs = PREFILL.make_inputs(dtype=dtype, device=torch.device("cuda"), seed=0, **shape)
    assert PREFILL.keep(config, inputs)
    check(PREFILL, inputs, dtype, config=config)
