"""The bytes and operations of a case against a count by hand."""

from __future__ import annotations

import torch

from workbench.kernels.registry import get_spec

HALF = torch.float16


def costs(kernel: str, case: str, **changes: object) -> tuple[int, int]:
    """Return (bytes, operations) of a case in float16."""
    spec = get_spec(kernel)
    inputs = spec.inputs(case, HALF) | changes
    return spec.num_bytes(**inputs), spec.flops(**inputs)


def test_rms_norm() -> None:
    # 7 rows of 130: x and residual read, norm and sum written, the weights once
    assert costs("rms_norm", "odd width")[0] == 4 * 7 * 130 * 2 + 130 * 2
    assert costs("rms_norm", "no residual")[0] == 2 * 3 * 64 * 2 + 64 * 2


def test_silu_mul() -> None:
    assert costs("silu_mul", "odd width") == (3 * 5 * 107 * 2, 5 * 5 * 107)


def test_rope_and_cache() -> None:
    # 7 tokens, 4 query and 2 key heads of 16: q and k in and out, v in, k and v to the cache,
    # cos and sin [7, 8] in float32; three operations an element rotated (two products, one sum)
    bytes_, operations = costs("rope_and_cache", "seven tokens, padded")
    q, k = 7 * 4 * 16, 7 * 2 * 16
    assert bytes_ == 2 * (2 * q + 2 * k + k + 2 * k) + 2 * 7 * 8 * 4
    assert operations == 3 * (q + k)
    # without rotation k and v are read and written, nothing else
    tokens = 3 * 2 * 16
    assert costs("rope_and_cache", "no rotation") == (2 * (2 * tokens + 2 * tokens), 0)


def test_paged_decode() -> None:
    # lengths 5, 130, 1, 64; 2 KV heads of 16, 4 query heads; q read and out written
    tokens = 5 + 130 + 1 + 64
    assert costs("paged_decode", "ragged") == (
        tokens * 2 * 16 * 2 * 2 + 2 * 4 * 4 * 16 * 2,
        4 * tokens * 4 * 16,
    )
    # a window of 20 sees 5, 20 and 20 keys
    assert costs("paged_decode", "window")[1] == 4 * (5 + 20 + 20) * 4 * 16


def test_prefill_attention() -> None:
    # prompts of 5, 70 and 1: n (n + 1) / 2 pairs each
    seen = 15 + 70 * 71 // 2 + 1
    bytes_, operations = costs("prefill_attention", "whole prompts")
    assert operations == 4 * seen * 4 * 16
    assert bytes_ == 2 * 76 * 4 * 16 * 2 + 2 * 76 * 2 * 16 * 2
    # (1, 9), (7, 7), (40, 90), (3, 70): the last token of a row sees its whole context
    seen = 9 + 28 + sum(range(51, 91)) + (68 + 69 + 70)
    assert costs("prefill_attention", "chunks and decodes")[1] == 4 * seen * 4 * 16


def test_gemv() -> None:
    # 5 rows, 37 outputs of 130 inputs
    assert costs("gemv", "five rows, odd") == (2 * (37 * 130 + 5 * 130 + 5 * 37), 2 * 5 * 37 * 130)
