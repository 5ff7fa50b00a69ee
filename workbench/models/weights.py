"""The weight-name map: which checkpoint tensor fills which rows of which parameter.

A family states it as data, a tuple of `WeightRule`. `match` holds it against the tensors that a
checkpoint really has and finds every fault; `fill` then makes the parameters. Called by the loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class WeightRule(NamedTuple):
    """`source`: a checkpoint's tensor name; `target`: ours; `{layer}` in both runs over the layers.

    `part` names the rows of a fused target (a key of `DecoderLM.weight_parts`); None: all of it.
    """

    source: str
    target: str
    part: str | None = None


class TensorInfo(NamedTuple):
    """What a safetensors header says of a tensor: its dtype's code there, shape, and file."""

    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor to read: it fills `rows` of parameter `target`; `shape` is what it must have."""

    source: str
    target: str
    rows: slice
    shape: tuple[int, ...]


def expand(
    rules: Iterable[WeightRule],
    parts: Mapping[str, slice],
    shapes: Mapping[str, tuple[int, ...]],
    num_layers: int,
) -> list[Piece]:
    """Return every tensor to read for parameters of these shapes.

    Rules whose target is no parameter (a bias that this model lacks, a tied head) do not apply.
    """
    pieces = []
    for rule in rules:
        for layer in range(num_layers) if "{layer}" in rule.target else (0,):
            target = rule.target.format(layer=layer)
            if target not in shapes:
                continue
            rows = parts[rule.part] if rule.part else slice(0, shapes[target][0])
            shape = (rows.stop - rows.start, *shapes[target][1:])
            pieces.append(Piece(rule.source.format(layer=layer), target, rows, shape))
    uncovered = shapes.keys() - {piece.target for piece in pieces}
    assert not uncovered, f"no weight rule fills {sorted(uncovered)}"
    return pieces


def match(
    pieces: list[Piece], tensors: Mapping[str, TensorInfo], ignored: tuple[str, ...]
) -> list[str]:
    """Return one line per missing, unexpected, misshapen or non-float tensor; empty if all fit."""
    problems = []
    expected = {piece.source for piece in pieces}
    for piece in pieces:
        info = tensors.get(piece.source)
        if info is None:
            shape = list(piece.shape)
            problems.append(f"missing tensor {piece.source} {shape} (for {piece.target})")
        elif info.shape != piece.shape:
            problems.append(
                f"tensor {piece.source} in {info.file} has shape {list(info.shape)}, "
                f"config.json makes it {list(piece.shape)}"
            )
        elif info.dtype not in _FLOATS:
            problems.append(f"tensor {piece.source} in {info.file} is {info.dtype}, not a float")
    for name in sorted(tensors.keys() - expected):
        if not name.endswith(ignored):
            info = tensors[name]
            problems.append(f"unexpected tensor {name} {list(info.shape)} in {info.file}")
    return problems


@torch.no_grad()
def fill(
    model: nn.Module,
    pieces: Iterable[Piece],
    read: Callable[[str], Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Replace the model's (meta) parameters by filled ones on `device`, one after the other.

    `read` returns a tensor by its name in the checkpoint. Beside the model itself, one such tensor
    at a time is in memory. The new parameters ask for no gradient.
    """
    by_target: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_target.setdefault(piece.target, []).append(piece)
    for target, group in by_target.items():
        owner_name, _, leaf = target.rpartition(".")
        owner = model.get_submodule(owner_name)
        weight = torch.empty(getattr(owner, leaf).shape, dtype=dtype, device=device)
        for piece in group:
            weight[piece.rows].copy_(read(piece.source))
        setattr(owner, leaf, nn.Parameter(weight, requires_grad=False))
