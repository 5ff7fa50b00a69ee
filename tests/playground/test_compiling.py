"""Kernels compile for GPUs that are not here; every stage's lines lead back to the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.kernels.silu_mul import silu_mul_kernel as launched
from workbench.playground.client import Worker
from workbench.playground.compiling import CompileFailed, cross_compile, diff
from workbench.playground.listings import source_lines
from workbench.playground.occupancy import occupancy

CUDA = ["ttir", "ttgir", "llir", "ptx", "sass"]
CASE = ("rms_norm", "tinypy decode")


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        ("cuda:80", CUDA),
        ("cuda:90", CUDA),
        ("cuda:100", CUDA),
        ("hip:gfx942", ["ttir", "ttgir", "llir", "amdgcn"]),
    ],
)
def test_every_stage_says_which_line_it_comes_from(
    compiler: Worker, target: str, stages: list[str], repository: Path
) -> None:
    compiled = cross_compile(*CASE, target=target, worker=compiler)
    (launch,) = compiled.launches
    assert list(launch.texts) == stages
    source = launch.source.splitlines()
    (root,) = (n for n, line in enumerate(source, 1) if "tl.rsqrt(" in line)
    for stage in stages:
        lines, text = launch.lines[stage], launch.texts[stage].splitlines()
        assert len(lines) == len(text)
        found = " ".join(line for line, at in zip(text, lines, strict=True) if at == root)
        assert "rsq" in found.lower(), f"{stage}: the reciprocal root is not on its line"
    assert launch.resources["registers"] > 0
    assert 0 < launch.resources["occupancy"]["warps"] <= launch.resources["occupancy"]["of"]
    assert str(repository) not in "".join(launch.texts.values())


def test_what_was_compiled_is_kept_and_two_configurations_differ(compiler: Worker) -> None:
    first = cross_compile(*CASE, worker=compiler)
    assert cross_compile(*CASE, worker=compiler) is first
    second = cross_compile(*CASE, {**first.config, "num_warps": 4}, worker=compiler)
    changed = [line for line in diff(first, second, "ttgir") if line[0] in "+-"]
    assert any('"ttg.num-warps" = 4' in line for line in changed)
    assert diff(first, first, "sass") == []


def test_a_large_case_is_compiled_without_its_memory(compiler: Worker) -> None:
    compiled = cross_compile("rms_norm", "llama-8b prefill 8k", worker=compiler)
    assert compiled.resources[0]["programs"] >= 2048


def test_what_cannot_be_compiled_says_why(compiler: Worker) -> None:
    with pytest.raises(ConfigError, match=r"target='vulkan'.*cuda:90"):
        cross_compile(*CASE, target="vulkan", worker=compiler)
    with pytest.raises(ConfigError, match="no such case"):
        cross_compile("rms_norm", "none", worker=compiler)
    names = ", ".join(launched.arg_names)
    bad = f"@triton.jit\ndef silu_mul_kernel({names}):\n    tl.store(out, undefined)\n"
    with pytest.raises(CompileFailed, match=r"failed|does not compile"):
        cross_compile("silu_mul", "tinypy decode", source=bad, worker=compiler)
    assert cross_compile(*CASE, worker=compiler).launches


def test_inlined_lines_count_as_their_callers() -> None:
    ptx = (
        '\t.file\t1 "/a/kernel.py"\n\t.loc\t1 7 3 // kernel.py:7:3\n\tadd.s32 %r1, %r2, %r3;\n'
        "\t.loc\t2 43 1 // standard.py:43:1 @[ kernel.py:9:2 ]\n\tmul.f32 %f1, %f2, %f3;\n"
        "\t.loc\t2 44 1 // standard.py:44:1\n\tret;\n"
    )
    assert source_lines("ptx", ptx, "/a/kernel.py") == [0, 0, 7, 0, 9, 0, 0]
    mlir = (
        '#loc1 = loc("/a/kernel.py":5:1)\n#loc2 = loc("/b/other.py":8:1)\n'
        '#loc3 = loc(callsite(#loc2 at #loc1))\n#loc4 = loc("name"(#loc3))\n'
        "%0 = arith.addi loc(#loc4)\n%1 = arith.addi loc(#loc2)\n"
    )
    assert source_lines("ttir", mlir, "/a/kernel.py")[-2:] == [5, 0]


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "warps", "limit"),
    [
        (32, 0, 4, 64, "registers"),
        (255, 0, 4, 8, "registers"),
        (40, 100 << 10, 4, 8, "shared memory"),
        (16, 0, 32, 64, "warps"),
        (16, 0, 1, 32, "programs"),
    ],
)
def test_occupancy_on_hopper(
    registers: int, shared: int, num_warps: int, warps: int, limit: str
) -> None:
    found = occupancy("cuda:90", registers, shared, num_warps)
    assert found == {"warps": warps, "of": 64, "limit": limit}
    assert occupancy("cuda:75", registers, shared, num_warps) is None
