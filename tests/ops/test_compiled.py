"""Compiling the C kernels: several processes at once, no compiler, a bad one, no place for it."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from paged import dense_attention, make_batch

from workbench.errors import ConfigError
from workbench.ops import NativeBackend, compiled, get_backend

LOAD = "from workbench.ops.compiled import load_library as load; print(load()._name)"


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache folder, on disk and in the process; this process's library is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "load_library", compiled.load_library.__wrapped__)
    monkeypatch.setattr("workbench.ops.calls.load_library", compiled.load_library)


@pytest.mark.usefixtures("_fresh")
def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", LOAD]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    folder = tmp_path / "cache" / "workbench" / "native"
    assert [str(path) for path in folder.iterdir()] == [outputs[0]], "nothing else is left behind"
    stamp = os.stat(outputs[0]).st_mtime_ns
    assert compiled.load_library()._name == outputs[0]
    assert os.stat(outputs[0]).st_mtime_ns == stamp, "what is there is not made again"


def test_the_library_uses_torchs_openmp() -> None:
    """One pool of threads: the process has one OpenMP runtime mapped, the one torch came with."""
    compiled.load_library()
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split()[-1] for line in lines if "libgomp" in line or "libiomp" in line}
    assert len(paths) == 1, paths
    assert paths.pop().startswith(str(Path(torch.__file__).parents[1]))


@pytest.mark.usefixtures("_fresh")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"backend='native': there is no C compiler\. Install"):
        get_backend("native")
    with pytest.warns(UserWarning, match=r"backend=sdpa, auto: .* there is no C compiler"):
        backend = get_backend("auto")
    assert backend.name == "sdpa"
    assert "no C compiler" in backend.chosen_because
    assert backend.chosen_because == backend.describe()["chosen"]


@pytest.mark.usefixtures("_fresh")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'out of ideas' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(ConfigError, match="the compiler failed: out of ideas"):
        get_backend("native")
    assert not list(compiled.cache_folder().iterdir()), "nothing is left behind"


@pytest.mark.usefixtures("_fresh")
def test_a_cache_folder_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"could not be kept: .* Set XDG_CACHE_HOME"):
        get_backend("native")


def test_the_key_changes_with_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler, openmp = compiled.find_compiler(), tmp_path / "libgomp.so.1"
    before = compiled._key(compiler, openmp)
    assert compiled._key(compiler, openmp) == before
    for source in compiled._source_folder().glob("*.[ch]"):
        (tmp_path / source.name).write_text(source.read_text())
    monkeypatch.setattr(compiled, "_source_folder", lambda: tmp_path)
    assert compiled._key(compiler, openmp) == before
    (tmp_path / "vector.h").write_text("/* other */\n")
    assert compiled._key(compiler, openmp) != before


def test_auto_on_a_cpu_is_native() -> None:
    backend = get_backend()
    assert backend.name == "native"
    assert backend.chosen_because == "auto: compiled for this CPU"
    assert isinstance(compiled.load_library(), ctypes.CDLL)


def test_native_is_for_cpus() -> None:
    with pytest.raises(ConfigError, match="runs on a CPU, not on cuda"):
        get_backend("native", "cuda")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors; run it on one")
@pytest.mark.parametrize("march", ["x86-64-v2", "haswell", "skylake-avx512", "cooperlake"])
def test_every_width_of_vector_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, march: str
) -> None:
    """16, 32 and 64 bytes, with and without bfloat16 products, as far as this CPU can run them."""
    needed = {"haswell": "avx2", "skylake-avx512": "avx512_dq", "cooperlake": "avx512_bf16"}
    if march in needed and not torch.cpu.get_capabilities().get(needed[march]):
        pytest.skip(f"this CPU lacks {needed[march]}: run it on one that has it")
    path = tmp_path / "kernels.so"
    compiled.compile_library(compiled.find_compiler(), compiled._loaded_openmp(), path, march)
    monkeypatch.setattr("workbench.ops.calls.load_library", lambda: ctypes.CDLL(str(path)))
    narrow = NativeBackend(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for inputs, outputs in ((1, 1), (31, 7), (64, 12), (200, 70)):
            x = torch.randn(11, inputs, generator=generator).to(dtype)
            weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
            wanted = F.linear(x.double(), weight.double())
            actual = narrow.linear(x, weight).double()
            torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=15 * tolerance)
            norm = narrow.rms_norm(x, weight[0], 1e-5)
            expected = get_backend("reference").rms_norm(x, weight[0], 1e-5)
            torch.testing.assert_close(norm, expected, rtol=tolerance, atol=tolerance)
        for dim in (6, 40, 64):
            rows = [(1, 1), (1, 150), (3, 3), (9, 140), (2, 2100)]
            batch = make_batch(narrow, rows, dim=dim, dtype=dtype)
            actual = narrow.attention(batch.q, batch.k, batch.v, 0, batch.ctx, scale=0.2, window=70)
            expected = dense_attention(batch, 0.2, 70)
            torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
