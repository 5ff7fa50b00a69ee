"""Each benchmark program runs, briefly: one that nobody runs is soon broken unnoticed."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_checkpoint

from workbench.bench import (
    cpu,
    gpu_workloads,
    lora,
    scheduler,
    speculation,
    speculation_gpu,
    tuning,
    views,
)
from workbench.bench.cpu import peer_dtypes
from workbench.bench.gpu_engine import random_model
from workbench.bench.gpu_workloads import WORKLOADS, Work, make_jobs
from workbench.bench.lora_adapters import zipf
from workbench.bench.lora_schedule import simulate
from workbench.bench.lora_traffic import Traffic
from workbench.bench.shapes import SHAPES, write_random_checkpoint
from workbench.bench.workloads import DESCRIPTIONS, Job
from workbench.build import build
from workbench.cli.bench import add_parser
from workbench.cli.machine.browser import HOW_TO_GET_ONE, find_browser
from workbench.cli.main import main
from workbench.config import EngineConfig, ModelConfig
from workbench.errors import ConfigError, InvalidValue
from workbench.models import LlamaForCausalLM, load_model
from workbench.speculation.named import PLAIN


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every workload one of two small requests that a tiny model's vocabulary has."""

    def jobs(name: str, repeat: int = 0) -> list[Job]:
        return [Job([1 + len(name), 2 + repeat % 7, 3], 3), Job([4, 5], 2)]

    monkeypatch.setattr(cpu, "make_workload", jobs)
    monkeypatch.setattr(cpu, "read_bandwidth", lambda: 1e10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str) -> None:
    folder, rows = write_checkpoint(tmp_path / "tiny", "llama"), tmp_path / "rows.jsonl"
    settings = ["--workloads", "W1,W2", "--repeats", "2", "--peer-dtypes", "W1=float32"]
    settings += ["--dtype", "float32", "--backend", backend, "--rows", str(rows)]
    assert main(["bench", "cpu", "--model", str(folder), *settings]) == 0
    shown = capsys.readouterr().out
    assert "W1 warm-up: workbench" in shown
    assert "W2 repeat 2 of 2: workbench" in shown
    assert "same tokens 100.0%" in shown
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    named = [(row["case"], row["engine"]) for row in written]
    assert named == [("W1", "workbench"), ("W1", "transformers float32"), ("W2", "workbench")]
    assert written[0]["output_hash"] == written[1]["output_hash"]
    assert written[0]["where"]["backend"] == ("native" if backend == "auto" else backend)


