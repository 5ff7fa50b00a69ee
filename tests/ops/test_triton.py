"""What is particular to the Triton backend: where it is refused, and that its kernels are parts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from interpreter import kernel_device
from paged import make_batch

from workbench.build import check
from workbench.config import EngineConfig
from workbench.errors import ConfigError
from workbench.kernels import launch
from workbench.kernels.tuning import TunedRow, TunedTable
from workbench.ops import TritonBackend, get_backend
from workbench.ops import triton as module


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(
        ConfigError,
        match=r"backend='triton': Triton has no compiler for device 'cpu'\. Use the `sdpa` backend"
        r".*TRITON_INTERPRET=1",
    ):
        get_backend("triton", "cpu")


def test_building_refuses_it_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ConfigError, match="backend='triton'"):
        check(EngineConfig(device="cpu", backend="triton"))


def test_a_missing_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="triton is not installed"):
        get_backend("triton", "cpu")


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ConfigError, match=r"the GPU is of capability 7\.5, below 8\.0"):
        module.require_triton(torch.device("cuda"))


def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels where they run; else torch's attention, with the reason."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.warns(UserWarning, match=r"backend=sdpa, auto: triton .* capability 7\.5"):
        backend = get_backend("auto", "cuda")
    assert backend.name == "sdpa"
    assert "below 8.0" in backend.chosen_because
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert get_backend("auto", "cuda").name == "sdpa"


@pytest.mark.gpu
def test_auto_is_triton_on_a_gpu() -> None:
    backend = get_backend("auto", "cuda")
    assert backend.name == "triton"
    assert backend.chosen_because.startswith("auto: kernels for this GPU; ")


@pytest.mark.parametrize("device", [kernel_device()])
def test_a_kernel_may_be_replaced(device: str) -> None:
    backend = get_backend("triton", device)
    assert isinstance(backend, TritonBackend)
    original = backend.kernels["silu_mul"]
    called = []

    def plan(**inputs: Any) -> Any:
        called.append(inputs["gate_up"].shape)
        return original.plan(**inputs)

    backend.kernels["silu_mul"] = dataclasses.replace(original, plan=plan)
    x = torch.randn(2, 8, device=device)
    torch.testing.assert_close(
        backend.silu_mul(x), get_backend("reference", device).silu_mul(x), rtol=1e-5, atol=1e-6
    )
    assert called == [(2, 8)]
    assert get_backend("triton", device).kernels["silu_mul"] is original


@pytest.mark.parametrize("device", [kernel_device()])
@pytest.mark.parametrize("library_us", [5.0, 20.0])
def test_linear_is_gemv_only_where_that_was_measured_faster(device: str, library_us: float) -> None:
    backend = get_backend("triton", device)
    assert isinstance(backend, TritonBackend)
    spec = backend.kernels["gemv"]
    inputs = spec.inputs("one row, bias, residual", torch.float32, device)
    del inputs["residual"]
    fields: dict[str, Any] = dict.fromkeys(("driver", "triton", "torch"), "")
    key = {"kernel": "gemv", "dtype": "float32", "bucket": spec.bucket(**inputs)}
    found = {"source_hash": spec.source_hash, "config": spec.default(**inputs), "device": "here"}
    costs = {"latency_us": {"p50": 10.0}, "default_us": 10.0, "library_us": library_us}
    row = TunedRow(**fields, **key, **found, **costs, seed=0, bound=1.0, max_err=0.0)
    backend.tuned = TunedTable("here", [row])
    actual = backend.linear(inputs["x"], inputs["weight"], inputs["bias"])
    expected = torch.nn.functional.linear(inputs["x"], inputs["weight"], inputs["bias"])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    used = backend.tuned.used["gemv", "float32", spec.bucket(**inputs)]
    assert used.startswith("tuned" if library_us > 10 else "library")


@pytest.mark.parametrize("device", [kernel_device()])
def test_a_steps_rows_are_split_once(device: str) -> None:
    backend = get_backend("triton", device)
    batch = make_batch(backend, [(1, 5), (1, 700), (3, 3), (9, 9)], device=device)
    prepared = batch.ctx.prepared
    assert prepared.num_decodes == 2
    assert prepared.num_splits > 1
    assert prepared.fresh
    assert prepared.chunks.num_tokens == 12
    older = make_batch(backend, [(1, 5), (3, 4)], device=device)
    assert not older.ctx.prepared.fresh
