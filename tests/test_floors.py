"""The floors, held by reading every import: a module sees lower floors and its own folder alone.

Imports in functions and under TYPE_CHECKING count as well, since they too say who knows whom. A
module that is on no floor fails the test: put it in `FLOORS` on purpose.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

# The part of a module's name after `workbench.` -> its floor.
FLOORS = {
    **dict.fromkeys(
        ("errors", "config", "sampling_params", "request", "batch", "results", "events"), 0
    ),
    **dict.fromkeys(
        ("describe", "interrupts", "metrics", "activations", "embeds", "guide", "guided_params"), 0
    ),
    **dict.fromkeys(("retention", "draft", "lora_batch", "step_plan"), 0),
    **dict.fromkeys(("keywords", "atomic_files", "places"), 0),
    **dict.fromkeys(("kernels", "ops", "data"), 1),
    **dict.fromkeys(("layers", "probe"), 2),
    **dict.fromkeys(("models",), 3),
    **dict.fromkeys(("cache", "scheduler", "lora", "quant", "parallel"), 4),
    **dict.fromkeys(("run", "sample", "guided", "speculation"), 5),
    **dict.fromkeys(("engine", "async_engine", "build", "llm", "memory_plan"), 6),
    **dict.fromkeys(("train", "serve", "simulate"), 7),
    **dict.fromkeys(("trace", "bench", "debug", "playground", "views", "cli", "__main__"), 8),
}
# On one floor, who may know whom, and why. The folder of top-level modules is `TOP_FOLDER`.
SIBLINGS = {
    ("ops", "kernels"): "ops is the one door to the kernels",
    ("scheduler", "cache"): "the scheduler drives the cache",
    ("guided", "sample"): "a guide fills the sampler's bitmask",
    ("run", "sample"): "a prompt is scored as tokens are",
    ("speculation", "sample"): "a draft's nodes are sampled as tokens are",
    ("speculation", "guided"): "a guide says what may follow each node of a draft",
    ("speculation", "run"): "a draft model is run as the model is",
    ("views", "trace"): "a view shows a trace",
    ("bench", "trace"): "a bench records what it measures",
    ("bench", "views"): "a bench measures them",
    ("playground", "bench"): "the playground times as the benches do",
    ("views", "playground"): "a panel drives the playground",
    ("cli", "bench"): "the command line starts the programs",
    ("cli", "playground"): "the command line starts the programs",
    ("__main__", "cli"): "python -m workbench is the command line",
}
# Modules of the top folder are siblings: they may know those on their own floor, without a ring.
TOP_FOLDER = {
    *("errors", "config", "sampling_params", "request", "batch", "results", "events"),
    *("describe", "interrupts", "metrics", "activations", "embeds", "guide", "guided_params"),
    *("keywords", "retention", "draft", "results", "lora_batch", "step_plan"),
    *("atomic_files", "places"),
    *("engine", "async_engine", "build", "llm", "memory_plan"),
}
# The package's own __init__ names everything; only the top floor may use it, as a user does.
FACE = "workbench"
TOP_FLOOR = max(FLOORS.values())


def sources(root: Path) -> dict[str, str]:
    """Return the text of every module of the package by dotted name; follows kernels' symlink."""
    found = {}
    for folder, _, names in os.walk(root / "workbench", followlinks=True):
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                parts = path.relative_to(root).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, source: str, packages: set[str], known: set[str]) -> Iterator[str]:
    """Yield the dotted name of every module of ours that a source imports, anywhere in it."""
    home = module.split(".") if module in packages else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            start = home[: len(home) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            if is_ours(base):
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield inner if inner in known else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and is_ours(str(first.value)):
                yield str(first.value)


def is_ours(name: str) -> bool:
    """Whether a dotted name lies in the package."""
    return name == "workbench" or name.startswith("workbench.")


def import_graph(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which module of ours imports which."""
    known = set(texts)
    packages = {m for m in known if any(other.startswith(f"{m}.") for other in known)} | {FACE}
    return {
        module: set(imports(module, text, packages, known)) - {module}
        for module, text in texts.items()
    }


def unit(module: str) -> str:
    """Return the part of a name that has a floor: `workbench.cache.blocks` is of `cache`."""
    return module.split(".")[1] if "." in module else FACE


def violations(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a line for every module without a floor and every import that looks up or sideways."""
    lines = [
        f"{module}: `{unit(module)}` is on no floor: give it one in FLOORS"
        for module in graph
        if module != FACE and unit(module) not in FLOORS
    ]
    for module, targets in graph.items():
        for target in sorted(targets):
            here, there = unit(module), unit(target)
            if there == FACE and FLOORS.get(here) != TOP_FLOOR:
                lines.append(f"{module} imports the package's face: name the module itself")
            elif here != there and here in FLOORS and there in FLOORS and not allowed(here, there):
                lines.append(f"{module} (floor {FLOORS[here]}) imports {target} ({FLOORS[there]})")
    return sorted(lines)


def allowed(here: str, there: str) -> bool:
    """Whether unit `here` may import unit `there`."""
    if FLOORS[here] != FLOORS[there]:
        return FLOORS[here] > FLOORS[there]
    return (here, there) in SIBLINGS or {here, there} <= TOP_FOLDER


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a ring (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph.get(module, ())):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            start = stack.index(module)
            ring = stack[start:]
            del stack[start:]
            if len(ring) > 1:
                found.append(sorted(ring))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def test_every_import_looks_down_or_stays_in_its_folder(repository: Path) -> None:
    graph = import_graph(sources(repository))
    assert len(graph) > 20, "the package was not found"
    assert violations(graph) == []


def test_no_modules_import_each_other_in_a_ring(repository: Path) -> None:
    assert cycles(import_graph(sources(repository))) == []


def test_every_sibling_pair_is_on_one_floor() -> None:
    assert [p for p in SIBLINGS if FLOORS[p[0]] != FLOORS[p[1]]] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("workbench.errors", "from workbench.engine import Engine", "floor 0"),
        ("workbench.ops.sdpa", "def f():\n    import workbench.run.runner", "floor 1"),
        (
            "workbench.cache.kv",
            "if TYPE_CHECKING:\n    from workbench.scheduler import S",
            "floor 4",
        ),
        ("workbench.cache.kv", "from ..lora import slots", "floor 4"),
        ("workbench.layers.norm", "import_module('workbench.models')", "floor 2"),
        ("workbench.engine", "import workbench as wb", "face"),
        ("workbench.engine", "from workbench import LLM", "face"),
        ("workbench.novelty", "x = 1", "on no floor"),
    ],
)
def test_the_check_sees(module: str, source: str, complaint: str) -> None:
    texts = {FACE: "", "workbench.lora": "", "workbench.lora.slots": "", module: source}
    assert complaint in "".join(violations(import_graph(texts)))


def test_the_check_allows_what_the_design_allows() -> None:
    texts = {
        FACE: "from workbench.engine import Engine",
        "workbench.engine": "from workbench.cache.kv import KVCache\nimport torch",
        "workbench.cache": "from workbench.cache.kv import KVCache",
        "workbench.cache.kv": "from . import blocks",
        "workbench.cache.blocks": "from workbench import errors",
        "workbench.errors": "",
        "workbench.scheduler.core": "from workbench.cache import KVCache",
    }
    graph = import_graph(texts)
    assert violations(graph) == []
    assert cycles(graph) == []


def test_the_check_sees_a_ring_through_a_function() -> None:
    texts = {
        "workbench.cache.kv": "from workbench.cache import blocks",
        "workbench.cache.blocks": "def f():\n    from workbench.cache.kv import KVCache",
    }
    assert cycles(import_graph(texts)) == [["workbench.cache.blocks", "workbench.cache.kv"]]
