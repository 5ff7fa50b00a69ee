"""The C kernels of `kernels/cpu`, compiled for this machine on first use and loaded with ctypes.

The library lies in the user's cache folder under a name that hashes everything it depends on:
sources, flags, compiler, processor, OpenMP runtime. It links against the very runtime that torch
has loaded, so that there is one pool of threads. Called by `workbench.ops.native` only.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from workbench import kernels
from workbench.errors import ConfigError

_SOURCES = ("linear.c", "attention.c", "pointwise.c", "inputs.c", "lora.c", "tape.c", "team.c")
_FLAGS = ("-std=gnu11", "-O3", "-fopenmp", "-fPIC", "-fvisibility=hidden")
_MARCH = "native"
_OPENMP = ("libgomp", "libiomp5", "libomp")


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the library, compiled first if this machine has not done so yet (about 2 s).

    Raises `ConfigError` for `backend="native"` where it cannot be made, saying what is missing.
    """
    if platform.system() != "Linux":
        raise _unavailable(f"runs on Linux only, not on {platform.system()}", "Use sdpa.")
    compiler = find_compiler()
    openmp = _loaded_openmp()
    path = cache_folder() / f"{_key(compiler, openmp)}.so"
    if not path.exists():
        compile_library(compiler, openmp, path)
    return ctypes.CDLL(str(path))


def find_compiler() -> str:
    """Return the path of `$CC`, cc, gcc or clang; raise `ConfigError` where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise _unavailable("there is no C compiler", "Install gcc or clang, or set CC.")


def cache_folder() -> Path:
    """Return where compiled libraries are kept: in `$XDG_CACHE_HOME`, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench" / "native"


def compile_library(compiler: str, openmp: Path, path: Path, march: str = _MARCH) -> None:
    """Compile the sources side by side and put the library at `path`, whole or not at all.

    march: the processor to compile for, in the compiler's words; `native` is this one.
    Several processes may do so at once: each works in a folder of its own, the last to finish
    replaces an equal file. Raises `ConfigError` with the compiler's words if it fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            objects = [str(Path(folder, name).with_suffix(".o")) for name in _SOURCES]
            sources = [str(_source_folder() / name) for name in _SOURCES]
            pairs = zip(sources, objects, strict=True)
            flags = [*_FLAGS, f"-march={march}"]
            _run_all([[compiler, *flags, "-c", s, "-o", o] for s, o in pairs])
            library = str(Path(folder, path.name))
            link = ["-shared", "-Wl,--no-undefined", f"-Wl,-rpath,{openmp.parent}"]
            _run_all([[compiler, *link, *objects, str(openmp), "-lm", "-o", library]])
            os.replace(library, path)
    except OSError as error:
        fix = "Set XDG_CACHE_HOME to a folder that can be written to."
        raise _unavailable(f"the library could not be kept: {error}", fix) from error


def _run_all(commands: list[list[str]]) -> None:
    """Run commands side by side; raise `ConfigError` with the output of the first that fails."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode != 0:
            raise _unavailable(f"the compiler failed: {output.strip()[:500]}", "Set CC to another.")


def _loaded_openmp() -> Path:
    """Return the OpenMP runtime that torch has loaded into this process."""
    import torch  # noqa: F401  loads it

    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(_OPENMP):
            return path
    raise _unavailable("torch has loaded no OpenMP runtime", "Install torch's own wheel.")


def _source_folder() -> Path:
    assert kernels.__file__ is not None
    return Path(kernels.__file__).parent / "cpu"


def _key(compiler: str, openmp: Path) -> str:
    """Return a hash of everything that decides what the library's code is."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    names = ("vendor_id", "model name", "flags", "Features", "CPU part")
    processor = [line for line in info.splitlines() if line.startswith(names)]
    parts = [compiler, version.stdout, str(openmp), *_FLAGS, _MARCH, *processor]
    parts += [p.read_text(encoding="utf-8") for p in sorted(_source_folder().glob("*.[ch]"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _unavailable(problem: str, fix: str) -> ConfigError:
    return ConfigError("backend", "native", problem, fix)
