"""From the bytes of a Python file to text worth training on, or the reason why not.

Called by the corpus builder in its worker processes and by the prompt suite. Pure functions of the
file's bytes: no file is opened here and nothing is executed.
"""

from __future__ import annotations

import ast
import re
import warnings
import zlib

_SMALLEST, _LARGEST = 200, 1_000_000  # bytes
_LONGEST_LINE, _LONGEST_MEAN_LINE = 300, 80  # characters
_GENERATED = re.compile(
    r"do not edit|do not modify|auto-?\s?generated|@generated|machine[- ]generated|"
    r"generated (by|from|automatically|file|code|with)|this file (is|was) generated",
    re.IGNORECASE,
)
_COPYLEFT = re.compile(r"General Public License|Mozilla Public|\b[AL]?GPL", re.IGNORECASE)
_LEGAL = re.compile(
    r"copyright|licen[sc]e|spdx|\(c\) |all rights reserved|warrant(y|ies)", re.IGNORECASE
)
_ENCODING = re.compile(r"#.*coding[:=]")


class Rejected(Exception):
    """The file is of no use; `reason` is one short phrase that the manifest counts."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def clean_source(raw: bytes) -> str:
    """The file's text, normalised, without licence headers.

    Raises `Rejected` with the reason if the file is generated, not Python 3, a table of data, …
    """
    if not _SMALLEST <= len(raw) <= _LARGEST:
        raise Rejected("size")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Rejected("not UTF-8") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "")
    _reject_by_head(text)
    text = strip_header(text)
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n") + "\n"
    text = re.sub(r"\n{4,}", "\n\n\n", text)
    _reject_by_shape(text)
    tree = parse(text)
    text = _spaces_for_tabs(text, tree)
    text = _without_legal_docstring(text, tree)
    _reject_tables(tree)
    if len(text) < _SMALLEST:
        raise Rejected("size")
    return text


def parse(text: str) -> ast.Module:
    """The syntax tree of `text`; raises `Rejected` where it is not Python 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise Rejected("does not parse") from None


def strip_header(text: str) -> str:
    """Drop the shebang, the encoding line and leading comment blocks that speak of a licence."""
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end].lstrip().startswith("#"):
            end += 1
        block = lines[start:end]
        prologue = all(line.startswith("#!") or _ENCODING.match(line) for line in block)
        if not block and start < len(lines) and not lines[start].strip():
            start += 1
        elif block and (prologue or _LEGAL.search("\n".join(block))):
            start = end
        else:
            break
    kept = lines[start:]
    while kept and (kept[0].startswith("#!") or _ENCODING.match(kept[0])):
        kept.pop(0)
    return "\n".join(kept)


def _reject_by_head(text: str) -> None:
    head = text[:3000]
    comments = [line for line in head.split("\n")[:40] if line.lstrip().startswith(("#", '"""'))]
    if _GENERATED.search("\n".join(comments)) or _GENERATED.search(head[:300]):
        raise Rejected("generated")
    if _COPYLEFT.search(head):
        raise Rejected("copyleft header")


def _reject_by_shape(text: str) -> None:
    lines = [line for line in text.split("\n") if line]
    if not lines:
        raise Rejected("size")
    if max(map(len, lines)) > _LONGEST_LINE or len(text) / len(lines) > _LONGEST_MEAN_LINE:
        raise Rejected("long lines")
    if len(set(text)) < 25:
        raise Rejected("tiny alphabet")
    if sum(map(str.isdigit, text)) > 0.12 * len(text):
        raise Rejected("mostly digits")
    encoded = text.encode()
    if len(encoded) > 1.1 * len(text):
        raise Rejected("mostly not ASCII")
    if len(encoded) > 9 * len(zlib.compress(encoded, 1)):
        raise Rejected("repetitive")


def _spaces_for_tabs(text: str, tree: ast.Module) -> str:
    """Four spaces for each leading tab, if the program stays the same."""
    if "\n\t" not in text and not text.startswith("\t"):
        return text
    expanded = re.sub(r"^\t+", lambda tabs: " " * 4 * len(tabs[0]), text, flags=re.MULTILINE)
    if ast.dump(parse(expanded)) != ast.dump(tree):
        raise Rejected("tabs")
    return expanded


def _without_legal_docstring(text: str, tree: ast.Module) -> str:
    """Drop a module docstring that is a licence notice rather than a description."""
    if not (tree.body and ast.get_docstring(tree, clean=False)):
        return text
    notice = tree.body[0]
    lines = text.split("\n")
    first, last = notice.lineno - 1, notice.end_lineno or notice.lineno
    block = "\n".join(lines[first:last])
    if re.search(r"copyright|licen[sc]ed under|spdx", block, re.IGNORECASE):
        return "\n".join(lines[:first] + lines[last:]).lstrip("\n")
    return text


def _reject_tables(tree: ast.Module) -> None:
    """Refuse a module that is mostly one literal."""
    total = max((node.end_lineno or 0 for node in tree.body), default=0)
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.List | ast.Dict | ast.Tuple | ast.Set):
            length = (value.end_lineno or 0) - value.lineno
            if length > 60 and length > 0.4 * total:
                raise Rejected("literal table")
