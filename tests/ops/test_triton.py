"""What is particular to the Triton backend: where it is refused, and that its kernels are parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import kernel_device
from paged import dense_attention, make_batch
from triton import knobs

from workbench.build import check
from workbench.config import EngineConfig, ModelConfig
from workbench.errors import ConfigError
from workbench.kernels import launch
from workbench.kernels.registry import SPECS
from workbench.kernels.tuning import TunedRow, TunedTable
from workbench.ops import TritonBackend, get_backend, triton
from workbench.ops import requirements as module
from workbench.ops.library_prefill import attend_whole_prompts
from workbench.ops.limits import check_model


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


def test_a_missing_assembler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    module.require_triton(torch.device("cuda"))  # the wheel brings its own
    monkeypatch.setattr(module, "has_ptxas", lambda: False)
    with pytest.raises(ConfigError, match=r"finds no ptxas.*`sdpa` backend.*TRITON_PTXAS_PATH"):
        module.require_triton(torch.device("cuda"))


class NoTools:
    """What Triton's settings are where it lacks its tools."""

    @property
    def ptxas(self) -> None:
        raise RuntimeError("Cannot find ptxas")


def test_the_assembler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.has_ptxas()
    monkeypatch.setattr(knobs, "nvidia", NoTools())
    assert not module.has_ptxas()


@pytest.mark.parametrize(
    ("changes", "block_size", "said"),
    [
        (
            {"head_dim": 320},
            16,
            r"paged_decode\.head_dim=320: the kernel takes 1 to 256\. Use b",
        ),
        ({"num_heads": 128, "num_kv_heads": 1}, 16, r"paged_decode\.group=128: the kernel takes 1"),
        (
            {},
            2048,
            r"paged_decode\.block_size=2048.*Use a block_size of 1 to 1024, or backend=",
        ),
        ({"hidden_size": 65536}, 16, r"rms_norm\.width=65536: the kernel takes 1 to 32768"),
    ],
)
def test_a_shape_that_a_kernel_does_not_take(
    changes: dict[str, Any], block_size: int, said: str
) -> None:
    shape = ModelConfig("none", 320, 64, 96, 2, 4, 2, 16, context=64)
    check_model(SPECS, shape, 16)
    with pytest.raises(ConfigError, match=said):
        check_model(SPECS, dataclasses.replace(shape, **changes), block_size)


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

    backend.kernels.replace(dataclasses.replace(original, plan=plan))
    x = torch.randn(2, 8, device=device)
    torch.testing.assert_close(
        backend.silu_mul(x), get_backend("reference", device).silu_mul(x), rtol=1e-5, atol=1e-6
    )
    assert called == [(2, 8)]
    assert get_backend("triton", device).kernels["silu_mul"] is original


@pytest.mark.parametrize("device", [kernel_device()])
def test_a_gemv_of_one_s_own_runs_though_nobody_measured_it(device: str) -> None:
    """The shipped one has to be in the table, faster than the library."""
    backend = get_backend("triton", device)
    assert isinstance(backend, TritonBackend)
    backend.tuned = TunedTable("nothing")
    original, called = backend.kernels["gemv"], []

    def plan(**inputs: Any) -> Any:
        called.append(inputs["x"].shape)
        return original.plan(**inputs)

    x, weight = (torch.randn(n, 32, device=device) for n in (2, 8))
    expected = backend.linear(x, weight)
    assert called == []
    backend.kernels.replace(dataclasses.replace(original, plan=plan))
    torch.testing.assert_close(backend.linear(x, weight), expected, rtol=1e-4, atol=1e-5)
    assert called == [(2, 32)]
    backend.linear(x.repeat(20, 1), weight)  # too many rows for it
    assert called == [(2, 32)]


def measured_row(spec: Any, inputs: dict[str, Any], **changes: Any) -> TunedRow:
    """Return a row for these inputs, of a device called "here"."""
    fields: dict[str, Any] = dict.fromkeys(("driver", "triton", "torch"), "")
    key = {"kernel": spec.name, "dtype": "float32", "bucket": spec.bucket(**inputs)}
    found = {"source_hash": spec.source_hash, "config": spec.default(**inputs), "device": "here"}
    costs = {"latency_us": {"p50": 10.0}, "default_us": 10.0, "library_us": None}
    rest = {"seed": 0, "bound": 1.0, "max_err": 0.0}
    return TunedRow(**{**fields, **key, **found, **costs, **rest, **changes})