def test_lora(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU; PEFT's mixed batch over the same adapters has the same tokens."""
    jobs = [Job([1 + i, 2, 3 + i], 4) for i in range(16)]
    monkeypatch.setattr(lora, "make_workload", lambda name, repeat=0: jobs)
    folder, rows = write_checkpoint(tmp_path / "tiny", "llama"), tmp_path / "rows.jsonl"
    settings = ["--device", "cpu", "--dtype", "float32", "--peer-dtype", "float32", "--rank", "2"]
    settings += ["--model", str(folder), "--repeats", "1", "--rows", str(rows)]
    assert main(["bench", "lora", *settings]) == 0
    shown = capsys.readouterr().out
    assert "PEFT's, same tokens 100.0%" in shown
    cases = ["base", "four adapters", "two adapters and the base", "PEFT, four adapters"]
    assert [json.loads(line)["case"] for line in rows.read_text().splitlines()] == cases


def test_speculation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = write_checkpoint(tmp_path / "tiny", "llama"), tmp_path / "rows.jsonl"
    settings = ["--sizes", "1,3", "--batches", "2", "--tokens", "12", "--repeats", "1"]
    settings += ["--device", "cpu", "--dtype", "float32", "--rows", str(rows)]
    assert main(["bench", "speculation", "--model", str(folder), *settings]) == 0
    shown = capsys.readouterr().out
    assert "OTHER TOKENS" not in shown
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    engines = [row["engine"] for row in written if row["case"] == "3 at once"]
    assert engines == ["plain", *PLAIN, "ngram, adaptive", "ngram, off"]
    with pytest.raises(ConfigError, match="--proposers"):
        speculation.main(["--model", str(folder), "--device", "cpu", "--proposers", "oracle"])


def test_speculation_on_a_gpu_as_far_as_a_cpu_goes(capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig("LlamaForCausalLM", 300, 32, 24, 6, 2, 1, 16, context=100_000)
    model = LlamaForCausalLM(config)
    model.init_weights(std=0.3)
    head = speculation_gpu.random_head(model.requires_grad_(False))
    settings = EngineConfig(device="cpu", num_blocks=200, prefix_reuse=False, seed=0)
    with build(settings, model=model) as engine:
        draft = random_model(speculation_gpu.draft_shape(config), torch.device("cpu")).float()
        assert sum(p.numel() for p in draft.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
        variants = speculation_gpu.variants_of(head, draft, 3, 2.5, alone=True)
        measured = speculation_gpu.race(engine, variants, 2, 8, 1)
    rows = {row.engine: row for row in speculation_gpu.report(measured, 2, 2.5, {})}
    assert rows["plain"].median == 1.0
    assert rows["plain"].where["tokens"] == rows["tree of 60 nodes"].where["tokens"] == 1.0
    assert rows["eagle3, off"].where["tokens"] == 1.0
    assert 1.3 < rows["eagle3"].where["tokens"] < 3.7
    assert 1.3 < rows["draft model"].where["tokens"] < 3.7
    assert "2.50x" in capsys.readouterr().out


@pytest.mark.parametrize(("length", "depth"), [(3.5, 5), (1.0, 3), (2.9, 2)])
def test_the_rate_of_an_acceptance_length(length: float, depth: int) -> None:
    rate = speculation_gpu.rate_of(length, depth)
    assert sum(rate**i for i in range(depth + 1)) == pytest.approx(length)
    with pytest.raises(ConfigError, match="--length"):
        speculation_gpu.rate_of(depth + 1, depth)


def test_scheduler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scheduler, "SIZES", (1, 3))
    assert main(["bench", "scheduler", "--steps", "5"]) in (0, 1)  # 1: slower than the bound
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "3"]


def test_recording(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--sequences", "2", "--output", "4", "--rounds", "1"]
    assert main(["bench", "recording", *small]) in (0, 1)  # 1: over the bound
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["tinypy", "no"]
    assert all(float(line.split()[-1]) > 2 for line in lines[2:4]), "events of a step"


def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    """On a GPU one kernel; without one it says so before anything else."""
    status = main(["bench", "kernels", "--kernel", "rms_norm"])
    shown = capsys.readouterr()
    if torch.cuda.is_available():
        assert status == 0
        assert "rms_norm" in shown.out
    else:
        assert status == 2
        assert "measured on a CUDA GPU" in shown.err


def test_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU a small shape; without one it says so before anything else."""
    config = ModelConfig("LlamaForCausalLM", 100_000, 64, 96, 2, 4, 2, 16, context=1024)
    monkeypatch.setattr(gpu_workloads, "SHAPES", {"tiny": config})
    rows = tmp_path / "rows.jsonl"
    settings = ["--shape", "tiny", "--workload", "decode_b1,decode_b32", "--repeats", "1"]
    settings += ["--num-blocks", "8192", "--rows", str(rows)]
    status = main(["bench", "gpu", *settings])
    shown = capsys.readouterr()
    if not torch.cuda.is_available():
        assert status == 2
        assert "measured on a CUDA GPU" in shown.err
        return
    assert status == 0
    assert "decode_b32" in shown.out
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    cases = ["decode_b1", "decode_b32", "outside_b1", "outside_b32", "outside_b256"]
    assert [row["case"] for row in written] == cases


@pytest.mark.parametrize("settings", [["--shape", "llama-9b"], ["--workload", "decode_b2"]])
def test_gpu_bad_input(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", *settings]) == 2
    assert "no such" in capsys.readouterr().err


def test_gpu_workloads_are_the_same_always() -> None:
    """Asked for alone or with others: one generator draws all, in one order."""
    together = make_jobs(list(WORKLOADS))
    assert make_jobs(["mixed_512"])["mixed_512"] == together["mixed_512"]
    digest = hashlib.sha256(
        json.dumps([[j.prompt, j.num_output] for jobs in together.values() for j in jobs]).encode()
    ).hexdigest()
    assert digest.startswith("21c0b56f3c2bd588")


def test_the_least_work_of_a_job() -> None:
    """A token a step over a prompt of two, by hand."""
    config = ModelConfig("LlamaForCausalLM", 10, 4, 6, 1, 2, 1, 2, context=64)
    layer = 4 * 4 * 2 + 4 * 2 * 2 + 3 * 4 * 6  # q and o, k and v, the three of the MLP
    work = Work.of([Job([1, 2], 3)], config, max_sequences=8)
    assert work.decode_bytes == 2 * 2 * (layer + 40) + (3 + 4) * (2 * 2 * 2)
    assert work.decode_flops == 2 * 2 * (layer + 40) + 4 * (3 + 4) * 4
    assert work.prefill_flops == 2 * 2 * layer + 2 * 40 + 2 * 4 * 4


def test_lora_traffic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More adapters than fit, and one that is loaded while others run."""
    little = Traffic(6, 2, requests=9, at_once=4, prompt=3, output=2, running=2)
    monkeypatch.setattr(lora, "ON_CPU", little)
    folder, rows = write_checkpoint(tmp_path / "tiny", "llama"), tmp_path / "rows.jsonl"
    settings = ["--device", "cpu", "--dtype", "float32", "--rank", "2", "--cases", "zipf,load"]
    settings += ["--model", str(folder), "--repeats", "1", "--rows", str(rows)]
    assert main(["bench", "lora", *settings]) == 0
    shown = capsys.readouterr().out
    assert "6 adapters, 2 fit; hits" in shown
    [asked] = re.findall(r"hits \d+% of (\d+); \d+ loads", shown)
    assert int(asked) == 9
    cases = [json.loads(line)["case"] for line in rows.read_text().splitlines()]
    assert cases[:2] == ["zipf: base", "zipf: zipf"]
    assert {case.partition(":")[0] for case in cases[2:]} == {"load"}
    assert main(["bench", "lora", "--device", "cpu", "--cases", "b1 one"]) != 0
    assert "cases='b1 one': not on a CPU" in capsys.readouterr().err


def test_what_a_scheduler_makes_of_zipf_traffic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of a run that depends on no clock but its own: the same twice, and within bounds."""
    traffic = Traffic(40, 10, requests=120, at_once=40, prompt=16, output=8, running=0)
    traffic = replace(traffic, max_sequences=40)
    deep = replace(traffic, at_once=80)
    monkeypatch.setattr(lora, "ZIPF_ON_GPU", {"zipf": traffic, "zipf queue": deep})
    rows = tmp_path / "rows.jsonl"
    settings = ["--device", "cpu", "--cases", "schedule", "--repeats", "1", "--rows", str(rows)]
    assert main(["bench", "lora", *settings]) == 0
    steps = [json.loads(line)["median"] for line in rows.read_text().splitlines()]
    base, mixed, base_deep, mixed_deep = steps
    assert base == base_deep < mixed_deep < mixed
    drawn = [f"z{i}" for i in zipf(120, 40)]
    counts = simulate(traffic, drawn)
    assert f"  zipf  {counts}" in capsys.readouterr().out
    assert counts.steps == mixed
    assert counts.hits + counts.misses == len(counts.waits) == 120
    assert counts.loads - counts.evicted <= 10
    assert counts.rows == 120 * 8
    assert counts.in_vain == 0
    assert max(counts.waits) < counts.steps


def test_every_program_is_run_here(request: pytest.FixtureRequest) -> None:
    """A new program must get its test: named `test_<program>` in this file."""
    commands = argparse.ArgumentParser().add_subparsers()
    add_parser(commands)
    bench = commands.choices["bench"]
    programs = {name for action in bench._actions for name in action.choices or ()}
    assert programs, "the programs were not found"
    assert {name for name in programs if not hasattr(request.module, f"test_{name}")} == set()


def test_playground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One kernel, chosen and compiled: what a machine without a GPU can do, too."""
    rows = tmp_path / "rows.jsonl"
    settings = ["--kernel", "silu_mul", "--parts", "select,compile", "--rows", str(rows)]
    assert main(["bench", "playground", *settings]) == 0
    assert "silu_mul for cuda:90" in capsys.readouterr().out
    assert [json.loads(line)["case"] for line in rows.read_text().splitlines()] == [
        "new", "known", "compile"
    ]  # fmt: skip


def test_tuning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a small shape; without one it says so before anything else."""
    config = ModelConfig("LlamaForCausalLM", 100_000, 64, 96, 2, 4, 2, 16, context=1024)
    monkeypatch.setattr(gpu_workloads, "SHAPES", {"tiny": config})
    settings = ["--shape", "tiny", "--batches", "1", "--rounds", "1", "--steps", "2"]
    status = main(["bench", "tuning", *settings])
    shown = capsys.readouterr()
    if torch.cuda.is_available():
        assert status == 0
        assert tuning.AGAIN in shown.out
    else:
        assert status == 2
        assert "measured on a CUDA GPU" in shown.err


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
def test_views(capsys: pytest.CaptureFixture[str]) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip(f"no Chromium on this machine: {HOW_TO_GET_ONE}")
    sizes = ["--blocks", "300", "--steps", "30", "--sequences", "4", "--keys", "3"]
    assert views.main(sizes, browser=browser) in (0, 1)  # 1: a slow machine
    told = capsys.readouterr().out
    assert all(name in told for name in views.BOUNDS)
    assert "of 300 blocks used" in told
    assert "messages" in told


def test_views_needs_a_browser() -> None:
    with pytest.raises(InvalidValue, match="Chromium"):
        views.main([], browser=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bfloat16", {"W1": ["bfloat16"], "W3": ["bfloat16"]}),
        ("bfloat16,W1=float32", {"W1": ["bfloat16", "float32"], "W3": ["bfloat16"]}),
        ("W3=float32,W2=bfloat16", {"W1": [], "W3": ["float32"]}),
        ("", {"W1": [], "W3": []}),
    ],
)
def test_peer_dtypes(text: str, expected: dict[str, list[str]]) -> None:
    assert peer_dtypes(text, ["W1", "W3"]) == expected


@pytest.mark.parametrize("text", ["int8", "W9=bfloat16", "W1=", "bfloat16;float32"])
def test_bad_peer_dtypes(text: str) -> None:
    with pytest.raises(ConfigError, match="--peer-dtypes"):
        peer_dtypes(text, list(DESCRIPTIONS))


def test_a_shape_is_a_checkpoint_of_the_stated_size(tmp_path: Path) -> None:
    model = load_model(write_random_checkpoint("S", tmp_path), device="cpu", dtype="bfloat16")
    assert model.num_parameters * 2 == pytest.approx(28e6, rel=0.01)
    assert set(SHAPES) == {"S", "M"}
