"""Holding a kernel to its reference so that it cannot cheat, and saying where it goes wrong.

Outputs are poisoned before a run, so a kernel that writes nothing is wrong; then the same plan is
run on other values in the same memory, so one that returns what it remembers is wrong too. Used by
trials, by the panel and by the `%%kernel` magic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from workbench.kernels.accuracy import Accuracy, accuracy, tensors, tolerance
from workbench.kernels.launch import Plan
from workbench.kernels.quantised_kv import FP8
from workbench.kernels.spec import Inputs, KernelSpec

UNSEEN = 7919  # added to the seed: values that a kernel meets only at the second look
OK = "ok"


@dataclass(frozen=True, slots=True)
class Checked:
    """One case of a kernel: "ok", "wrong" or "skipped", and what is wrong or why."""

    case: str
    status: str
    reason: str = ""
    max_err: float = 0.0
    share: float = 0.0


class Oracle:
    """A case's inputs, twice over, and what the reference makes of them.

    `inputs` is the memory that plans are made for; its values are those of `seed` for `check`, and
    others for `recheck`.
    """

    def __init__(
        self, spec: KernelSpec, case: str, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self.inputs = spec.inputs(case, dtype, device, seed)
        # As a tree: an input may be a tuple of tensors.
        self._seen = tree_map_only(torch.Tensor, torch.Tensor.clone, self.inputs)
        self._unseen = spec.inputs(case, dtype, device, seed + UNSEEN)
        self._expected = spec.reference(**self._seen)
        self._expected_unseen = spec.reference(**self._unseen)

    def check(self, plan: Plan) -> tuple[Accuracy, str]:
        """Run a plan made for `inputs`; return how near it came, and the first wrong element."""
        return self._look(plan, plan.run, self._seen, self._expected)

    def recheck(self, plan: Plan, replay: Callable[[], object]) -> tuple[Accuracy, str]:
        """Replay it (a graph of it, say) on values that it has not seen; return as `check`."""
        return self._look(plan, replay, self._unseen, self._expected_unseen)

    def accumulates(self, plan: Plan) -> bool:
        """Whether outputs are inputs too, so that a second run need not give the same."""
        own = {_storage(leaf) for leaf in _leaves(self.inputs)}
        return any(_storage(output) in own for output in tensors(plan.outputs))

    def _look(
        self, plan: Plan, run: Callable[[], object], values: Inputs, expected: Any
    ) -> tuple[Accuracy, str]:
        for target, value in zip(_leaves(self.inputs), _leaves(values), strict=True):
            target.copy_(value)
        poison(plan, self.inputs)
        run()
        if self.device.type == "cuda":
            # This stream alone: work that was put on another one is not waited for.
            torch.cuda.current_stream().synchronize()
        outputs, wanted = _comparable(plan.outputs, expected)
        for got, theirs in zip(outputs, wanted, strict=True):
            if got.shape != theirs.shape or got.dtype != theirs.dtype:
                return Accuracy(torch.inf, torch.inf), _shapes(got, theirs)
        found = accuracy(self.spec, self.dtype, outputs, wanted)
        return found, "" if found.ok else first_wrong(self.spec, self.dtype, outputs, wanted)


def check_case(
    spec: KernelSpec, case: str, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Checked:
    """Hold one case to the reference, on two draws of values; raises what the kernel raises."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if spec.cases[case].min_capability > 10 * major + minor:
            return Checked(case, "skipped", "this GPU lacks the dtype")
    oracle = Oracle(spec, case, dtype, device, seed)
    plan = spec.plan(**oracle.inputs)
    for look in (oracle.check(plan), oracle.recheck(plan, plan.run)):
        found, reason = look
        if not found.ok:
            return Checked(case, "wrong", reason, found.max_err, found.share)
    return Checked(case, OK, "", found.max_err, found.share)


def first_wrong(spec: KernelSpec, dtype: torch.dtype, outputs: Any, expected: Any) -> str:
    """Return the first element outside its tolerance in words; empty where there is none."""
    pairs = list(zip(tensors(outputs), tensors(expected), strict=True))
    for place, (got, wanted) in enumerate(pairs):
        rtol, atol = tolerance(spec, dtype, got)
        near = torch.isclose(got.float(), wanted.float(), rtol=rtol, atol=atol, equal_nan=True)
        if near.all():
            continue
        index = tuple(int(i) for i in (~near).nonzero()[0])
        name = f"output {place}" if len(pairs) > 1 else "the output"
        return (
            f"{name} at {list(index)} is {float(got[index]):.6g}, the reference has "
            f"{float(wanted[index]):.6g}; {int((~near).sum())} of {near.numel()} elements are out"
        )
    return ""


def poison(plan: Plan, inputs: Inputs) -> None:
    """Fill a plan's outputs, those aside that are inputs too, with what no kernel returns."""
    own = {_storage(value) for value in _leaves(inputs)}
    for output in tensors(plan.outputs):
        if _storage(output) in own:
            continue
        if output.dtype.is_floating_point and output.element_size() > 1:
            output.fill_(torch.nan)
        elif output.dtype.is_floating_point:
            output.view(torch.uint8).fill_(0x7F)  # NaN as fp8
        else:
            output.fill_(True if output.dtype == torch.bool else torch.iinfo(output.dtype).max)


def _shapes(got: torch.Tensor, wanted: torch.Tensor) -> str:
    ours, theirs = (f"{x.dtype} {list(x.shape)}" for x in (got, wanted))
    return f"an output is {ours}, the reference's {theirs}"


def _comparable(outputs: Any, expected: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Drop fp8 outputs where there is no GPU: the interpreter rounds them wrongly."""
    pairs = [
        (got, wanted)
        for got, wanted in zip(tensors(outputs), tensors(expected), strict=True)
        if got.dtype != FP8 or got.device.type == "cuda"
    ]
    return tuple(got for got, _ in pairs), tuple(wanted for _, wanted in pairs)


def _leaves(inputs: Inputs) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
