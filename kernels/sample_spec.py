"""The spec of `sample`: reference, inputs, cases, tuning space and costs.

Beside the kernels' files, which it describes; see `kernels.spec.KernelSpec`. The reference sorts
every row, and knows nothing of chunks, bins and keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.kernels.launch import Config, power_of_2
from workbench.kernels.sample import INVALID, LIMITS, Penalties, default, plan
from workbench.kernels.spec import Case, Inputs, KernelSpec

_ONE = 2.0**40


def reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    indices: Tensor,
    *,
    penalties: Penalties | None = None,
    **_: Any,
) -> Any:
    """Return (tokens, logprobs), and `seen` after the draw if there are penalties."""
    own = logits.float()
    values, seen = own, None
    if penalties is not None:
        values, seen = _penalised(own, penalties), penalties.seen.clone()
    tokens = torch.full((len(own),), INVALID, dtype=torch.int64, device=own.device)
    for row, x in enumerate(values):
        if not bool(x.amax().isfinite()):
            continue
        heat = float(temperature[row])
        if heat == 0.0:
            tokens[row] = int((x == x.amax()).nonzero()[0])
        else:
            filters = int(top_k[row]), float(top_p[row]), float(min_p[row])
            uniform = _uniform(int(keys[row]), int(indices[row]))
            tokens[row] = _drawn(x, heat, *filters, uniform)
        if penalties is not None and seen is not None and int(penalties.slots[row]) >= 0:
            slot, token = int(penalties.slots[row]), int(tokens[row])
            seen[slot, token] = max(int(seen[slot, token]), 1) + 1
    logprobs = own.log_softmax(-1).gather(1, tokens.clamp(min=0)[:, None])[:, 0]
    logprobs = logprobs.masked_fill(tokens == INVALID, torch.nan)
    return (tokens, logprobs) if seen is None else (tokens, logprobs, seen)


def _drawn(x: Tensor, heat: float, k: int, p: float, least: float, uniform: float) -> int:
    """Return the token that a uniform falls on, of a row of logits [V]."""
    temperature = torch.tensor(heat, dtype=torch.float32, device=x.device)
    weights = (((x - x.amax()) / temperature).exp() * _ONE).to(torch.int64)
    order = torch.arange(len(x), device=x.device)
    if k < len(x) or p < 1.0:
        order = x.sort(descending=True, stable=True).indices
        weights = weights[order]
        weights[k:] = 0
        likelier = weights.cumsum(0) - weights
        weights[likelier.double() >= p * weights.sum().double()] = 0
    weights[weights.double() < least * _ONE] = 0
    total = int(weights.sum())
    target = min(int(uniform * float(total)), total - 1)
    return int(order[int((weights.cumsum(0) > target).nonzero()[0])])


def _uniform(key: int, index: int) -> float:
    """Return splitmix64's number `index` of the sequence that starts at `key`, in [0, 1)."""
    mask = 2**64 - 1
    x = (key + (index + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return float((x ^ (x >> 31)) >> 11) * 2.0**-53


def _penalised(own: Tensor, penalties: Penalties) -> Tensor:
    """Return logits after repetition (of all that a sequence has), presence and frequency."""
    counts = penalties.seen[penalties.slots.clamp(min=0)]
    counts = counts.masked_fill((penalties.slots < 0)[:, None], 0)
    repetition, presence, frequency = (column[:, None] for column in penalties[2:])
    changed = torch.where(own < 0, own * repetition, own / repetition)
    changed = changed - presence * (counts > 1)
    changed = changed - frequency * (counts - 1)
    return torch.where(counts > 0, changed, own)


def make_inputs(
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rows: int,
    vocab: int,
    kinds: str = "gpkmwb",
    spread: float = 3.0,
    penalised: bool = False,
    ties: bool = False,
    broken: bool = False,
    strided: bool = False,
) -> Inputs:
    """Return rows that take turns over `kinds`, with logits of this spread.

    kinds: g greedy, p plain, k top-k, m min-p, w top-p, b all of them. ties: logits are whole
    numbers. broken: the first rows hold NaN, +inf, or nothing but -inf.
    """
    generator = torch.Generator(device).manual_seed(seed)
    columns = vocab + (5 if strided else 0)
    logits = torch.randn((rows, columns), generator=generator, device=device) * spread
    logits = (logits.round() if ties else logits).to(dtype)[:, :vocab]
    if broken:
        logits[0, vocab // 2], logits[1, 0], logits[2] = torch.nan, torch.inf, -torch.inf
    turns = [kinds[row % len(kinds)] for row in range(rows)]

    def column(values: list[float], kind: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=kind, device=device)

    heats = [0.0 if turn == "g" else 0.6 + 0.2 * (row % 4) for row, turn in enumerate(turns)]
    inputs: Inputs = {
        "logits": logits,
        "temperature": column(heats, torch.float32),
        "top_k": column([min(vocab, 20) if t in "kb" else vocab for t in turns], torch.int32),
        "top_p": column([0.9 if t in "wb" else 1.0 for t in turns], torch.float64),
        "min_p": column([0.05 if t in "mb" else 0.0 for t in turns], torch.float64),
        "keys": torch.randint(-(2**62), 2**62, (rows,), generator=torch.Generator().manual_seed(1))
        .to(device),
        "indices": torch.arange(rows, device=device),
        "sampled": set(kinds) != {"g"},
        "ranked": bool(set(kinds) & set("kwb")),
    }  # fmt: skip
    if penalised:
        seen = torch.randint(-3, 4, (rows, vocab), generator=generator, device=device).clamp(min=0)
        slots = torch.arange(rows - 1, -1, -1, device=device)
        slots[rows // 2] = -1
        inputs["penalties"] = Penalties(
            slots,
            seen.to(torch.int32),
            column([1.0 + 0.25 * (row % 3) for row in range(rows)], torch.float32),
            column([0.3 * (row % 2) for row in range(rows)], torch.float32),
            column([0.2 * (row % 4) for row in range(rows)], torch.float32),
        )
    return inputs


def keep(config: Config, inputs: Inputs) -> bool:
    """Let through chunks of 4 to 32 tokens a thread, no longer than the vocabulary."""
    share = config["BLOCK"] // (32 * config["num_warps"])
    return 4 <= share <= 32 and config["BLOCK"] < 2 * power_of_2(inputs["logits"].shape[1])


_CLOSE = (1e-6, 5e-6)  # of a log-probability, in float32 whatever the logits are
_LLAMA = {"vocab": 128256}

SPEC = KernelSpec(
    name="sample",
    summary="penalties, temperature, top-k, top-p, min-p, the draw and its log-probability",
    reference=reference,
    plan=plan,
    make_inputs=make_inputs,
    cases={
        "one token": Case({"rows": 2, "vocab": 1, "kinds": "gp"}),
        "every kind": Case({"rows": 6, "vocab": 300}),
        "plain, odd vocabulary": Case({"rows": 3, "vocab": 131, "kinds": "p", "strided": True}),
        "ties": Case({"rows": 6, "vocab": 200, "ties": True, "spread": 1.0}),
        "nearly flat": Case({"rows": 3, "vocab": 150, "kinds": "wbk", "spread": 0.001}),
        "steep": Case({"rows": 6, "vocab": 90, "spread": 40.0}),
        "penalties": Case({"rows": 5, "vocab": 120, "penalised": True, "kinds": "pgkw"}),
        "no rows": Case({"rows": 0, "vocab": 64}),
        "no distribution": Case({"rows": 6, "vocab": 64, "broken": True, "kinds": "pkw"}),
        "llama greedy 256": Case({"rows": 256, "kinds": "g", **_LLAMA}, small=False),
        "llama plain 1": Case({"rows": 1, "kinds": "p", **_LLAMA}, small=False),
        "llama plain 256": Case({"rows": 256, "kinds": "p", **_LLAMA}, small=False, quick=True),
        "llama top-k 256": Case({"rows": 256, "kinds": "k", **_LLAMA}, small=False),
        "llama top-p 32": Case({"rows": 32, "kinds": "w", **_LLAMA}, small=False, quick=True),
        "llama flat top-p 32": Case(
            {"rows": 32, "kinds": "w", "spread": 0.5, **_LLAMA}, small=False
        ),
        "llama penalties 64": Case(
            {"rows": 64, "kinds": "p", "penalised": True, **_LLAMA}, small=False
        ),
    },
    space={"BLOCK": (64, 256, 512, 1024, 2048, 4096, 8192), "num_warps": (1, 2, 4, 8)},
    keep=keep,
    default=default,
    bucket=lambda logits, ranked=True, sampled=True, penalties=None, **_: (
        f"vocabulary {logits.shape[1]} rows {power_of_2(len(logits))}"
        f"{' ranked' if ranked else ' sampled' if sampled else ' greedy'}"
        f"{'' if penalties is None else ' penalised'}"
    ),
    flops=lambda logits, **_: 8 * logits.numel(),
    num_bytes=lambda logits, penalties=None, **_: (
        logits.numel() * (logits.element_size() + (0 if penalties is None else 4))
    ),
    tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), _CLOSE),
    limits=LIMITS,
    sources=("sample_math.py", "sample_draw.py", "sample_wide.py"),
)
