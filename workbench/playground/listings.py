"""From a line of a compiler's text to the line of the kernel's file that it comes from.

Each stage says it its own way: MLIR by location aliases, LLVM by debug metadata, PTX and AMDGCN by
`.loc` directives, SASS by nvdisasm's comments. What was inlined from another file counts as its
caller's line, where the stage knows the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

STAGES = ("ttir", "ttgir", "llir", "ptx", "sass", "amdgcn")


def source_lines(stage: str, text: str, path: str) -> list[int]:
    """Return for each line of a stage's text the line of the file `path`, 0 where there is none."""
    return _READERS[stage](text, path)


def _same(file: str, path: str) -> bool:
    """Whether both are the same file of the package: a cache of compilations is shared by every
    checkout, and says where the first one had it."""
    return Path(file).parts[-2:] == Path(path).parts[-2:]


# --- MLIR --------------------------------------------------------------------------------------

_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_PLACE = re.compile(r'^"([^"]+)":(\d+):\d+$')
_REFERENCE = re.compile(r"#loc\d*")
_AT = re.compile(r"\bloc\((#loc\d*)\)\s*$")


def _mlir(text: str, path: str) -> list[int]:
    aliases = dict(_ALIAS.findall(text))
    known: dict[str, int] = {}

    def resolve(alias: str) -> int:
        if alias not in known:
            known[alias] = 0  # an alias of itself would not end
            body = aliases.get(alias, "")
            place = _PLACE.match(body)
            if place is not None:
                known[alias] = int(place[2]) if _same(place[1], path) else 0
            else:  # named, fused, or `callsite(callee at caller)`: the first that is in the file
                inner = map(resolve, _REFERENCE.findall(body))
                known[alias] = next((line for line in inner if line), 0)
        return known[alias]

    found = (_AT.search(line) for line in text.splitlines())
    return [0 if at is None else resolve(at[1]) for at in found]


# --- LLVM --------------------------------------------------------------------------------------

_METADATA = re.compile(r"^(!\d+) = (?:distinct )?!(DI\w+)\((.*)\)$", re.MULTILINE)
_DEBUG = re.compile(r"!dbg (!\d+)")


def _llvm(text: str, path: str) -> list[int]:
    nodes = {name: (kind, body) for name, kind, body in _METADATA.findall(text)}

    def field(name: str, what: str) -> str:
        found = re.search(rf"\b{what}: (!?[\w\"./-]+)", nodes.get(name, ("", ""))[1])
        return "" if found is None else found[1]

    def file_of(scope: str) -> str:
        file = field(scope, "file") or field(field(scope, "scope"), "file")
        return field(file, "filename").strip('"')

    known: dict[str, int] = {}
    for name, (kind, _) in nodes.items():
        if kind != "DILocation":
            continue
        at = name
        while at and file_of(field(at, "scope")) != Path(path).name:
            at = field(at, "inlinedAt")
        known[name] = int(field(at, "line") or 0) if at else 0
    found = (_DEBUG.search(line) for line in text.splitlines())
    return [0 if at is None else known.get(at[1], 0) for at in found]


# --- assembly ----------------------------------------------------------------------------------

_LOC = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)\s+\d+(.*)$")
_FILE = re.compile(r"^\s*\.file\s+(\d+)\s+(.*)$", re.MULTILINE)
_SASS = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')


def _assembly(text: str, path: str) -> list[int]:
    name = Path(path).name
    ours = {number for number, said in _FILE.findall(text) if name in said}
    caller = re.compile(rf"\b{re.escape(name)}:(\d+)")
    lines, current = [], 0
    for line in text.splitlines():
        loc = _LOC.match(line)
        if loc is None:
            lines.append(0 if line.lstrip().startswith((".", "//", ";", "#")) else current)
            continue
        inlined = caller.search(loc[3])
        current = int(loc[2]) if loc[1] in ours else int(inlined[1]) if inlined else 0
        lines.append(0)
    return lines


def _sass(text: str, path: str) -> list[int]:
    lines, current = [], 0
    for line in text.splitlines():
        said = _SASS.match(line)
        if said is not None:
            current = int(said[2]) if _same(said[1], path) else 0
        lines.append(current if said is None and line.lstrip().startswith("/*") else 0)
    return lines


_READERS: dict[str, Callable[[str, str], list[int]]] = {
    "ttir": _mlir,
    "ttgir": _mlir,
    "llir": _llvm,
    "ptx": _assembly,
    "amdgcn": _assembly,
    "sass": _sass,
}