@pytest.mark.parametrize("device", [kernel_device()])
@pytest.mark.parametrize(
    ("changes", "library"),
    [
        ({"library_us": 5.0}, True),
        ({"library_us": 20.0}, False),
        ({"library_us": None}, False),
        ({"library_us": 5.0, "source_hash": "0" * 16}, False),
        ({"library_us": 5.0, "bucket": "another"}, False),
    ],
)
def test_whole_prompts_go_where_the_table_has_them_faster(
    device: str, changes: dict[str, Any], library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get_backend("triton", device)
    assert isinstance(backend, TritonBackend)
    backend.prefill = "measured"
    batch = make_batch(backend, [(5, 5), (5, 5), (3, 3)], device=device)
    calls: list[list[int]] = []

    def note(*arguments: Any) -> None:
        calls.append(arguments[3])
        attend_whole_prompts(*arguments)

    monkeypatch.setattr(triton, "attend_whole_prompts", note)
    spec, inputs = backend.kernels["prefill_attention"], {"num_tokens": 13}
    inputs |= {"q": batch.q, "k": batch.k, "context_lens": batch.ctx.context_lens}
    row = measured_row(spec, {**inputs, "block_tables": None}, **changes)
    backend.tuned = TunedTable("here", [row])
    settings: dict[str, Any] = {"scale": 0.3}
    actual = backend.attention(batch.q, batch.k, batch.v, 0, batch.ctx, **settings)
    expected = dense_attention(batch, 0.3, None)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-4, atol=1e-5)
    on_cpu = device == "cpu"  # on a GPU, the library takes no float32
    assert calls == ([[5, 5, 3]] if library and on_cpu else [])
    said = [text for key, text in backend.tuned.used.items() if key[0] == "prefill_attention"]
    assert not on_cpu or said[0].startswith("library") == library


def test_what_auto_says_of_its_table() -> None:
    spec = SPECS["silu_mul"]
    inputs = spec.inputs("tinypy decode", torch.float32)
    row = measured_row(spec, inputs)
    assert "no tuned table for here" in TunedTable("here").summary(SPECS)
    assert TunedTable("here", [row]).summary(SPECS) == "1 of 1 rows tuned on here hold"
    stale = measured_row(spec, inputs, source_hash="0" * 16)
    said = TunedTable("here", [stale]).summary(SPECS)
    assert said.startswith("0 of 1 rows tuned on here hold; silu_mul changed since")


def test_a_table_that_is_wrong_is_not_worked_around(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.json").write_text("{}")
    load = TunedTable.load
    monkeypatch.setattr(TunedTable, "load", lambda device: load("cpu", tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "here")
    with pytest.raises(ConfigError, match="not a tuned table"):
        get_backend("auto", "cuda")


@pytest.mark.parametrize("device", [kernel_device()])
@pytest.mark.parametrize("library_us", [5.0, 20.0])
def test_linear_is_gemv_only_where_that_was_measured_faster(device: str, library_us: float) -> None:
    backend = get_backend("triton", device)
    assert isinstance(backend, TritonBackend)
    spec = backend.kernels["gemv"]
    inputs = spec.inputs("one row, bias, residual", torch.float32, device)
    del inputs["residual"]
    row = measured_row(spec, inputs, library_us=library_us)
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


@pytest.mark.parametrize("device", [kernel_device()])
def test_fp8_on_a_gpu_without_it_is_refused(device: str) -> None:
    backend = get_backend("triton", device)
    backend._lacks_fp8 = True
    batch = make_batch(backend, [(1, 5)], device=device)
    batch.ctx.kv = [batch.ctx.kv[0].to(torch.float8_e4m3fn)]
    batch.ctx.kv_scales = [torch.ones(2, batch.ctx.kv[0].shape[1], 2, 16, device=device)]
    with pytest.raises(ConfigError, match=r"cache_dtype='fp8': .* fp8 from capability 8\.9 on"):
        backend.prepare(batch.ctx)
