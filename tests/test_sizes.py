"""The line budget: small modules, small functions, and a reason beside every exception."""

from __future__ import annotations

import ast
import os
import statistics
from pathlib import Path

MAX_MODULE_LINES = 300
MAX_MEDIAN_LINES = 120
MAX_FUNCTION_LINES = 60

# Path -> why this one is better long. The number it may not pass is `MAX_EXCEPTION_LINES`.
LONG_MODULES: dict[str, str] = {
    "workbench/engine/engine.py": "the engine's whole face: thin methods, mostly docstrings",
}
MAX_EXCEPTION_LINES = 400
# "path::function" -> why this one is better long.
LONG_FUNCTIONS: dict[str, str] = {}


def modules(root: Path) -> dict[str, str]:
    """Return the text of every Python and JavaScript module that ships, by path."""
    found = {}
    for top in ("workbench", "kernels"):
        for folder, _, names in os.walk(root / top):  # the symlink is not followed: kernels once
            for name in names:
                if name.endswith((".py", ".js")):
                    path = Path(folder, name)
                    found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
    return found


def functions(path: str, source: str) -> dict[str, int]:
    """Return the lines of every function of a Python module, decorators aside, by `path::name`."""
    return {
        f"{path}::{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def all_functions(root: Path) -> dict[str, int]:
    """Return the lines of every function that ships."""
    sizes: dict[str, int] = {}
    for path, text in modules(root).items():
        if path.endswith(".py"):
            for name, lines in functions(path, text).items():
                sizes[name] = max(lines, sizes.get(name, 0))
    return sizes


def test_no_module_is_long(repository: Path) -> None:
    sizes = {path: len(text.splitlines()) for path, text in modules(repository).items()}
    assert len(sizes) > 20, "the package was not found"
    limits = dict.fromkeys(LONG_MODULES, MAX_EXCEPTION_LINES)
    assert {p: n for p, n in sizes.items() if n > limits.get(p, MAX_MODULE_LINES)} == {}


def test_the_median_module_is_short(repository: Path) -> None:
    sizes = [len(text.splitlines()) for text in modules(repository).values()]
    assert statistics.median(sizes) <= MAX_MEDIAN_LINES


def test_no_function_is_long(repository: Path) -> None:
    long = {k: n for k, n in all_functions(repository).items() if n > MAX_FUNCTION_LINES}
    assert {k: n for k, n in long.items() if k not in LONG_FUNCTIONS} == {}


def test_every_exception_is_still_needed(repository: Path) -> None:
    texts, sizes = modules(repository), all_functions(repository)
    short = [p for p in LONG_MODULES if len(texts.get(p, "").splitlines()) <= MAX_MODULE_LINES]
    short += [f for f in LONG_FUNCTIONS if sizes.get(f, 0) <= MAX_FUNCTION_LINES]
    assert short == []


def test_a_function_is_measured_with_what_is_nested_in_it() -> None:
    source = "@decorated\ndef outer():\n    def inner():\n        return 1\n    return inner\n"
    assert functions("m.py", source) == {"m.py::outer": 4, "m.py::inner": 2}
