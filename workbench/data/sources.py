"""Where the Python source of a machine lies, and what is known of each file's origin.

Called by the corpus builder and the prompt suite. It lists files; it never reads or imports them.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from workbench.data.holdout import STDLIB
from workbench.data.licences import field_of, permissive_licence


@dataclass(frozen=True, slots=True)
class Origin:
    """A distribution whose source may be used: its name, version and permissive licence."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One Python file: the distribution it comes from, its dotted module name and its path."""

    origin: Origin
    module: str
    path: Path


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A distribution that is not used because no permissive licence could be read off it."""

    name: str
    version: str
    declared: str


def stdlib_files(folder: Path | None = None, version: str | None = None) -> list[SourceFile]:
    """The standard library's files under `folder` (default: the running Python's), tests too."""
    root = folder or Path(sysconfig.get_path("stdlib"))
    origin = Origin(STDLIB, version or platform.python_version(), "PSF-2.0")
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not {"site-packages", "dist-packages", "__pycache__"} & set(relative.parts):
            files.append(SourceFile(origin, module_name(relative), path))
    return files


def installed_files(
    folders: Iterable[Path] = (),
) -> tuple[list[SourceFile], list[LeftOut]]:
    """The files of every permissively licensed distribution, and the distributions left out.

    Looks along `sys.path`, or in `folders` alone if any are given. Of two distributions of one name
    the first found counts, as it does for `import`.
    """
    paths = [str(folder) for folder in folders]
    found = distributions(path=paths) if paths else distributions()
    files: list[SourceFile] = []
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for distribution in sorted(found, key=_name):
        name = _name(distribution)
        if not name or name.lower() in seen:
            continue
        seen.add(name.lower())
        licence = permissive_licence(distribution)
        if licence is None:
            left_out.append(LeftOut(name, distribution.version, _declared(distribution)))
            continue
        files += _files_of(distribution, Origin(name, distribution.version, licence))
    return files, left_out


def module_name(relative: Path) -> str:
    """The dotted name of a file given relative to its import root: `json/__init__.py` is `json`."""
    parts = list(relative.with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def _name(distribution: Distribution) -> str:
    return field_of(distribution, "Name")


def _declared(distribution: Distribution) -> str:
    classifiers = [
        c for c in distribution.metadata.get_all("Classifier") or [] if c.startswith("License")
    ]
    declared = field_of(distribution, "License-Expression") or "; ".join(classifiers)
    return " ".join((declared or field_of(distribution, "License") or "none stated").split())[:120]


def _files_of(distribution: Distribution, origin: Origin) -> Iterator[SourceFile]:
    for file in distribution.files or []:
        if file.suffix == ".py" and ".." not in file.parts:
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                yield SourceFile(origin, module_name(Path(*file.parts)), path)
