"""The prompt suite: heads of functions, classes and modules that no model here was trained on.

`python -m workbench.data.prompts` makes `datasets/prompts/python.jsonl` out of the running Python's
standard library, by the hold-out rule of the corpus; benches and notebooks read it by
`load_prompts`. It never executes what it reads.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.data.cleaning import Rejected, clean_source, parse
from workbench.data.documents import first_line, is_stub
from workbench.data.holdout import is_held_out, stable_hash
from workbench.data.sources import SourceFile, stdlib_files
from workbench.errors import InvalidValue
from workbench.places import DATASETS, repository_root

_KINDS = ("function", "class", "module")
_LONGEST = 900  # characters of a head
_MODULE_LINES = 12
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Prompt:
    """A piece of Python to go on from: `kind` is function, class or module; `source` its module."""

    id: str
    kind: str
    source: str
    prompt: str


def load_prompts(name: str = "python", root: Path | None = None) -> list[str]:
    """The prompts of `datasets/prompts/<name>.jsonl`, in their order.

    `root` is the folder that holds `datasets`; by default the repository of this package.
    Raises `InvalidValue` if there is no such suite.
    """
    folder = (root or repository_root()) / DATASETS / "prompts"
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))) or "none"
        raise InvalidValue(
            "name", name, f"no prompt suite at {path}", f"Suites there: {known}; or pass root=."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["prompt"]) for line in lines if line]


def make_prompts(files: Sequence[SourceFile], count: int) -> list[Prompt]:
    """`count` prompts at most, half of functions, from the held-out ones among `files`.

    No module gives more than a few, and the choice is by hash, so it is the same every time.
    """
    found: dict[str, list[Prompt]] = {kind: [] for kind in _KINDS}
    for file in files:
        if is_held_out(file.origin.name, file.module):
            try:
                text = clean_source(file.path.read_bytes())
            except Rejected:
                continue
            for prompt in heads(file.module, text):
                found[prompt.kind].append(prompt)
    shares = {"function": count // 2, "class": count // 4}
    shares["module"] = count - sum(shares.values())
    chosen: list[Prompt] = []
    for kind in reversed(_KINDS):  # what the scarcer kinds lack, functions make up
        wanted = shares[kind] if kind != "function" else count - len(chosen)
        chosen += _spread(found[kind], wanted)
    order = sorted(chosen, key=lambda prompt: (_KINDS.index(prompt.kind), prompt.source, prompt.id))
    return [
        Prompt(f"python-{number:03d}", item.kind, item.source, item.prompt)
        for number, item in enumerate(order)
    ]


def heads(module: str, text: str) -> Iterator[Prompt]:
    """The heads in one cleaned module: signatures with docstrings, classes, the module's own."""
    lines = text.split("\n")
    tree = parse(text)
    opening = "\n".join(lines[:_MODULE_LINES]).rstrip() + "\n"
    if len(opening) >= 120:
        yield Prompt(f"{module}:module", "module", module, opening[:_LONGEST])
    for node in tree.body:
        if isinstance(node, _Definition) and not is_stub(node):
            head = _head(node, lines)
            if head and len(head) <= _LONGEST:
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                yield Prompt(f"{module}:{node.name}:{node.lineno}", kind, module, head)


def _head(node: _Definition, lines: list[str]) -> str:
    """From the first decorator to the docstring's end, or the signature's if there is none."""
    body = node.body[0]
    if first_line(body) < node.lineno:
        return ""  # all on one line: there is nothing to go on with
    if ast.get_docstring(node, clean=False) is not None:
        end = body.end_lineno or body.lineno
    else:
        end = first_line(body)
        while end > node.lineno and not lines[end - 1].rstrip().endswith(":"):
            end -= 1  # comments between the signature and the first statement
    return "\n".join(lines[first_line(node) : end]) + "\n"


def _spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` of them at most, one of each module before the second of any."""
    turns: dict[str, int] = {}
    ranked = []
    for prompt in sorted(prompts, key=lambda prompt: stable_hash(prompt.id)):
        turns[prompt.source] = turns.get(prompt.source, -1) + 1
        ranked.append((turns[prompt.source], stable_hash(prompt.id), prompt))
    return [prompt for _, _, prompt in sorted(ranked, key=lambda row: row[:2])[:count]]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the suite and its card; returns the exit status."""
    parser = argparse.ArgumentParser("workbench.data.prompts", description=__doc__)
    parser.add_argument("--out", type=Path, default=repository_root() / DATASETS / "prompts")
    parser.add_argument("--count", type=int, default=128)
    arguments = parser.parse_args(argv)
    prompts = make_prompts(stdlib_files(), arguments.count)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(prompt)) + "\n" for prompt in prompts)
    (arguments.out / "python.jsonl").write_text(text, encoding="utf-8")
    (arguments.out / "README.md").write_text(_card(prompts), encoding="utf-8")
    sys.stdout.write(f"{len(prompts)} prompts in {arguments.out}\n")
    return 0


def _card(prompts: list[Prompt]) -> str:
    kinds = "\n".join(
        f"| {kind} | {sum(prompt.kind == kind for prompt in prompts)} |" for kind in _KINDS
    )
    modules = ", ".join(f"`{name}`" for name in sorted({prompt.source for prompt in prompts}))
    return f"""# Prompt suite `python`

{len(prompts)} pieces of Python to go on from, one JSON object a line: `id`, `kind`, `source` (the
module) and `prompt`. Read it with `workbench.data.prompts.load_prompts("python")`.

| kind | prompts |
|---|---:|
{kinds}

They come from modules of the standard library (CPython {platform.python_version()}) that the
hold-out rule (`workbench/data/holdout.py`) keeps away from training, so the embedded model has not
seen them: {modules}.

Made by `python -m workbench.data.prompts`. Licence: PSF-2.0, © Python Software Foundation.
"""


if __name__ == "__main__":
    raise SystemExit(main())
