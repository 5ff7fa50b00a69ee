"""One environment, said once: environment.yml and constraints.txt follow pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PLATFORMS = [
    {"python_full_version": f"{python}.9", "python_version": python, **system}
    for python in ("3.11", "3.12")
    for system in (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    )
]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    """The `project` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def conda(repository: Path) -> dict[str, Any]:
    """environment.yml as data."""
    table: dict[str, Any] = yaml.safe_load((repository / "environment.yml").read_text())
    return table


@pytest.fixture(scope="module")
def pins(repository: Path) -> list[Requirement]:
    """Every line of constraints.txt."""
    lines = (repository / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def direct_requirements(project: dict[str, Any]) -> list[Requirement]:
    """Return what pyproject names, extras included, its references to itself aside."""
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [r for line in lines if (r := Requirement(line)).name != project["name"]]


def applies(marker: Marker | None, platform: dict[str, str]) -> bool:
    """Whether a requirement with this marker counts on a platform."""
    return marker is None or marker.evaluate({"os_name": "posix", **platform})


def canonical(name: str) -> str:
    """Return a package name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_takes_python_from_pyproject(conda: dict[str, Any], project: dict[str, Any]) -> None:
    python = [d for d in conda["dependencies"] if isinstance(d, str) and d.startswith("python")]
    assert python == [f"python{project['requires-python']}"]


def test_conda_takes_everything_else_from_pip(conda: dict[str, Any]) -> None:
    assert conda["name"] == "workbench"
    assert [d for d in conda["dependencies"] if isinstance(d, dict)] == [
        {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    ]


def test_dev_brings_every_other_extra(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    itself = [r for line in extras["dev"] if (r := Requirement(line)).name == project["name"]]
    assert {e for r in itself for e in r.extras} == set(extras) - {"dev"}


@pytest.mark.parametrize(
    "platform", PLATFORMS, ids=lambda p: f"{p['python_version']}-{p['platform_machine']}"
)
def test_every_direct_dependency_has_one_pin_that_fits(
    project: dict[str, Any], pins: list[Requirement], platform: dict[str, str]
) -> None:
    pinned: dict[str, list[str]] = {}
    for pin in pins:
        if applies(pin.marker, platform):
            pinned.setdefault(canonical(pin.name), []).append(str(pin.specifier))
    assert {name: pin for name, pin in pinned.items() if len(pin) > 1} == {}
    for need in direct_requirements(project):
        if applies(need.marker, platform):
            (pin,) = pinned.get(canonical(need.name), ["nothing"])
            assert pin.startswith("=="), f"{need.name} is not pinned: run `make constraints`"
            assert SpecifierSet(str(need.specifier)).contains(pin[2:]), f"{need} against {pin}"


def test_no_pin_names_a_local_build(pins: list[Requirement]) -> None:
    assert [str(pin) for pin in pins if "+" in str(pin.specifier)] == []


def test_makefile_pins_the_same_torch(repository: Path, pins: list[Requirement]) -> None:
    wanted = re.search(r"^TORCH_PIN := (\S+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    (torch,) = [pin for pin in pins if pin.name == "torch"]
    assert wanted is not None
    assert str(torch.specifier) == f"=={wanted[1]}"
