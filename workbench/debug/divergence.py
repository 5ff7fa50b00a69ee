"""`first_divergence`: the layer and operation at which two models begin to compute other numbers.

Both run on the same tokens and everything they compute is compared, in order. What comes first
beyond the tolerance is the operation to look at, since what it was given was still equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.debug.forward import Outputs, record, token_ids_of
from workbench.debug.peer import record_peer
from workbench.debug.points import HEAD_OPS, Point, in_order
from workbench.describe import Described, facts_table, rows_table
from workbench.errors import ConfigError
from workbench.models import DecoderLM

# Relative errors that rounding alone may come to over a deep model, by the coarser of the two. A
# small fault hides below those of half precision: look for it in float32.
_TOLERANCES = {torch.float32: 3e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_ROWS_SHOWN = 4  # points shown around the first divergence


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Two outputs of one operation.

    max_abs: the largest difference. max_rel: the largest one relative to the reference's value
    there plus the root mean square of its output. position: the first token with one beyond the
    tolerance (None: none). worst: where `max_rel` is, as (position, head or None, channel), and
    there ours and theirs.
    """

    point: Point
    max_abs: float
    max_rel: float
    position: int | None
    worst: tuple[int, int | None, int]
    ours: float
    theirs: float

    @property
    def row(self) -> tuple[Any, ...]:
        """The facts as a line of a table."""
        where = "-" if self.position is None else self.position
        return str(self.point), self.max_abs, self.max_rel, where


@dataclass(frozen=True, slots=True, repr=False)
class Divergence(Described):
    """Where two models begin to differ; false if they do not.

    first: the comparison beyond the tolerance that comes first (None: there is none). comparisons:
    all of them, in order. skipped: operations that only one of the two shows.
    """

    first: OutputComparison | None
    comparisons: tuple[OutputComparison, ...]
    tolerance: float
    skipped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs by more than the tolerance."""
        return self.first is not None

    @property
    def layer(self) -> int | None:
        """The layer; None where nothing differs, or it is the model's embedding, norm or head."""
        return None if self.first is None else self.first.point.layer

    @property
    def op(self) -> str | None:
        """The operation, see `workbench.debug.points`; None where nothing differs."""
        return None if self.first is None else self.first.point.op

    def describe(self) -> dict[str, Any]:
        """Return what differs first, and by how much."""
        count = len(self.comparisons)
        if self.first is None:
            worst = max(comparison.max_rel for comparison in self.comparisons)
            return {"equal": f"{count} outputs within {self.tolerance:g}", "worst": worst}
        first, (position, head, channel) = self.first, self.first.worst
        at = f"token {position}, channel {channel}"
        if head is not None:
            at = f"token {position}, head {head}, channel {channel}"
        before = self.comparisons.index(first)
        return {
            "first divergence": str(first.point),
            "max abs": first.max_abs,
            "max rel": f"{first.max_rel:.3g} (tolerance {self.tolerance:g})",
            "from token": first.position,
            "worst at": f"{at}: {first.ours:.6g}, reference {first.theirs:.6g}",
            "equal before": f"{before} of {count} outputs",
        }

    def _repr_html_(self) -> str:
        if self.first is None:
            return facts_table("No divergence", self.describe())
        place = self.comparisons.index(self.first)
        around = self.comparisons[max(0, place - _ROWS_SHOWN) : place + _ROWS_SHOWN + 1]
        header = ("output", "max abs", "max rel", "from token")
        table = rows_table("outputs around it", header, [comparison.row for comparison in around])
        return facts_table("First divergence", self.describe()) + table


def first_divergence(
    model: DecoderLM,
    reference: nn.Module,
    tokens: str | list[int],
    *,
    backend: str = "reference",
    reference_backend: str = "reference",
    tolerance: float | None = None,
) -> Divergence:
    """Run both on these tokens and return where they first differ.

    reference: a transformers model of the Llama family, or another `DecoderLM`; the same one twice
    compares two backends. tolerance: of `OutputComparison.max_rel` (None: what rounding comes to in
    the coarser of the two dtypes). Raises `RequestError`
    for tokens that the model cannot take, `ConfigError` for models that cannot be compared.
    """
    ids = token_ids_of(model, tokens)
    ours = record(model, ids, backend=backend)
    if isinstance(reference, DecoderLM):
        theirs = record(reference, ids, backend=reference_backend)
    else:
        theirs = record_peer(reference, ids)
    if tolerance is None:
        dtypes = model.dtype, next(reference.parameters()).dtype
        tolerance = max(_TOLERANCES.get(dtype, 3e-4) for dtype in dtypes)
    points = [p for p in in_order(model.config.num_layers) if p in ours and p in theirs]
    compared = tuple(_compare(point, ours, theirs, tolerance) for point in points)
    first = next((c for c in compared if not c.max_rel <= tolerance), None)
    skipped = {str(point) for point in ours.keys() ^ theirs.keys()}
    return Divergence(first, compared, tolerance, tuple(sorted(skipped)))


def _compare(point: Point, ours: Outputs, theirs: Outputs, tolerance: float) -> OutputComparison:
    a, b = ours[point], theirs[point]
    if a.shape != b.shape:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        fix = "Compare models of one shape."
        raise ConfigError("reference", shapes, f"outputs of {point} differ in shape", fix)
    difference = (a - b).abs()
    scale = b.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    relative = difference / (scale + b.abs())
    beyond = (~(relative.flatten(1).amax(1) <= tolerance)).nonzero()  # a NaN is beyond
    worst = _argmax(relative)
    position, *rest = worst
    head = rest[0] if point.op in HEAD_OPS else None
    return OutputComparison(
        point,
        difference.max().item(),
        relative[worst].item(),
        int(beyond[0]) if len(beyond) else None,
        (position, head, rest[-1]),
        a[worst].item(),
        b[worst].item(),
    )


def _argmax(difference: Tensor) -> tuple[int, ...]:
    """Return the index of the largest element; of a NaN, where there is one."""
    flat = torch.nan_to_num(difference, nan=torch.inf, posinf=torch.inf).argmax()
    return tuple(int(i) for i in torch.unravel_index(flat, difference.shape))
