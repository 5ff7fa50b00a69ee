"""Training documents out of one cleaned file: the file, its functions, classes and some methods.

Called by the corpus builder in its worker processes. People prompt a code model with the head of
one function, so about half of what it learns from has to begin there. Nothing here reads files.
"""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from workbench.data.cleaning import Rejected, parse
from workbench.data.holdout import stable_hash

Kind = Literal["file", "function", "class", "method"]
_SMALLEST_DEFINITION = 80  # characters
_LARGEST_DEFINITION = 6_400  # characters, about 2,000 tokens
_METHOD_SHARE = 12  # one method in so many becomes a document of its own
_METHOD_SHARE_OF_LARGE_CLASS = 3  # a class too large to be a document gives more of them
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of Python that stands alone; `digest` is equal for texts equal up to whitespace."""

    kind: Kind
    text: str
    digest: bytes


def definitions(text: str) -> list[Document]:
    """The top-level functions and classes of a cleaned file, and a small share of its methods.

    Every document is valid Python by itself, begins at column 0 and ends with one newline. Stubs
    (`...`, `pass`, nothing but a docstring), tiny and very large definitions are left out.
    """
    lines = text.split("\n")
    return [
        Document(kind, piece, digest_of(piece))
        for kind, node in _chosen(parse(text), lines)
        if (piece := _piece(node, lines)) is not None
    ]


def digest_of(text: str) -> bytes:
    """An 8-byte hash of the text with every run of whitespace counted as one space."""
    normal = re.sub(r"\s+", " ", text).strip()
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _chosen(tree: ast.Module, lines: list[str]) -> Iterator[tuple[Kind, _Function | ast.ClassDef]]:
    for node in tree.body:
        if isinstance(node, _Function):
            yield "function", node
        elif isinstance(node, ast.ClassDef):
            large = sum(map(len, lines[first_line(node) : node.end_lineno])) > _LARGEST_DEFINITION
            if not large:
                yield "class", node
            share = _METHOD_SHARE_OF_LARGE_CLASS if large else _METHOD_SHARE
            for method in node.body:
                if isinstance(method, _Function) and not method.name.startswith("__"):
                    body = "\n".join(lines[first_line(method) : method.end_lineno])
                    if stable_hash(body) % share == 0:
                        yield "method", method


def first_line(node: ast.stmt) -> int:
    """The index of a statement's first line, decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _piece(node: _Function | ast.ClassDef, lines: list[str]) -> str | None:
    if is_stub(node):
        return None
    piece = textwrap.dedent("\n".join(lines[first_line(node) : node.end_lineno])) + "\n"
    if not _SMALLEST_DEFINITION <= len(piece) <= _LARGEST_DEFINITION:
        return None
    if node.col_offset:  # dedenting a string that spans lines can break a method
        try:
            parse(piece)
        except Rejected:
            return None
    return piece


def is_stub(node: _Function | ast.ClassDef) -> bool:
    """Whether a definition does nothing: a docstring, `...` or `pass` is all there is."""
    return all(
        isinstance(statement, ast.Pass)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in node.body
    )
