"""Logits to tokens on the device: penalties, temperature, top-k, top-p, min-p, draw and logprob.

Gives the tokens of `workbench.sample.Sampler`: probabilities are the same fixed-point integers,
whose sums are exact in any order, and the uniform is the same hash of a stream's key and an output
index. Every parameter is a tensor, nothing is read on the host, so a captured graph samples.

Four launches. `peaks` and `sums` read the logits once each, in parallel over chunks of the
vocabulary; `collect` gathers the likeliest tokens of rows that rank; `draw` decides, a program a
row, among up to CANDIDATES tokens; where a filter needs more, `sample_wide` bisects the whole
vocabulary, exactly and slowly. Rows that need less leave early.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.kernels.launch import INTERPRETED, Config, Launch, Plan, cdiv, power_of_2
from workbench.kernels.sample_draw import draw_kernel
from workbench.kernels.sample_math import (
    NUM_BINS,
    bin_of,
    key_of,
    row_logits,
    row_peak,
    weight_of,
)
from workbench.kernels.spec import check_limits

LIMITS = {"vocab_size": (1, 1 << 22)}
CANDIDATES = 64 if INTERPRETED else 2048  # few, for tests to meet rows that need more
INVALID = -1  # the token of a row that has no distribution: NaN or +inf in it, or nothing at all


class Penalties(NamedTuple):
    """Penalties of R rows, and which tokens their sequences hold.

    slots [R] int64: a row's place in `seen`, negative for rows without penalties. seen [slots, V]
    int32: 0 for a token that the sequence lacks, else 1 and how often its output has it; the drawn
    token is counted in. repetition, presence, frequency [R] float32: see `workbench.sample`.
    """

    slots: Tensor
    seen: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


@triton.jit
def peaks_kernel(
    logits, slots, seen, repetition, presence, frequency, peaks, best, own_peaks, histogram, found,
    vocab_size, row_stride, num_chunks,
    PENALISED: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Find the largest logit of a chunk and its first token; NaN counts as the largest."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    own, x = row_logits(logits, slots, seen, repetition, presence, frequency, row, row_stride,
                        columns, inside, vocab_size, PENALISED)  # fmt: skip
    place = row * num_chunks + chunk
    broken = tl.max((x != x).to(tl.int32), axis=0) > 0
    peak = tl.max(x, axis=0)
    tl.store(peaks + place, tl.where(broken, float("nan"), peak))
    tl.store(best + place, tl.min(tl.where(x == peak, columns, vocab_size), axis=0))
    if PENALISED:
        tl.store(own_peaks + place, tl.max(own, axis=0))
    if chunk == 0:
        tl.store(histogram + row * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(found + row, 0)


@triton.jit
def sums_kernel(
    logits, slots, seen, repetition, presence, frequency, temperature, top_k, top_p, min_p,
    peaks, own_peaks, sums, exponentials, histogram,
    vocab_size, row_stride, num_chunks,
    PENALISED: tl.constexpr, PRECISE: tl.constexpr, SAMPLED: tl.constexpr, RANKED: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Add up a chunk's weights, and its part of the softmax of the model's own logits."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    own, x = row_logits(logits, slots, seen, repetition, presence, frequency, row, row_stride,
                        columns, inside, vocab_size, PENALISED)  # fmt: skip
    peak, _ = row_peak(peaks, row, num_chunks, TILE)
    own_peak = peak
    if PENALISED:
        own_peak, _ = row_peak(own_peaks, row, num_chunks, TILE)
    place = row * num_chunks + chunk
    tl.store(exponentials + place, tl.sum(tl.exp(own - own_peak), axis=0))
    if SAMPLED:
        heat = tl.load(temperature + row)
        if heat > 0.0:
            weight = weight_of(x, peak, heat, PRECISE)
            ranks = (tl.load(top_k + row) < vocab_size) | (tl.load(top_p + row) < 1.0)
            if RANKED and ranks:
                bins = tl.histogram(bin_of(x, peak, heat), BINS, mask=inside)
                tl.atomic_add(histogram + row * BINS + tl.arange(0, BINS), bins)
            else:
                floor = tl.load(min_p + row) * 1099511627776.0
                weight = tl.where(weight.to(tl.float64) < floor, 0, weight)
            tl.store(sums + place, tl.sum(weight, axis=0))


@triton.jit
def collect_kernel(
    logits, slots, seen, repetition, presence, frequency, temperature, top_k, top_p,
    peaks, histogram, found, candidates,
    vocab_size, row_stride, num_chunks,
    PENALISED: tl.constexpr, CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Gather a chunk's tokens of the likeliest bins that together hold CANDIDATES at most."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heat = tl.load(temperature + row)
    ranks = (tl.load(top_k + row) < vocab_size) | (tl.load(top_p + row) < 1.0)
    if (heat > 0.0) & ranks:
        columns = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        _, x = row_logits(logits, slots, seen, repetition, presence, frequency, row, row_stride,
                          columns, inside, vocab_size, PENALISED)  # fmt: skip
        peak, _ = row_peak(peaks, row, num_chunks, TILE)
        counts = tl.load(histogram + row * BINS + tl.arange(0, BINS))
        num_bins = tl.sum((tl.cumsum(counts, axis=0) <= CANDIDATES).to(tl.int32), axis=0)
        wanted = (bin_of(x, peak, heat) < num_bins) & inside
        chosen = wanted.to(tl.int32)
        base = tl.atomic_add(found + row, tl.sum(chosen, axis=0))
        # In the order of atomics, which is no order: `draw` needs none.
        places = candidates + row * CANDIDATES + base + tl.cumsum(chosen, axis=0) - 1
        tl.store(places, key_of(x, columns), mask=wanted)


def default(logits: Tensor, **_: Any) -> Config:
    """Return 2048 tokens a program: parallel enough for one row, and few parts to add up."""
    return {"BLOCK": min(2048, max(16, power_of_2(logits.shape[1]))), "num_warps": 4}


def plan(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    indices: Tensor,
    *,
    penalties: Penalties | None = None,
    sampled: bool = True,
    ranked: bool = True,
    tokens: Tensor | None = None,
    logprobs: Tensor | None = None,
    candidates: int = CANDIDATES,
    config: Config | None = None,
) -> Plan:
    """Plan a token for each row of logits [R, V]: (tokens [R] int64, logprobs [R] float32).

    temperature [R] float32, 0 for the likeliest token; top_k [R] int32, V or more for all; top_p
    and min_p [R] float64, 1 and 0 for all; keys [R] int64 of `workbench.sample.random.stream_keys`;
    indices [R] int64, the drawn tokens' places in their outputs. sampled, ranked: whether any row
    may have a temperature, or top-k or top-p; where the host knows that none has, launches are
    saved. candidates: how many tokens `draw` looks at first, a power of two. With penalties `seen`
    is a third output. A row without a distribution gets `INVALID` and NaN.
    """
    num_rows, vocab_size = logits.shape
    check_limits("sample", LIMITS, vocab_size=vocab_size)
    assert logits.stride(1) == 1, "the logits of a row are adjacent"
    config = {**(config or default(logits)), "enable_fp_fusion": False}  # as torch rounds
    chunks, device = cdiv(vocab_size, config["BLOCK"]), logits.device

    def scratch(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty((num_rows, *shape), dtype=dtype, device=device)

    tokens = scratch(torch.int64) if tokens is None else tokens
    logprobs = scratch(torch.float32) if logprobs is None else logprobs
    fields = dict.fromkeys(Penalties._fields) if penalties is None else penalties._asdict()
    shared = fields | {
        "logits": logits, "vocab_size": vocab_size, "row_stride": logits.stride(0),
        "num_chunks": chunks, "PENALISED": penalties is not None,
        "peaks": scratch(torch.float32, chunks),
        "own_peaks": None if penalties is None else scratch(torch.float32, chunks),
        "histogram": scratch(torch.int32, NUM_BINS), "found": scratch(torch.int32),
        "best": scratch(torch.int32, chunks), "sums": scratch(torch.int64, chunks),
        "exponentials": scratch(torch.float32, chunks),
        "candidates": scratch(torch.int64, candidates if ranked else 1),
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "keys": keys,
        "indices": indices, "tokens": tokens, "logprobs": logprobs,
        "TILE": power_of_2(chunks), "BINS": NUM_BINS, "CANDIDATES": candidates,
        "PRECISE": not INTERPRETED, "SAMPLED": sampled, "RANKED": ranked,
    }  # fmt: skip
    steps = [peaks_kernel, sums_kernel, *([collect_kernel] if sampled and ranked else [])]
    launches = [_launch(kernel, (num_rows, chunks), shared, config) for kernel in steps]
    launches.append(_launch(draw_kernel, (num_rows,), shared, {**config, "num_warps": 4}))
    outputs = (tokens, logprobs) if penalties is None else (tokens, logprobs, penalties.seen)
    return Plan(tuple(launches) if num_rows else (), outputs)


def _launch(kernel: Any, grid: tuple[int, ...], shared: dict[str, Any], config: Config) -> Launch:
    """Return a launch with those of the shared arguments that a kernel takes."""
    names = set(kernel.arg_names)
    return Launch(kernel, grid, {k: v for k, v in shared.items() if k in names}, config)


def sample(*args: Any, **kwargs: Any) -> Any:
    """Return (tokens [R] int64, logprobs [R] float32); arguments as of `plan`."""
    return plan(*args, **kwargs).run()
