"""The set-up's decisions: whose sources, which torch. That it installs, every run of CI shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.cli.setup_env import (
    SetupError,
    make_venv,
    pinned_version,
    pip_settings,
    succeeds,
    torch_requirements,
    uv_options,
)

LISTING = """\
:env:.find-links='wheels/env'
global.extra-index-url='https://one.example/simple https://two.example/simple'
global.find-links='wheels/global'
global.no-index='false'
install.find-links='wheels/install'
install.index-url="https://main.example/it's/simple"
list.format='columns'
"""


def test_pips_settings_are_read_in_pips_order() -> None:
    settings = pip_settings(LISTING, {})
    assert settings["find-links"] == "wheels/env"
    assert settings["index-url"] == "https://main.example/it's/simple"
    assert "format" not in settings
    without_env = pip_settings(LISTING.split("\n", 1)[1], {})
    assert without_env["find-links"] == "wheels/install"


def test_without_pip_its_variables_are_read() -> None:
    settings = pip_settings("", {"PIP_FIND_LINKS": "wheels", "PIP_CERT": "", "PATH": "/bin"})
    assert settings == {"find-links": "wheels"}


def test_uv_is_told_where_pip_would_look() -> None:
    assert uv_options(pip_settings(LISTING, {})) == [
        "--index-url",
        "https://main.example/it's/simple",
        "--extra-index-url",
        "https://one.example/simple",
        "--extra-index-url",
        "https://two.example/simple",
        "--find-links",
        "wheels/env",
    ]
    assert uv_options({"no-index": "1"}) == ["--no-index"]
    assert uv_options({}) == []


def test_linux_without_a_gpu_asks_only_for_cpu_builds() -> None:
    own, public = torch_requirements("2.13.0", "cpu", "linux", has_sources=True)
    assert own == ("torch==2.13.0+cpu",)
    assert public[0] == "torch==2.13.0+cpu"
    assert public[1:] == ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
    assert torch_requirements("2.13.0", "cpu", "linux", has_sources=False) == [public]


def test_a_gpu_machine_never_takes_a_cpu_build() -> None:
    from packaging.requirements import Requirement

    ((line,),) = torch_requirements("2.13.0", "cuda", "linux", has_sources=True)
    wanted = Requirement(line).specifier
    assert "2.13.0" in wanted
    assert "2.13.0+cu130" in wanted
    assert "2.13.0+cpu" not in wanted


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_macos_takes_the_plain_wheel(build: str) -> None:
    assert torch_requirements("2.13.0", build, "darwin", has_sources=True) == [("torch==2.13.0",)]


def test_the_pin_is_read_from_the_constraints() -> None:
    text = "pytorch==1\ntorch==2.13.0 ; python_version > '3'\ntorchvision==9\n"
    assert pinned_version(text, "torch") == "2.13.0"
    with pytest.raises(SetupError, match="make constraints"):
        pinned_version(text, "triton")


def test_a_folder_that_is_no_venv_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(SetupError, match="no virtual environment"):
        make_venv(tmp_path, uv=None)
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.slow
def test_a_broken_venv_is_made_anew_and_a_good_one_kept(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    make_venv(venv, uv=None)
    assert succeeds([str(venv / "bin" / "python"), "-m", "pip", "--version"])
    (venv / "mark").touch()
    make_venv(venv, uv=None)
    assert (venv / "mark").exists()


def test_the_script_needs_nothing_but_the_standard_library(repository: Path) -> None:
    script = repository / "workbench" / "cli" / "setup_env.py"
    # -S: no site-packages at all
    shown = subprocess.run(
        [sys.executable, "-I", "-S", str(script), "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "--installer" in shown.stdout
