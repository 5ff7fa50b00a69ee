"""The spec of `prefill_attention`: reference, inputs, cases, tuning space and costs.

Beside the kernel's file, which it describes; see `kernels.spec.KernelSpec`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.attention_math import attend
from workbench.kernels.launch import Config, power_of_2
from workbench.kernels.paged import gather_row, random_cache, random_scales
from workbench.kernels.prefill_attention import LIMITS, default, new_per_row, plan
from workbench.kernels.prefill_hopper import suits_hopper
from workbench.kernels.quantised_kv import FP8, QUANTISED
from workbench.kernels.spec import Case, Inputs, KernelSpec


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor | None = None,
    *,
    ancestors: Tensor | None = None,
    kv_scales: Tensor | None = None,
    num_tokens: int | None = None,
    num_splits: int = 1,
    **settings: Any,
) -> Tensor:
    """Return attention [T, H, D], row by row in float32; tokens of no row give zeros."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    starts = query_starts.tolist()
    for row, length in enumerate(context_lens.tolist()):
        new = slice(starts[row], starts[row + 1])
        if block_tables is None:
            keys, values = k[new], v[new]
        else:
            ids = block_tables[row, : -(-length // k.shape[1])].long()
            own = None if kv_scales is None else kv_scales[:, ids]
            pair = torch.stack((k[ids], v[ids]))
            keys, values = gather_row(pair, torch.arange(len(ids)), length, own)
        tree = None if ancestors is None else ancestors[new]
        out[new] = attend(q[new], keys, values, ancestors=tree, **settings).to(q.dtype)
    return out


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    paged: bool = True,
    block_size: int = 16,
    cache_dtype: torch.dtype | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: bool = False,
    alibi: bool = False,
    tree: bool = False,
    splits: int = 1,
) -> Inputs:
    """Return packed queries for rows of (new tokens, context with them).

    paged False: every row is new, and keys and values are slices of one matrix with the queries.
    tree: each new token hangs on one of the three before it.
    """
    generator = torch.Generator(device).manual_seed(seed)
    num_new, lens = [n for n, _ in rows], [length for _, length in rows]
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
    qkv = torch.randn((sum(num_new), sum(sizes)), generator=generator, device=device).to(dtype)
    q, k, v = (x.unflatten(-1, (-1, dim)) for x in qkv.split(sizes, dim=-1))
    starts = torch.tensor([0, *num_new]).cumsum(0).to(device, torch.int32)
    inputs: Inputs = {"q": q, "k": k, "v": v, "query_starts": starts, "scale": dim**-0.5}
    if paged:
        kept = cache_dtype or dtype
        cache, inputs["block_tables"] = random_cache(
            lens,
            kv_heads=kv_heads,
            dim=dim,
            block_size=block_size,
            dtype=kept,
            generator=generator,
            device=device,
        )
        inputs |= {"k": cache[0], "v": cache[1], **random_scales(cache, generator)}
    inputs |= {"window": window, "soft_cap": soft_cap}
    inputs["context_lens"] = torch.tensor(lens, dtype=torch.int32, device=device)
    if sinks:
        inputs["sinks"] = torch.randn(heads, generator=generator, device=device)
    if alibi:
        inputs["alibi"] = 2.0 ** -(1 + torch.arange(heads, device=device).float())
    if tree:
        inputs["ancestors"] = random_tree(num_new).to(device)
    if splits > 1:
        inputs["num_splits"] = splits
    return inputs


def random_tree(num_new: list[int]) -> Tensor:
    """Return ancestor bits [T, W] int32 of a tree per row, each token seeing itself."""
    words = max(1, -(-max(num_new) // 32))
    generator = torch.Generator().manual_seed(5)
    rows = []
    for count in num_new:
        seen = torch.eye(count, dtype=torch.int64)
        for token in range(1, count):
            parent = max(0, token - 1 - int(torch.randint(3, (), generator=generator)))
            seen[token] |= seen[parent]
        padded = F.pad(seen, (0, 32 * words - count)).view(count, words, 32)
        rows.append((padded << torch.arange(32)).sum(-1))
    return torch.cat(rows).to(torch.int32)  # bit 31 wraps to the sign


def keep(config: Config, inputs: Inputs) -> bool:
    """Whether a configuration fits: tiles in shared memory and registers, TMA within one block."""
    q, k = inputs["q"], inputs["k"]
    if config["HOPPER"]:
        return suits_hopper(config=config, **inputs)
    group, width = q.shape[1] // k.shape[-2], max(16, power_of_2(q.shape[2]))
    size = k.element_size()
    tiles = config["BLOCK_M"] * width * q.element_size()
    tiles += 2 * config["BLOCK_N"] * width * size * max(1, config["num_stages"] - 1)
    per_thread = config["BLOCK_M"] * (width + config["BLOCK_N"]) // (32 * config["num_warps"])
    if tiles > 220 << 10 or per_thread > 200 or config["BLOCK_M"] < group:
        return False
    if config["num_warps"] == 8 and config["BLOCK_M"] < 128:
        return False
    paged = inputs.get("block_tables") is not None
    return not config["TMA"] or _describable(config, k, paged)


def _describable(config: Config, k: Tensor, paged: bool) -> bool:
    """Whether the copy engine can fetch a tile: aligned rows, and blocks of whole tiles."""
    if paged and k.shape[1] % config["BLOCK_N"]:
        return False
    return k.stride(-3) * k.element_size() % 16 == 0 and k.data_ptr() % 16 == 0


def pairs(q: Tensor, query_starts: Tensor, context_lens: Tensor, window: int | None) -> int:
    """Return how many (query, key) pairs are seen, over all rows; a tree counts as causal."""
    total = 0
    starts = query_starts.tolist()
    for row, length in enumerate(context_lens.tolist()):
        num_new = starts[row + 1] - starts[row]
        seen = torch.arange(length - num_new + 1, length + 1)
        total += int(seen.clamp(max=window or length).sum())
    return total


def flops(q: Tensor, query_starts: Tensor, context_lens: Tensor, **inputs: Any) -> int:
    """Return the two products' operations: 4 D for every head and seen pair."""
    seen = pairs(q, query_starts, context_lens, inputs.get("window"))
    return 4 * seen * q.shape[1] * q.shape[2]


def num_bytes(q: Tensor, k: Tensor, context_lens: Tensor, **_: Any) -> int:
    """Return bytes: q and the output once, and every key and value once."""
    cache = 2 * int(context_lens.sum()) * k.shape[-2] * k.shape[-1] * k.element_size()
    return 2 * q.numel() * q.element_size() + cache


def bucket(
    q: Tensor,
    k: Tensor,
    context_lens: Tensor,
    block_tables: Tensor | None = None,
    num_tokens: int | None = None,
    **_: Any,
) -> str:
    """Return shape, where keys come from, and new tokens in all and per row, in powers of two."""
    kind = "quantised" if k.dtype in QUANTISED else "float"
    source = "new tokens" if block_tables is None else f"blocks of {k.shape[1]} {kind}"
    tokens = power_of_2(min(q.shape[0] if num_tokens is None else num_tokens, 8192))
    each = min(new_per_row(q, context_lens, num_tokens), 8192)
    shape = f"heads {q.shape[1]}/{k.shape[-2]}x{q.shape[2]}"
    return f"{shape} {source} tokens {tokens} in rows of {each}"


def baseline(q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, **inputs: Any) -> Tensor | None:
    """Return torch's SDPA over equal whole prompts, the library's way; None for other inputs."""
    rows = len(query_starts) - 1
    plain = all(inputs.get(name) is None for name in ("window", "soft_cap", "sinks", "alibi"))
    if inputs.get("block_tables") is not None or not plain or q.shape[0] % rows:
        return None
    q, k, v = (x.unflatten(0, (rows, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=inputs["scale"], enable_gqa=True
    )
    return out.transpose(1, 2).flatten(0, 1)


_SMALL = {"heads": 4, "kv_heads": 2, "dim": 16}
_8B: dict[str, Any] = {"heads": 32, "kv_heads": 8, "dim": 128}
_1B: dict[str, Any] = {"heads": 32, "kv_heads": 8, "dim": 64}
_MIXED = {"rows": [(1, 9), (7, 7), (40, 90), (3, 70)]}
_NEW = {"rows": [(5, 5), (70, 70), (1, 1)], "paged": False}

SPEC = KernelSpec(
    name="prefill_attention",
    summary="causal attention of packed new tokens over old contexts",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token": Case({"rows": [(1, 1)], **_SMALL}),
        "chunks and decodes": Case({**_MIXED, **_SMALL}),
        "whole prompts": Case({**_NEW, **_SMALL}),
        "window": Case({**_MIXED, "window": 8, **_SMALL}),
        "wide window": Case({**_MIXED, "window": 71, **_SMALL}),
        "window, new tokens": Case({**_NEW, "window": 17, **_SMALL}),
        "soft cap, sinks": Case({**_MIXED, "soft_cap": 2.0, "sinks": True, **_SMALL}),
        "alibi": Case({**_MIXED, "alibi": True, **_SMALL}),
        "a token tree": Case({"rows": [(1, 40), (37, 100), (9, 9)], "tree": True, **_SMALL}),
        "split": Case({**_MIXED, "splits": 3, "sinks": True, **_SMALL}),
        "split window": Case({**_MIXED, "splits": 4, "window": 20, **_SMALL}),
        "split tree": Case({"rows": [(1, 400), (9, 300)], "tree": True, "splits": 4, **_SMALL}),
        "blocks of 1": Case({"rows": [(2, 9), (3, 3)], "block_size": 1, **_SMALL}),
        "blocks of 3": Case({"rows": [(2, 40), (3, 3)], "block_size": 3, **_SMALL}),
        "blocks of 64": Case({"rows": [(2, 150), (66, 66)], "block_size": 64, **_SMALL}),
        "seven heads each": Case({"rows": [(20, 33)], "heads": 14, "kv_heads": 2, "dim": 32}),
        "one kv head": Case({"rows": [(5, 33)], "heads": 20, "kv_heads": 1, "dim": 24}),
        "head size 80": Case({"rows": [(33, 40)], "heads": 2, "kv_heads": 2, "dim": 80}),
        "head size 96": Case({"rows": [(9, 9)], "heads": 2, "kv_heads": 2, "dim": 96}),
        "head size 256": Case({"rows": [(9, 40)], "heads": 2, "kv_heads": 1, "dim": 256}),
        "int8 cache": Case({**_MIXED, "cache_dtype": torch.int8, **_SMALL}),
        "fp8 cache": Case({**_MIXED, "cache_dtype": FP8, **_SMALL}, min_capability=89),
        "llama-8b small": Case({"rows": [(40, 70)], **_8B}),
        "llama-8b small new": Case({"rows": [(33, 33)], "paged": False, **_8B}),
        "tinypy 4x200": Case(
            {"rows": [(200, 200)] * 4, "paged": False, "heads": 8, "kv_heads": 2, "dim": 64},
            small=False,
        ),
        "llama-1b 4x8k": Case({"rows": [(8192, 8192)] * 4, "paged": False, **_1B}, small=False),
        "llama-8b 4x8k": Case(
            {"rows": [(8192, 8192)] * 4, "paged": False, **_8B}, small=False, quick=True
        ),
        "llama-8b 16x2k": Case(
            {"rows": [(2048, 2048)] * 16, "paged": False, **_8B}, small=False, quick=True
        ),
        "llama-8b 1x32k": Case({"rows": [(32768, 32768)], "paged": False, **_8B}, small=False),
        "llama-8b 4x8k paged 16": Case({"rows": [(8192, 8192)] * 4, **_8B}, small=False),
        "llama-8b 4x8k paged 64": Case(
            {"rows": [(8192, 8192)] * 4, "block_size": 64, **_8B}, small=False
        ),
        "llama-8b chunk 2k at 16k": Case({"rows": [(2048, 16384)], **_8B}, small=False, quick=True),
        "llama-8b chunk 2k at 16k blocks of 64": Case(
            {"rows": [(2048, 16384)], "block_size": 64, **_8B}, small=False
        ),
        "llama-8b chunk 2k at 16k fp8": Case(
            {"rows": [(2048, 16384)], "cache_dtype": FP8, **_8B}, small=False, min_capability=89
        ),
        "llama-8b verify 32x8 at 4k": Case(
            {"rows": [(8, 4096)] * 32, "tree": True, **_8B}, small=False
        ),
        "llama-8b verify 1x6 at 16k": Case(
            {"rows": [(6, 16384)], "tree": True, "splits": 16, **_8B}, small=False
        ),
    },
    space={
        "BLOCK_M": (16, 32, 64, 128, 256),
        "BLOCK_N": (32, 64, 128),
        "TMA": (0, 1),
        "HOPPER": (0, 1),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
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
    baseline=baseline,
    sources=(
        "prefill_hopper.py",
        "prefill_warpgroup.py",
        "prefill_fold.py",
        "prefill_tiles.py",
        "prefill_splits.py",
        "attention_math.py",
    ),
)
