"""`workbench doctor`: on this machine as it is, and on machines made up for the test."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.cli.doctor import facts
from workbench.cli.findings import Machine, features
from workbench.cli.machine.command import output_of
from workbench.cli.machine.cpu import Cpu, Memory, parse_flags, read_cpu, read_memory
from workbench.cli.machine.gpu import Gpu, parse_gpus
from workbench.cli.machine.packages import assigned_text, torch_cuda_version
from workbench.cli.main import main

H100 = Gpu("NVIDIA H100 80GB HBM3", 81559, (9, 0), "580.65.06")
SERVER = Machine(
    system="Linux",
    cpu=Cpu("Some Server CPU", 32, ("AVX2", "AVX512", "AMX-BF16")),
    memory=Memory(256 * 2**30, 200 * 2**30),
    gpus=(H100,),
    gpu_works=True,
    torch="2.13.0",
    torch_cuda="13.0",
    triton="3.7.1",
    flashinfer="0.6.4",
    c_compiler="gcc 12.2.0",
    ptxas=Path("bin/ptxas"),
    ptxas_version="13.0",
    browser="Chromium 140",
    node="v20.1.0",
    jupyterlab="4.6.6",
    embedded_model=Path("adapters/tinypy/base"),
)
NOTHING = Machine(
    system="Linux",
    cpu=Cpu("x86_64", 1, ()),
    memory=None,
    gpus=(),
    gpu_works=False,
    torch=None,
    torch_cuda=None,
    triton=None,
    flashinfer=None,
    c_compiler=None,
    ptxas=None,
    ptxas_version=None,
    browser=None,
    node=None,
    jupyterlab=None,
    embedded_model=None,
)


def runs(machine: Machine, **changed: object) -> dict[str, str]:
    """Return what will run on a machine, as a dictionary."""
    return {f.name: f.text for f in features(dataclasses.replace(machine, **changed))}


def test_this_machine_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in shown
    assert "What will therefore run" in shown


def test_json_has_the_same_content(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    tables = json.loads(capsys.readouterr().out)
    main(["doctor"])
    shown = capsys.readouterr().out
    assert set(tables) == {"machine", "runs"}
    stable = {k: v for t in tables.values() for k, v in t.items() if k != "memory"}
    assert [f"{name}: {text}" for name, text in stable.items() if text not in shown] == []


def test_it_runs_without_torch_and_imports_none(tmp_path: Path) -> None:
    # A finder that refuses torch and everything that comes with it, as if nothing were installed.
    code = """
import importlib.metadata as metadata, sys
ABSENT = {"torch", "triton", "numpy", "transformers", "jupyterlab"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
real = metadata.version
def version(name):
    if name in ABSENT:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ABSENT else find_spec(name, *rest)
from workbench.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    tables = json.loads(ran.stdout)
    assert tables["machine"]["torch"] == "not installed"
    assert tables["runs"]["engine"].startswith("no: torch is not installed")


def test_it_does_not_import_torch_where_there_is_no_gpu(tmp_path: Path) -> None:
    if output_of(["nvidia-smi", "-L"]):
        pytest.skip("this machine has a GPU, which torch is imported to try")
    code = (
        "import sys; from workbench.cli.main import main; main(['doctor']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_torchs_cuda_version_is_read_right_from_its_file() -> None:
    import torch

    assert torch_cuda_version() == torch.version.cuda


def test_a_server_runs_everything() -> None:
    shown = runs(SERVER)
    assert shown["engine"] == "on the GPU and on the CPU (1 GPU)"
    assert shown["Triton kernels"] == "on the GPU"
    assert shown["FlashInfer"].startswith('backend="triton+flashinfer", by version 0.6.4')
    assert shown["bfloat16 on the CPU"] == "in hardware"
    assert shown["GPU tests"] == "yes"
    assert (
        facts(SERVER)[7].text == "NVIDIA H100 80GB HBM3, 80 GiB, capability 9.0, driver 580.65.06"
    )


def test_every_lack_is_named_with_its_remedy() -> None:
    shown = runs(NOTHING)
    assert "make setup" in shown["engine"]
    assert shown["Triton kernels"] == "no: torch is not installed"
    assert "pip install flashinfer-python" in shown["FlashInfer"]
    assert "emulated" in shown["bfloat16 on the CPU"]
    assert "playwright install chromium" in shown["browser tests"]
    assert "install node" in shown["JavaScript tests"]
    assert {f.name: f.text for f in facts(NOTHING)}["memory"] == "unknown"


def test_a_gpu_that_torch_cannot_use_is_told_apart() -> None:
    no_cuda = runs(SERVER, gpu_works=False, torch="2.13.0+cpu", torch_cuda=None)
    assert "TORCH=cuda" in no_cuda["engine"]
    assert no_cuda["Triton kernels"].startswith("interpreter only")
    assert no_cuda["FlashInfer"] == "no: 0.6.4 is installed, but it runs on a GPU alone"
    old_driver = runs(SERVER, gpu_works=False)
    assert "580.65.06" in old_driver["engine"]


def test_triton_needs_a_compiler_and_linux() -> None:
    assert "C compiler" in runs(SERVER, c_compiler=None)["Triton kernels"]
    mac = runs(NOTHING, system="Darwin", torch="2.13.0")
    assert mac["Triton kernels"] == "no: triton is not installed (there is none for Darwin)"


def test_gpus_are_read_from_the_drivers_listing() -> None:
    listing = (
        "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.65.06\n"
        "Odd, name with comma, 16384, 12.0, 999.1\n"
        "No devices were found\n"
        "NVIDIA Something, [N/A], 8.0, 1.2\n"
    )
    assert parse_gpus(listing) == [H100, Gpu("Odd, name with comma", 16384, (12, 0), "999.1")]
    assert parse_gpus("") == []


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        (
            "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n",
            ("AVX2", "AVX512", "AVX512-BF16", "AMX"),
        ),
        ("Features\t: fp asimd bf16\n", ("NEON", "ARM-BF16")),
        ("flags\t\t: fpu avx512_bitalg\n", ()),
        ("", ()),
    ],
)
def test_instruction_sets_are_read_by_whole_words(cpuinfo: str, flags: tuple[str, ...]) -> None:
    assert parse_flags(cpuinfo) == flags


def test_this_machines_processor_and_memory_are_plausible() -> None:
    memory = read_memory()
    assert 1 <= read_cpu().cores <= 4096
    assert memory is None or memory.total > 2**28
    assert memory is None or memory.available is None or memory.available <= memory.total


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda = '12.8'", "12.8"),
        ("cuda: Optional[str] = None", None),
        ("def f():\n    cuda = '1'", None),
    ],
)
def test_an_assigned_text_is_read_without_running_the_file(source: str, text: str | None) -> None:
    assert assigned_text(source, "cuda") == text


def test_a_program_that_is_absent_fails_or_hangs_is_none() -> None:
    assert output_of(["surely-no-such-program"]) is None
    assert output_of([sys.executable, "-c", "import sys; print(1); sys.exit(3)"]) is None
    assert output_of([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5) is None
    assert output_of([sys.executable, "-c", "print('yes')"]) == "yes"
