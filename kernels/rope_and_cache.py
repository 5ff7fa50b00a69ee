"""Rotate queries and keys, and write keys and values to the paged cache, in one launch.

Memory-bound. Programs take TOKENS tokens and HEADS heads: first those of the queries, then those of
keys and values. Pairs are (i, i + D/2), the halves convention; angles are float32 and a result is
rounded once. A slot below 0 is skipped: padding of a batch that a CUDA graph holds.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.early import await_previous, starts_early
from workbench.kernels.launch import Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.paged import random_scales, to_cache
from workbench.kernels.quantised_kv import FP8, LARGEST, QUANTISED, quantise
from workbench.kernels.spec import Case, Inputs, KernelSpec, check_limits

LIMITS = {"head_dim": (2, 512)}


@triton.jit
def _rotated(x, cos, sin, rows, tokens, d, inside, HALF_DIM: tl.constexpr, ROTATE: tl.constexpr):
    """Return both halves of heads at x + rows (their first elements), float32."""
    first = tl.load(x + rows[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + rows[:, None] + d[None, :] + HALF_DIM, mask=inside, other=0.0)
    second = second.to(tl.float32)
    if ROTATE:
        angle = tokens[:, None] * HALF_DIM + d[None, :]
        c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    return first, second


@triton.jit
def _store(out, places, d, inside, first, second, HALF_DIM: tl.constexpr):
    """Store both halves of heads at out + places."""
    place = places[:, None] + d[None, :]
    tl.store(out + place, first.to(out.dtype.element_ty), mask=inside)
    tl.store(out + place + HALF_DIM, second.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def rope_and_cache_kernel(
    q, k, v, cos, sin, q_out, k_out, kv, scales, slots,
    num_tokens, q_stride, k_stride, v_stride, side_stride, scale_stride,
    H: tl.constexpr, K: tl.constexpr, HALF_DIM: tl.constexpr, HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, EARLY: tl.constexpr, ROTATE: tl.constexpr, CACHED: tl.constexpr,
    INT8: tl.constexpr, LARGEST: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Rotate TOKENS x HEADS heads of q, or of k (and cache them with those of v)."""
    await_previous(EARLY)
    DIM: tl.constexpr = 2 * HALF_DIM
    chunk = tl.program_id(1)
    q_chunks: tl.constexpr = (H + HEADS - 1) // HEADS if ROTATE else 0
    row = tl.arange(0, TOKENS * HEADS)
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + row // HEADS
    d = tl.arange(0, HALF)
    if chunk < q_chunks:
        heads = chunk * HEADS + row % HEADS
        inside = ((tokens < num_tokens) & (heads < H))[:, None] & (d < HALF_DIM)[None, :]
        source = tokens * q_stride + heads * DIM
        first, second = _rotated(q, cos, sin, source, tokens, d, inside, HALF_DIM, ROTATE)
        _store(q_out, (tokens * H + heads) * DIM, d, inside, first, second, HALF_DIM)
    else:
        heads = (chunk - q_chunks) * HEADS + row % HEADS
        wanted = (tokens < num_tokens) & (heads < K)
        inside = wanted[:, None] & (d < HALF_DIM)[None, :]
        source = tokens * k_stride + heads * DIM
        first, second = _rotated(k, cos, sin, source, tokens, d, inside, HALF_DIM, ROTATE)
        if ROTATE:
            _store(k_out, (tokens * K + heads) * DIM, d, inside, first, second, HALF_DIM)
        if CACHED:
            slot = tl.load(slots + tokens, mask=wanted, other=-1).to(tl.int64)
            inside = inside & (slot >= 0)[:, None]
            place = (slot * K + heads) * DIM
            # What is cached is what `k_out` holds, rounding included.
            first = first.to(k.dtype.element_ty).to(tl.float32)
            second = second.to(k.dtype.element_ty).to(tl.float32)
            own = scales
            if scales is not None:
                own += ((slot // BLOCK_SIZE) * K + heads) * BLOCK_SIZE + slot % BLOCK_SIZE
                wanted = wanted & (slot >= 0)
            first, second = to_cache(first, second, own, wanted, INT8, LARGEST)
            _store(kv, place, d, inside, first, second, HALF_DIM)
            source = tokens * v_stride + heads * DIM
            first, second = _rotated(v, cos, sin, source, tokens, d, inside, HALF_DIM, False)
            if scales is not None:
                own += scale_stride
            first, second = to_cache(first, second, own, wanted, INT8, LARGEST)
            _store(kv + side_stride, place, d, inside, first, second, HALF_DIM)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    kv: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    kv_scales: Tensor | None = None,
) -> Any:
    """Return rotated q [T, H, D] and k [T, K, D], and cache and scales after the write, if any."""
    if cos is not None and sin is not None:
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if kv is None or slot_mapping is None:
        return q, k
    kv, kept = kv.clone(), slot_mapping >= 0
    slots, size = slot_mapping[kept], kv.shape[2]
    if kv_scales is None:
        for side, new in zip(kv, (k, v), strict=True):
            side.flatten(0, 1)[slots] = new[kept].to(kv.dtype)
        return q, k, kv
    kv_scales = kv_scales.clone()
    for side, scales, new in zip(kv, kv_scales, (k, v), strict=True):
        side.flatten(0, 1)[slots], scales[slots // size, :, slots % size] = quantise(
            new[kept], kv.dtype
        )
    return q, k, kv, kv_scales


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def default(q: Tensor, k: Tensor, **_: Any) -> Config:
    """Return one token and all KV heads (at most 8 heads) a program."""
    return {"TOKENS": 1, "HEADS": min(8, power_of_2(k.shape[1])), "num_warps": 4}


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    kv: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    kv_scales: Tensor | None = None,
    config: Config | None = None,
) -> Plan:
    """Plan the rotation of q [T, H, D], k [T, K, D] by cos, sin [T, D/2], and the cache write.

    Without cos nothing is rotated; without kv [2, blocks, block_size, K, D] nothing is written.
    Tokens of q, k, v may be strided (slices of one matrix). kv, and kv_scales [2, blocks, K,
    block_size] float32 of an 8-bit cache, are written in place.
    """
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    check_limits("rope_and_cache", LIMITS, head_dim=dim)
    assert dim % 2 == 0, "a head has two halves"
    assert all(x[:1].is_contiguous() for x in (q, k, v)), "the heads of a token are adjacent"
    assert (kv is not None and kv.dtype in QUANTISED) == (kv_scales is not None), "8 bits, scales"
    assert kv is None or (kv.is_contiguous() and kv.shape[3:] == (kv_heads, dim)), "cache layout"
    config = config or default(q, k)
    rotate = cos is not None
    arguments = {
        "q": q, "k": k, "v": v, "cos": cos, "sin": sin,
        "q_out": torch.empty(q.shape, dtype=q.dtype, device=q.device) if rotate else q,
        "k_out": torch.empty(k.shape, dtype=k.dtype, device=k.device) if rotate else k,
        "kv": kv, "slots": slot_mapping, "scales": kv_scales, "num_tokens": tokens,
        "q_stride": q.stride(0), "k_stride": k.stride(0), "v_stride": v.stride(0),
        "side_stride": 0 if kv is None else kv.stride(0),
        "H": heads, "K": kv_heads, "HALF_DIM": dim // 2, "HALF": power_of_2(dim // 2),
        "EARLY": starts_early(q.device), "ROTATE": rotate,
        "CACHED": kv is not None, "BLOCK_SIZE": 1 if kv is None else kv.shape[2],
        "INT8": kv is not None and kv.dtype == torch.int8,
        "LARGEST": 1.0 if kv is None else LARGEST.get(kv.dtype, 1.0),
        "scale_stride": 0 if kv_scales is None else kv_scales.stride(0),
    }  # fmt: skip
    q_chunks = cdiv(heads, config["HEADS"]) if rotate else 0
    grid = (cdiv(tokens, config["TOKENS"]), q_chunks + cdiv(kv_heads, config["HEADS"]))
    work = tokens and (rotate or kv is not None)
    written = tuple(x for x in (kv, kv_scales) if x is not None)
    return Plan(
        (Launch(rope_and_cache_kernel, grid, arguments, config),) if work else (),
        (arguments["q_out"], arguments["k_out"], *written),
    )


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int = 16,
    cache_dtype: torch.dtype | None = None,
    cached: bool = True,
    rotated: bool = True,
    padded: int = 0,
) -> Inputs:
    """Return q, k, v as slices of one matrix, angles, and a cache with shuffled slots.

    padded: how many of the last tokens have no slot. cache_dtype None: that of q.
    """
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
    qkv = torch.randn((tokens, sum(sizes)), generator=generator, device=device).to(dtype)
    q, k, v = (x.unflatten(-1, (-1, dim)) for x in qkv.split(sizes, dim=-1))
    inputs: Inputs = {"q": q, "k": k, "v": v}
    if rotated:
        angles = torch.randn((tokens, dim // 2), generator=generator, device=device) * 3
        inputs |= {"cos": angles.cos(), "sin": angles.sin()}
    if not cached:
        return inputs
    blocks = tokens // block_size + 2
    kept = cache_dtype or dtype
    slots = torch.randperm(blocks * block_size, generator=torch.Generator().manual_seed(seed))
    slots[tokens - padded : tokens] = -1
    kv = torch.zeros((2, blocks, block_size, kv_heads, dim), device=device).to(kept)
    inputs |= {"kv": kv, "slot_mapping": slots[:tokens].to(device)}
    return inputs | random_scales(kv, generator)


def num_bytes(q: Tensor, k: Tensor, kv: Tensor | None = None, cos: Any = None, **_: Any) -> int:
    """Return bytes: q and k read and written, v read, both written to the cache, the angles."""
    size, rotated = q.element_size(), cos is not None
    total = 2 * size * (q.numel() + k.numel()) * rotated + (0 if cos is None else 2 * cos.nbytes)
    if kv is not None:
        total += (2 - rotated) * size * k.numel() + 2 * kv.element_size() * k.numel()
        total += 8 * k.shape[0] * k.shape[1] * (kv.dtype in QUANTISED)
    return int(total)


_LLAMA_8B = {"heads": 32, "kv_heads": 8, "dim": 128}
_LLAMA_1B = {"heads": 32, "kv_heads": 8, "dim": 64}
_SMALL = {"heads": 4, "kv_heads": 2, "dim": 16}

SPEC = KernelSpec(
    name="rope_and_cache",
    summary="rotate q and k, write k and v to the paged cache",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token": Case({"tokens": 1, **_SMALL}),
        "seven tokens, padded": Case({"tokens": 7, "padded": 3, **_SMALL}),
        "no tokens": Case({"tokens": 0, **_SMALL}),
        "no cache": Case({"tokens": 3, "cached": False, **_SMALL}),
        "no rotation": Case({"tokens": 3, "rotated": False, **_SMALL}),
        "head size 6": Case({"tokens": 5, "heads": 3, "kv_heads": 3, "dim": 6}),
        "blocks of 3": Case({"tokens": 5, "heads": 7, "kv_heads": 1, "dim": 80, "block_size": 3}),
        "fp8 cache": Case({"tokens": 4, "cache_dtype": FP8, **_SMALL}, min_capability=89),
        "int8 cache": Case({"tokens": 4, "cache_dtype": torch.int8, **_SMALL}),
        "llama-8b small": Case({"tokens": 2, **_LLAMA_8B}),
        "tinypy decode 16": Case({"tokens": 16, "heads": 8, "kv_heads": 2, "dim": 64}, small=False),
        "llama-1b decode 64": Case({"tokens": 64, **_LLAMA_1B}, small=False),
        "llama-8b decode 1": Case({"tokens": 1, **_LLAMA_8B}, small=False, quick=True),
        "llama-8b decode 32": Case({"tokens": 32, **_LLAMA_8B}, small=False, quick=True),
        "llama-8b decode 256": Case({"tokens": 256, **_LLAMA_8B}, small=False),
        "llama-8b prefill 8k": Case({"tokens": 8192, **_LLAMA_8B}, small=False, quick=True),
        "llama-8b prefill 8k fp8": Case(
            {"tokens": 8192, "cache_dtype": FP8, **_LLAMA_8B}, small=False, min_capability=89
        ),
    },
    space={"TOKENS": (1, 2, 4, 8), "HEADS": (1, 2, 4, 8, 16, 32), "num_warps": (1, 2, 4, 8)},
    keep=lambda config, inputs: (
        config["HEADS"] <= power_of_2(inputs["q"].shape[1])
        and 32
        <= config["TOKENS"] * config["HEADS"] * inputs["q"].shape[2] // (2 * config["num_warps"])
        <= 1024
    ),
    default=default,
    bucket=lambda q, k, kv=None, **_: (
        f"heads {q.shape[1]}/{k.shape[1]}x{q.shape[2]} tokens {power_of_2(min(q.shape[0], 4096))}"
        f"{'' if kv is None or kv.dtype not in QUANTISED else ' quantised'}"
    ),
    flops=lambda q, k, cos=None, **_: 0 if cos is None else 3 * (q.numel() + k.numel()),
    num_bytes=num_bytes,
    tolerance={
        torch.float32: (1e-5, 1e-5),
        torch.float16: (2e-3, 2e-3),
        torch.bfloat16: (1.6e-2, 1.6e-2),
    },
    limits=LIMITS,
    sources=("paged.py",),
)


def rope_and_cache(*args: Any, **kwargs: Any) -> Any:
    """Return rotated q and k, having written k and v to the cache; arguments as of `plan`."""
    return plan(*args, **kwargs).run()
