"""Kernels that start before their predecessor ends wait for it before they touch what it wrote."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from workbench.kernels import early
from workbench.kernels.launch import Launch
from workbench.kernels.registry import SPECS


def launches() -> dict[str, Launch]:
    """Return every kernel of the registry's small cases, by name."""
    found: dict[str, Launch] = {}
    for spec in SPECS.values():
        for name, case in spec.cases.items():
            if case.small:
                plan = spec.plan(**spec.inputs(name, torch.float16))
                found |= {launch.kernel.__name__: launch for launch in plan.launches}
    return found


def body(launch: Launch) -> str:
    """Return a kernel's code after its docstring."""
    return inspect.getsource(launch.kernel.fn).split('"""', 2)[2]


def test_a_kernel_that_starts_early_waits_before_it_reads_or_writes() -> None:
    checked = 0
    for name, launch in launches().items():
        if "EARLY" not in launch.arguments:
            continue
        before, wait, after = body(launch).partition("await_previous(EARLY)")
        assert wait, f"{name} takes EARLY and never waits"
        assert not re.search(r"tl\.(load|store|atomic)|return", before), f"{name} waits too late"
        assert re.search(r"store|finish\(", after), f"{name} writes before it waits"
        checked += 1
    assert checked >= 7


def test_only_a_kernel_that_waits_is_launched_early() -> None:
    launch = next(x for x in launches().values() if "EARLY" in x.arguments)
    assert "launch_pdl" not in launch.keywords
    changed = Launch(launch.kernel, launch.grid, {**launch.arguments, "EARLY": True}, launch.config)
    assert changed.keywords["launch_pdl"] is True


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), True), ((8, 9), False)])
def test_which_gpus_start_kernels_early(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(early, "INTERPRETED", False)
    assert early.starts_early(torch.device("cuda")) is expected
    assert not early.starts_early(torch.device("cpu"))


@pytest.mark.gpu
def test_a_chain_of_early_kernels_keeps_its_order() -> None:
    """Each reads what the one before wrote, many times in a graph: a race would show."""
    norm = SPECS["rms_norm"]
    start = torch.randn(64, 4096, device="cuda", dtype=torch.float16)
    weight = torch.rand(4096, device="cuda", dtype=torch.float16) + 0.5

    def chain() -> torch.Tensor:
        x, total = start, start
        for _ in range(40):
            x, total = norm(x=x, weight=weight, eps=1e-5, residual=total)
        return total

    x, total = start, start
    for _ in range(40):
        x, total = norm(x=x, weight=weight, eps=1e-5, residual=total)
        torch.cuda.synchronize()  # no two at a time
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = chain()
    for _ in range(50):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result, total)
