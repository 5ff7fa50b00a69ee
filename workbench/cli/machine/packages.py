"""Installed packages, read from their metadata and files without importing them.

torch takes seconds to import and may be broken; its version, and the CUDA it was built for, stand
in files. `torch_sees_gpu` alone imports it, and is only asked where a GPU is there.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib import metadata
from pathlib import Path


def installed_version(package: str) -> str | None:
    """Return the version of a distribution, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_folder(package: str) -> Path | None:
    """Return the folder of an importable top-level package, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_cuda_version() -> str | None:
    """Return the CUDA version torch was built for, such as "13.0"; None for a CPU build."""
    folder = package_folder("torch")
    file = folder / "version.py" if folder else None
    return (
        assigned_text(file.read_text(encoding="utf-8"), "cuda") if file and file.exists() else None
    )


def assigned_text(source: str, name: str) -> str | None:
    """Return the string that a module's source assigns to `name` at its top level, if it does."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            text = value.value if isinstance(value, ast.Constant) else None
            return text if isinstance(text, str) else None
    return None


def torch_sees_gpu() -> bool:
    """Return whether torch, imported for this, can use a GPU; one that fails to import cannot."""
    try:
        import torch
    except (ImportError, OSError):
        return False
    return bool(torch.cuda.is_available())
