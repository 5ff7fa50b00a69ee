"""Module docstrings are the reference: every module has one, and so has every public name."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

# What it is, who calls it, what it never does: fewer lines say too little, more belong elsewhere.
MODULE_LINES = range(3, 13)


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield every Python module that ships, with its path."""
    for top in ("workbench", "kernels"):
        for folder, _, names in os.walk(root / top):
            for name in sorted(names):
                if name.endswith(".py"):
                    path = Path(folder, name)
                    tree = ast.parse(path.read_text(encoding="utf-8"))
                    yield path.relative_to(root).as_posix(), tree


def undocumented(tree: ast.Module) -> list[str]:
    """Return the public functions, classes and methods of public classes that lack a docstring.

    An override says nothing new, so methods count only where no base class may say it already.
    """
    missing = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            members: list[ast.stmt] = [node]
            if isinstance(node, ast.ClassDef) and not node.bases:
                members += node.body
            missing += [
                f"{node.name}.{m.name}" if m is not node else node.name
                for m in members
                if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and not m.name.startswith("_")
                and not ast.get_docstring(m)
            ]
    return missing


def test_every_module_says_what_it_is(repository: Path) -> None:
    lines = {
        path: len((ast.get_docstring(tree) or "").splitlines())
        for path, tree in modules(repository)
    }
    assert len(lines) > 20, "the package was not found"
    wrong = {
        path: count
        for path, count in lines.items()
        if count not in (range(1, 13) if path.endswith("__init__.py") else MODULE_LINES)
    }
    assert wrong == {}


def test_every_public_name_says_what_it_does(repository: Path) -> None:
    missing = {path: names for path, tree in modules(repository) if (names := undocumented(tree))}
    assert missing == {}


def test_the_check_sees_what_is_missing() -> None:
    source = (
        "class Public:\n    '''Said.'''\n    def silent(self): ...\n    def _own(self): ...\n"
        "class Derived(Public):\n    '''Said.'''\n    def silent(self): ...\n"
        "def silent(): ...\ndef _own(): ...\n"
    )
    assert undocumented(ast.parse(source)) == ["Public.silent", "silent"]
