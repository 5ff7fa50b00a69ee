"""FlashInfer's attention behind the door: what is refused, what is left, and its definition.

It runs on a GPU alone: what it computes is tested there, against the same oracle and the same
batches as every other backend, in bfloat16.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from attention_cases import CASES, WINDOWS
from hypothesis import given
from hypothesis import strategies as st
from paged import Batch, dense_attention, make_batch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import ConfigError, KernelFailed
from workbench.ops import TritonWithFlashInfer, get_backend, requirements
from workbench.ops.flashinfer import compiler_line, refuse_model, why_not
from workbench.ops.flashinfer_plans import pages_of
from workbench.ops.triton_rows import Rows

SHAPE = ModelConfig("none", 320, 64, 96, 2, 4, 2, 128, context=64, dtype="bfloat16")


def test_it_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    said = r"backend='triton\+flashinfer': flashinfer is not installed.*install flashinfer-python"
    with pytest.raises(ConfigError, match=said):
        get_backend("triton+flashinfer", "cuda")


def test_it_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="runs on NVIDIA GPUs, not on cpu"):
        get_backend("triton+flashinfer", "cpu")


def test_one_that_cannot_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ConfigError, match=r'cannot be imported: .*flashinfer.*backend="triton"'):
        get_backend("triton+flashinfer", "cuda")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_dim": 80}, r"takes heads of 64, 128, 256, and the model's have 80\. Use backend="),
        ({"dtype": "float32"}, r"takes bfloat16 and float16, and the model is float32"),
    ],
)
def test_a_model_that_it_does_not_take(changes: dict[str, Any], said: str) -> None:
    refuse_model(SHAPE)
    with pytest.raises(ConfigError, match=said):
        refuse_model(dataclasses.replace(SHAPE, **changes))


@pytest.mark.parametrize(
    ("dim", "dtype", "kept", "tree", "reason"),
    [
        (128, torch.bfloat16, torch.bfloat16, False, ""),
        (64, torch.float16, torch.float16, False, ""),
        (128, torch.bfloat16, None, False, "there is no cache"),
        (128, torch.bfloat16, torch.int8, False, "a cache of int8"),
        (128, torch.bfloat16, torch.float8_e4m3fn, False, "a cache of float8_e4m3fn"),
        (128, torch.float32, torch.float32, False, "queries of float32"),
        (80, torch.bfloat16, torch.bfloat16, False, "heads of 80"),
        (128, torch.bfloat16, torch.bfloat16, True, "a tree of drafts"),
    ],
)
def test_what_is_left_to_our_kernels_and_why(
    dim: int, dtype: torch.dtype, kept: torch.dtype | None, tree: bool, reason: str
) -> None:
    q = torch.empty(1, 4, dim, dtype=dtype)
    kv = None if kept is None else torch.empty(2, 1, 16, 2, dim, dtype=kept)
    assert why_not(q, kv, tree=tree) == reason


def test_what_is_told_of_a_failed_build() -> None:
    said = "a.h:52:10: fatal error: curand_kernel.h: No such file or directory"
    whole = f"Ninja build failed. Ninja output:\n[1/2] nvcc a.cu\n  {said}\nninja: build stopped."
    assert compiler_line(RuntimeError(whole)) == said
    assert compiler_line(RuntimeError("Could not find nvcc")) == "Could not find nvcc"


def test_its_failures_name_no_kernel_to_put_back() -> None:
    error = KernelFailed("flashinfer decodes", "q [1]", RuntimeError("bad"), "Do that.")
    assert str(error) == "kernel flashinfer decodes(q [1]): RuntimeError: bad. Do that."
    assert "swap(kernel=" in str(KernelFailed("gemv", "x [1]", RuntimeError("bad")))


@given(
    kv_lens=st.lists(st.integers(1, 70), min_size=1, max_size=9),
    block_size=st.integers(1, 20),
)
def test_pages_are_the_tables_without_their_padding(kv_lens: list[int], block_size: int) -> None:
    counts = [-(-n // block_size) for n in kv_lens]
    tables = torch.full((len(kv_lens), max(counts) + 1), -1, dtype=torch.int32)
    expected = torch.randperm(sum(counts)).int()
    for row, part in enumerate(expected.split(counts)):
        tables[row, : len(part)] = part
    lens, ones = torch.tensor(kv_lens, dtype=torch.int32), [1] * len(kv_lens)
    rows = Rows(None, lens, tables, 0, ones, len(ones), kv_lens)
    starts, indices, last_lens = pages_of(rows, block_size)
    assert torch.equal(indices, expected)
    assert starts.diff().tolist() == counts
    held = (starts.diff() - 1) * block_size + last_lens
    assert held.tolist() == kv_lens
    assert (last_lens.min() >= 1, last_lens.max() <= block_size) == (True, True)
    assert {starts.dtype, indices.dtype, last_lens.dtype} == {torch.int32}


def attend(backend: TritonWithFlashInfer, batch: Batch) -> Tensor:
    return backend.attention(batch.q, batch.k, batch.v, 0, batch.ctx, scale=0.3)


@pytest.fixture
def backend() -> TritonWithFlashInfer:
    """The backend, where it runs."""
    if find_spec("flashinfer") is None:
        pytest.skip("flashinfer is not installed: pip install flashinfer-python")
    backend = get_backend("triton+flashinfer", "cuda")
    assert isinstance(backend, TritonWithFlashInfer)
    return backend


@pytest.mark.gpu
@pytest.mark.timeout(600)  # the first of a window, and the first of none, wait for the compiler
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", [name for name, (_, how) in CASES.items() if "dim" not in how])
def test_attention_is_its_definition(
    backend: TritonWithFlashInfer, case: str, window: int | None
) -> None:
    rows, settings = CASES[case]
    settings = {**settings, "dim": 128, "dtype": torch.bfloat16, "num_layers": 2}
    batch = make_batch(backend, rows, device="cuda", **settings)
    expected = dense_attention(batch, 0.1, window)
    for layer in (0, 1):  # the second finds the plan made
        actual = backend.attention(
            batch.q, batch.k, batch.v, layer, batch.ctx, scale=0.1, window=window
        )
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=2e-2, atol=2e-2)
    decodes, tokens = batch.ctx.num_decodes, len(batch.q)
    assert backend.taken["decodes"] == 2 * (decodes > 0)
    assert backend.taken["chunks"] == 2 * (tokens > decodes)
    assert not backend.left


@pytest.mark.gpu
def test_what_it_does_not_take_our_kernels_do(backend: TritonWithFlashInfer) -> None:
    batch = make_batch(backend, [(1, 5), (3, 30)], device="cuda")
    actual = attend(backend, batch).double().cpu()
    torch.testing.assert_close(actual, dense_attention(batch, 0.3, None), rtol=1e-4, atol=1e-5)
    assert backend.describe()["flashinfer"]["left to our kernels"] == {"queries of float32": 2}


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_steps_in_flight_keep_their_plans(backend: TritonWithFlashInfer) -> None:
    """More batches at once than there are plans, asked in turns: none reads another's lengths."""
    settings: dict[str, Any] = {"dim": 128, "dtype": torch.bfloat16, "device": "cuda"}
    batches = [
        make_batch(backend, [(1, n), (1, 2 * n), (5, 3 * n)], **settings) for n in (3, 60, 400)
    ]
    expected = [dense_attention(batch, 0.3, None) for batch in batches]
    for _ in range(3):
        for batch, wanted in zip(batches, expected, strict=True):
            actual = attend(backend, batch).double().cpu()
            torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_model_is_compiled_for_when_it_is_checked(backend: TritonWithFlashInfer) -> None:
    backend.check_model(SHAPE, 16)
    assert not backend.capturable
    with pytest.raises(ConfigError, match="takes heads of"):
        backend.check_model(dataclasses.replace(SHAPE, head_dim=96), 16)
