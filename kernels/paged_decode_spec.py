"""The spec of `paged_decode`: reference, inputs, cases, tuning space and costs.

Beside the kernel's file, which it describes; see `kernels.spec.KernelSpec`.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from workbench.kernels.attention_math import attend
from workbench.kernels.launch import Config, power_of_2, sm_count
from workbench.kernels.paged import gather_row, random_cache, random_scales
from workbench.kernels.paged_decode import LIMITS, default, plan
from workbench.kernels.paged_decode_splits import choose_splits
from workbench.kernels.quantised_kv import FP8, QUANTISED
from workbench.kernels.spec import Case, Inputs, KernelSpec


def reference(
    q: Tensor,
    kv: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    kv_scales: Tensor | None = None,
    num_splits: int | None = None,
    **settings: Any,
) -> Tensor:
    """Return attention [S, H, D] of q [S, H, D], row by row in float32."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    block_size = kv.shape[2]
    for row, length in enumerate(context_lens.tolist()):
        if length:
            block_ids = block_tables[row, : -(-length // block_size)]
            keys, values = gather_row(kv, block_ids, length, kv_scales)
            out[row] = attend(q[row : row + 1], keys, values, **settings)[0].to(q.dtype)
    return out


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    lens: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int = 16,
    cache_dtype: torch.dtype | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: bool = False,
    alibi: bool = False,
    num_splits: int | None = None,
    strided: bool = False,
) -> Inputs:
    """Return q for sequences of these lengths over a cache in which nothing lies in order.

    num_splits None: what the backend would choose. strided: q is a slice of a wider matrix.
    """
    generator = torch.Generator(device).manual_seed(seed)
    kept = cache_dtype or dtype
    kv, tables = random_cache(
        lens,
        kv_heads=kv_heads,
        dim=dim,
        block_size=block_size,
        dtype=kept,
        generator=generator,
        device=device,
    )
    width = heads + (2 if strided else 0)
    q = torch.randn((len(lens), width, dim), generator=generator, device=device).to(dtype)
    if num_splits is None:
        num_splits = choose_splits(
            len(lens), kv_heads, max([1, *lens]), sum(lens), sm_count(device)
        )
    inputs: Inputs = {
        "q": q[:, :heads],
        "kv": kv,
        "block_tables": tables,
        "context_lens": torch.tensor(lens, dtype=torch.int32, device=device),
        "scale": dim**-0.5,
        "window": window,
        "soft_cap": soft_cap,
        "num_splits": num_splits,
        **random_scales(kv, generator),
    }
    if sinks:
        inputs["sinks"] = torch.randn(heads, generator=generator, device=device)
    if alibi:
        inputs["alibi"] = 2.0 ** -(1 + torch.arange(heads, device=device).float())
    return inputs


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits: its stages in shared memory, its tile in registers."""
    kv, q = inputs["kv"], inputs["q"]
    width = max(16, power_of_2(kv.shape[4]))
    # Loads that hang on the table's loads are pipelined at half the depth.
    buffers = max(1, (config["num_stages"] - 1) // 2) + config["SWAP"]
    shared = 2 * config["BLOCK_N"] * width * kv.element_size() * buffers
    if shared > 200 << 10 or config["BLOCK_N"] * width > config["num_warps"] * 8192:
        return False
    if config["MIN_SPLIT"] < config["BLOCK_N"]:
        return False
    # Keys as rows is for Hopper's 64-row instructions; float32 and packed bytes have none of them.
    if config["SWAP"] and (config["num_warps"] % 4 or config["BLOCK_N"] < 64):
        return False
    return not (config["SWAP"] and (q.element_size() == 4 or kv.dtype in QUANTISED))


def num_bytes(q: Tensor, kv: Tensor, context_lens: Tensor, **inputs: Any) -> int:
    """Return bytes: every visible key and value once, with its scale, q and the output."""
    tokens = context_lens.clamp(max=inputs.get("window") or 1 << 30).sum()
    scale = 4 if kv.dtype in QUANTISED else 0
    cache = 2 * int(tokens) * kv.shape[3] * (kv.shape[4] * kv.element_size() + scale)
    return cache + 2 * q.numel() * q.element_size()


def flops(q: Tensor, context_lens: Tensor, **inputs: Any) -> int:
    """Return the two products' operations: 4 D for every head and visible key."""
    tokens = context_lens.clamp(max=inputs.get("window") or 1 << 30).sum()
    return 4 * int(tokens) * q.shape[1] * q.shape[2]


def bucket(q: Tensor, kv: Tensor, block_tables: Tensor, **_: Any) -> str:
    """Return shape, cache dtype, and rows and capacity to the power of two above."""
    rows = power_of_2(q.shape[0])
    capacity = power_of_2(block_tables.shape[1] * kv.shape[2])
    kind = "int8" if kv.dtype == torch.int8 else "fp8" if kv.dtype in QUANTISED else "float"
    return (
        f"heads {q.shape[1]}/{kv.shape[3]}x{q.shape[2]} blocks of {kv.shape[2]} {kind} "
        f"rows {rows} context {capacity}"
    )


def ragged(rows: int, longest: int) -> list[int]:
    """Return lengths between 1 and `longest`, most of them short, always the same."""
    source = random.Random(rows)
    return [max(1, int(longest * source.random() ** 3)) for _ in range(rows - 1)] + [longest]


_SMALL = {"heads": 4, "kv_heads": 2, "dim": 16}
_8B: dict[str, Any] = {"heads": 32, "kv_heads": 8, "dim": 128}
_1B: dict[str, Any] = {"heads": 32, "kv_heads": 8, "dim": 64}
_SPLIT = {"lens": [300, 5], "num_splits": 3}

SPEC = KernelSpec(
    name="paged_decode",
    summary="attention of one new token per sequence over the paged cache",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token": Case({"lens": [1], **_SMALL}),
        "ragged": Case({"lens": [5, 130, 1, 64], **_SMALL}),
        "no sequences": Case({"lens": [], **_SMALL}),
        "an empty row": Case({"lens": [0, 3], **_SMALL}),
        "split": Case({**_SPLIT, **_SMALL}),
        "more splits than tokens": Case({"lens": [2, 140, 0], "num_splits": 5, **_SMALL}),
        "window": Case({"lens": [5, 150, 64], "window": 20, **_SMALL}),
        "split window": Case({**_SPLIT, "window": 200, **_SMALL}),
        "soft cap, sinks": Case({"lens": [70, 3], "soft_cap": 2.0, "sinks": True, **_SMALL}),
        "split sinks, alibi": Case({**_SPLIT, "sinks": True, "alibi": True, **_SMALL}),
        "blocks of 1": Case({"lens": [9, 2], "block_size": 1, **_SMALL}),
        "blocks of 3": Case({"lens": [70, 2], "block_size": 3, **_SMALL}),
        "blocks of 64": Case({"lens": [70, 2], "block_size": 64, **_SMALL}),
        "seven heads each": Case({"lens": [33], "heads": 14, "kv_heads": 2, "dim": 32}),
        "one kv head": Case({"lens": [33], "heads": 20, "kv_heads": 1, "dim": 24}),
        "head size 80": Case({"lens": [33], "heads": 2, "kv_heads": 2, "dim": 80}),
        "head size 256": Case({"lens": [40], "heads": 2, "kv_heads": 1, "dim": 256}),
        "strided q": Case({"lens": [33, 7], "strided": True, **_SMALL}),
        "int8 cache": Case({**_SPLIT, "cache_dtype": torch.int8, **_SMALL}),
        "fp8 cache": Case({**_SPLIT, "cache_dtype": FP8, **_SMALL}, min_capability=89),
        "llama-8b small": Case({"lens": [200], "num_splits": 2, **_8B}),
        "llama-8b small fp8": Case(
            {"lens": [70], "cache_dtype": FP8, "num_splits": 1, **_8B}, min_capability=89
        ),
        "tinypy 16": Case(
            {"lens": ragged(16, 640), "heads": 8, "kv_heads": 2, "dim": 64}, small=False
        ),
        "llama-1b 64x2k": Case({"lens": [2048] * 64, **_1B}, small=False),
        "llama-8b 1x1k": Case({"lens": [1024], **_8B}, small=False, quick=True),
        "llama-8b 32x1k": Case({"lens": [1024] * 32, **_8B}, small=False, quick=True),
        "llama-8b 1x16k": Case({"lens": [16384], **_8B}, small=False, quick=True),
        "llama-8b 1x128k": Case({"lens": [131072], **_8B}, small=False),
        "llama-8b 8x16.5k": Case({"lens": [16512] * 8, **_8B}, small=False, quick=True),
        "llama-8b 16x8k": Case({"lens": [8192] * 16, **_8B}, small=False),
        "llama-8b 64x8k": Case({"lens": [8192] * 64, **_8B}, small=False, quick=True),
        "llama-8b 64x8k blocks of 64": Case(
            {"lens": [8192] * 64, "block_size": 64, **_8B}, small=False
        ),
        "llama-8b 64x8k fp8": Case(
            {"lens": [8192] * 64, "cache_dtype": FP8, **_8B},
            small=False,
            quick=True,
            min_capability=89,
        ),
        "llama-8b 64x8k int8": Case(
            {"lens": [8192] * 64, "cache_dtype": torch.int8, **_8B}, small=False
        ),
        "llama-8b 256x1k": Case({"lens": [1024] * 256, **_8B}, small=False),
        "llama-8b 64x512": Case({"lens": [512] * 64, **_8B}, small=False),
        "llama-8b ragged 1024": Case({"lens": ragged(1024, 8192), **_8B}, small=False),
    },
    space={
        "BLOCK_N": (16, 32, 64, 128),
        "MIN_SPLIT": (64, 128, 256),
        "SWAP": (0, 1),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (2, 3, 5, 7),
    },
    keep=keep,
    default=default,
    bucket=bucket,
    flops=flops,
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-4, 1e-5),
        torch.float16: (4e-3, 4e-3),
        torch.bfloat16: (2e-2, 2e-2),
    },
    limits=LIMITS,
    sources=("paged_decode_bytes.py", "paged_decode_splits.py", "attention_math.py"),
)
