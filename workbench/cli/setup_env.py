"""Make and fill the virtual environment: `python3 -I workbench/cli/setup_env.py` (see `--help`).

The Makefile and .ci/run call it by path with whatever Python the machine has, before anything is
installed: so it imports the standard library alone and nothing of this package. It picks uv or pip,
and the torch build that fits the machine. It never touches anything outside the venv it is given.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON = (3, 11)
# PyPI's Linux wheel of torch is the CUDA one, gigabytes of it; the CPU build is published here.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Installer:
    """A command that installs into one venv when requirements are appended to it."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def install(self, *requirements: str, quiet: bool = False) -> bool:
        """Install pip-style requirements; return whether it worked."""
        # Not the whole command: an index URL may carry a password.
        print("+", self.name, "install", shlex.join(requirements), flush=True)
        done = subprocess.run(
            [*self.command, *requirements],
            cwd=ROOT,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            check=False,
        )
        return done.returncode == 0


def pip_settings(listing: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return pip's options by name, from `pip config list` output, else from PIP_* variables.

    pip's own order of precedence holds: environment, then [install], then [global].
    """
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        pattern = rf"^{re.escape(section)}\.([a-z-]+)=('.*'|\".*\")$"
        for match in re.finditer(pattern, listing, re.MULTILINE):
            settings[match[1]] = str(ast.literal_eval(match[2]))
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            settings.setdefault(name[4:].lower().replace("_", "-"), value)
    return settings


def uv_options(settings: Mapping[str, str]) -> list[str]:
    """Return what tells uv, which does not read pip's settings, where pip would look."""
    options: list[str] = []
    for name in ("index-url", "extra-index-url", "find-links"):
        for source in settings.get(name, "").split():
            options += [f"--{name}", source]
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        options.append("--no-index")
    return options


def read_pip_settings() -> dict[str, str]:
    """Ask the running Python's pip for its settings; without pip there are the PIP_* variables."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return pip_settings(asked.stdout if asked.returncode == 0 else "", os.environ)


def find_uv() -> str | None:
    """Return the path of a uv that runs (a version manager's shim may exist and not run)."""
    uv = shutil.which("uv")
    return uv if uv and succeeds([uv, "--version"]) else None


def succeeds(command: Sequence[str]) -> bool:
    """Return whether a command exists and ends with status 0; its output is dropped."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def make_venv(venv: Path, uv: str | None) -> None:
    """Create the venv unless it is there and its Python runs and is new enough."""
    check = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    if succeeds([str(venv / "bin" / "python"), "-c", check]):
        return
    if venv.exists():
        if not (venv / "pyvenv.cfg").exists():
            raise SetupError(
                f"{venv} exists and is no virtual environment: move it away, run again"
            )
        print(f"{venv} has no working Python >= {version_text(OLDEST_PYTHON)}: making it anew")
        shutil.rmtree(venv)
    if uv:
        command = [uv, "venv", "--quiet", "--seed", "--python", sys.executable, str(venv)]
    else:
        command = [sys.executable, "-m", "venv", str(venv)]
    print("+", shlex.join(command), flush=True)
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
        raise SetupError(
            "the virtual environment could not be made (on Debian and Ubuntu, `venv` is a package "
            "of its own: python3-venv)"
        )


def pick_installer(venv: Path, uv: str | None, settings: Mapping[str, str]) -> Installer:
    """Return uv with pip's sources passed on, or the venv's own pip, which reads its settings."""
    python = str(venv / "bin" / "python")
    constraints = ("--constraint", "constraints.txt")
    if uv:
        # pip takes the best version of all sources; uv, unless told, of the first that has any.
        strategy = ("--index-strategy", "unsafe-best-match")
        command = (uv, "pip", "install", "--quiet", "--python", python, *strategy, *constraints)
        cert = settings.get("cert")
        env = {"SSL_CERT_FILE": cert} if cert and "SSL_CERT_FILE" not in os.environ else {}
        return Installer("uv", (*command, *uv_options(settings)), env)
    if not succeeds([python, "-m", "pip", "--version"]):
        subprocess.run([python, "-m", "ensurepip", "--upgrade"], check=True)
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check")
    return Installer("pip", (python, "-m", "pip", "install", *quiet, *constraints))


def torch_requirements(
    version: str, build: str, platform: str, has_sources: bool
) -> list[tuple[str, ...]]:
    """Return the ways to ask for torch, first choice first; the first that installs is taken.

    `build` is "cpu" or "cuda"; `has_sources` says that pip is configured with sources of its own,
    which may hold a CPU build and are asked before torch's public index.
    """
    if platform != "linux":
        return [(f"torch=={version}",)]
    if build == "cuda":
        # A local version sorts above the plain one, so a CPU wheel lying about would win otherwise.
        return [(f"torch=={version},!={version}+cpu",)]
    public = (f"torch=={version}+cpu", "--extra-index-url", TORCH_CPU_INDEX)
    return [(f"torch=={version}+cpu",), public] if has_sources else [public]


def pinned_version(constraints: str, package: str) -> str:
    """Return the version that a constraints file pins a package to."""
    match = re.search(rf"^{re.escape(package)}==([^\s;]+)", constraints, re.MULTILINE)
    if match is None:
        raise SetupError(f"constraints.txt does not pin {package}: run `make constraints`")
    return match[1]


def fill_venv(venv: Path, package: Sequence[str], build: str, installer_name: str) -> None:
    """Make the venv and install torch, then the package (pip arguments) with what it needs."""
    uv = None if installer_name == "pip" else find_uv()
    if installer_name == "uv" and uv is None:
        raise SetupError("no uv on PATH; use INSTALLER=pip, or install uv")
    if build == "auto":
        build = "cuda" if succeeds(["nvidia-smi", "-L"]) else "cpu"
    make_venv(venv, uv)
    settings = read_pip_settings()
    installer = pick_installer(venv, uv, settings)
    version = pinned_version((ROOT / "constraints.txt").read_text(encoding="utf-8"), "torch")
    has_sources = any(settings.get(k) for k in ("index-url", "extra-index-url", "find-links"))
    print(f"set-up of {venv}: Python {sys.version.split()[0]}, torch for {build}")
    print("the first time this takes from ten seconds (uv) to some minutes (pip)", flush=True)
    ways = torch_requirements(version, build, sys.platform, has_sources)
    if not any(installer.install(*way, quiet=way is not ways[-1]) for way in ways):
        hint = "; TORCH=cuda takes the plain wheel, large, which runs on CPUs too"
        raise SetupError(f"torch {version} ({build}) could not be installed{hint}")
    if not installer.install(*package):
        hint = "; `make setup INSTALLER=pip` tries without uv" if uv else ""
        raise SetupError(f"the packages could not be installed{hint}")


def version_text(version: Sequence[int]) -> str:
    """Return (3, 11) as 3.11."""
    return ".".join(map(str, version))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the set-up; return 0, or 1 after printing what went wrong."""
    parser = argparse.ArgumentParser(description="Make and fill the virtual environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--wheel", help="install this wheel instead of the working tree with [dev]")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--installer", choices=("auto", "uv", "pip"), default="auto")
    args = parser.parse_args(argv)
    package = [args.wheel] if args.wheel else ["--editable", ".[dev]"]
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise SetupError(f"Python >= {version_text(OLDEST_PYTHON)} is needed")
        fill_venv(args.venv.absolute(), package, args.torch, args.installer)
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
