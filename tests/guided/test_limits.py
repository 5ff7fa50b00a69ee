"""No grammar stops, ends or starves the engine: time, memory, stack, and the cache's bound."""

from __future__ import annotations

import gc
import os
import signal
import time
from concurrent.futures import Future
from typing import Any

import psutil
import pytest
from guiding import compiled

from workbench.errors import EngineClosed, GuideFailed, RequestError, WorkbenchError
from workbench.guided import CompiledGrammar, GrammarCache, GrammarCompiler, Guide
from workbench.guided_params import GuidedDecodingParams
from workbench.models.tokenizer import Tokenizer

MIB = 2**20


def nested(depth: int) -> dict[str, Any]:
    """Return a schema of objects inside objects."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {
            "type": "object",
            "properties": {"a": schema},
            "required": ["a"],
            "additionalProperties": False,
        }
    return schema


# Each runs for minutes or takes all memory where nothing ends it.
BOMBS: list[dict[str, Any]] = [
    {"grammar": "root ::= " + '"a"? ' * 600},
    {"grammar": 'root ::= ((("a"{0,100}){0,100}){0,100}){0,100}'},
    {"regex": "(((((a{1,200}){1,200}){1,200}){1,200}){1,200})", "backend": "xgrammar"},
    {"json": {"enum": [f"value{i}" for i in range(60_000)]}, "backend": "xgrammar"},
]


@pytest.fixture(scope="module")
def strict(tokenizer: Tokenizer) -> GrammarCompiler:
    """A compiler of small limits. Tests must not close it."""
    compiler = GrammarCompiler(tokenizer, 4096, max_seconds=2, max_bytes=64 * MIB)
    compiler.warm_up()
    yield compiler
    compiler.close()


def outcome(future: Future[CompiledGrammar]) -> str:
    """Return the error that a compilation ends with."""
    with pytest.raises(RequestError) as caught:
        future.result(60)
    return str(caught.value)


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda b: str(b)[:40])
def test_a_bomb_ends_at_its_limit(strict: GrammarCompiler, bomb: dict[str, Any]) -> None:
    compiled(strict, regex="warm")  # the worker is up
    pid = strict._client.process_id
    future = strict.compile(GuidedDecodingParams(**bomb))
    assert "took more than" in outcome(future)
    assert strict._client.process_id == pid  # the bomb died alone
    assert compiled(strict, regex="still here").start().allowed()


@pytest.mark.slow  # starts worker processes of its own
def test_those_behind_a_bomb_do_not_wait_for_it(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, 4096, max_seconds=600)
    try:
        bomb = compiler.compile(GuidedDecodingParams(grammar="root ::= " + '"b"? ' * 600))
        assert compiled(compiler, regex="quick [0-9]+").start().allowed()
        assert not bomb.done()  # nor did the caller wait
    finally:
        compiler.close()


@pytest.mark.slow  # starts worker processes of its own
def test_memory_is_bounded(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, 4096, max_seconds=60, max_bytes=24 * MIB)
    try:
        choices = [f"choice number {i}" for i in range(100_000)]
        text = outcome(compiler.compile(GuidedDecodingParams(choice=choices)))
        assert "took more than 24 MiB" in text
        assert compiled(compiler, regex="still here").start().allowed()
    finally:
        compiler.close()


@pytest.mark.parametrize(
    "constraint",
    [
        {"json": nested(120)},
        {"json": nested(300)},
        {"regex": "(" * 20_000 + "a" + ")" * 20_000},
        {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
        {
            "grammar": "root ::= r0\n"
            + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40))
            + 'r40 ::= "a"',
            "backend": "llguidance",
        },
        {"regex": r"(\p{L}{1,1000}){1,1000}" * 3},
    ],
    ids=lambda c: str(c)[:30],
)
def test_depth_and_size_are_refused_or_work(
    strict: GrammarCompiler, constraint: dict[str, Any]
) -> None:
    try:
        grammar = strict.compile(GuidedDecodingParams(**constraint)).result(60)
    except RequestError:
        return
    assert grammar.start().allowed()


def test_a_grammar_that_explodes_while_it_runs_fails_alone(strict: GrammarCompiler) -> None:
    grammar = compiled(strict, regex=r"((a{0,100}){0,100}){0,100}")
    neighbour = grammar.start()
    first = neighbour.allowed()
    a = next(i for i in first if strict.vocabulary.tokens[i] == b"a")
    guide = grammar.start()
    start = time.process_time()
    with pytest.raises(GuideFailed, match="llguidance: "):
        _repeat(guide, a, 10_000)
    assert time.process_time() - start < 30
    with pytest.raises(GuideFailed):
        guide.allowed()
    # Not even guides of the same grammar notice.
    assert neighbour.allowed() == first
    neighbour.accept(a)
    assert a in neighbour.allowed()
    assert grammar.start().allowed() == first


def _repeat(guide: Guide, token_id: int, times: int) -> None:
    for _ in range(times):
        guide.accept(token_id)
        guide.allowed()


def test_catastrophic_backtracking_is_none_here(strict: GrammarCompiler) -> None:
    for pattern in (r"(a*)*b", r"(a|aa)+$", r"(a|b)*a(a|b){30}", r"(x+x+)+y"):
        guide = compiled(strict, regex=pattern).start()
        slowest = 0.0
        for _ in range(60):
            start = time.process_time()
            allowed = guide.allowed()
            slowest = max(slowest, time.process_time() - start)
            guide.accept(min(i for i in allowed if i != 2))
            if guide.finished:
                break
        assert slowest < 5


@pytest.mark.slow  # starts worker processes of its own
def test_a_worker_that_cannot_be_started_is_told_and_tried_again(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def submit(*_: Any) -> None:
        tried.append(1)
        raise OSError("no more processes")

    compiler = GrammarCompiler(tokenizer, 4096)
    monkeypatch.setattr(compiler._client, "submit", submit)
    for _ in range(2):
        with pytest.raises(WorkbenchError, match="no more processes"):
            compiled(compiler, regex="a+")
    assert len(tried) == 2
    compiler.close()


def test_equal_constraints_share_one_compilation(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, 4096, max_seconds=60)
    try:
        params = GuidedDecodingParams(json={"type": "integer"})
        first, second = compiler.compile(params), compiler.compile(params)
        assert first is second
        assert not first.cancel()
        grammar = first.result(60)
        spaced = GuidedDecodingParams(json='{ "type":\n"integer" }')
        again = compiler.compile(spaced)
        assert again.done()
        assert again.result() is grammar
        named = GuidedDecodingParams(json={"type": "integer"}, backend="xgrammar")
        assert compiler.compile(named).result(60) is not grammar
        compact = GuidedDecodingParams(json={"type": "integer"}, max_whitespace=0)
        assert compiler.compile(compact).result(60) is not grammar
        assert "hits=1 of" in repr(compiler)
        _survives_a_killed_worker(compiler)
        _closing_fails_what_is_on_its_way(compiler)
    finally:
        compiler.close()


def _survives_a_killed_worker(compiler: GrammarCompiler) -> None:
    pid = compiler._client.process_id
    assert pid is not None
    bomb = compiler.compile(GuidedDecodingParams(grammar="root ::= " + '"a"? ' * 600))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkbenchError, match="process that compiles grammars ended"):
        bomb.result(60)
    assert compiled(compiler, regex="a new worker").start().allowed()
    assert compiler._client.process_id != pid


def _closing_fails_what_is_on_its_way(compiler: GrammarCompiler) -> None:
    pid = compiler._client.process_id
    bomb = compiler.compile(GuidedDecodingParams(grammar="root ::= " + '"c"? ' * 600))
    compiler.close()
    with pytest.raises(WorkbenchError):
        bomb.result(60)
    assert pid is not None
    assert ended(pid)
    with pytest.raises(EngineClosed):
        compiler.compile(GuidedDecodingParams(regex="a"))


def ended(pid: int, seconds: float = 60) -> bool:
    """Whether a process ends in time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not psutil.pid_exists(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_compiler_that_is_dropped_leaves_no_process(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, 4096)
    compiler.warm_up()
    pid = compiler._client.process_id
    assert pid is not None
    del compiler
    gc.collect()
    assert ended(pid)


def test_the_cache_keeps_what_was_used_last() -> None:
    class Sized(CompiledGrammar):
        def __init__(self, num_bytes: int) -> None:
            self.num_bytes = num_bytes

    cache = GrammarCache(100)
    for name in "abc":
        cache.put(name, Sized(30))
    assert cache.get("a") is not None
    cache.put("d", Sized(40))
    assert [name for name in "abcd" if name in cache] == ["a", "c", "d"]
    assert cache.num_bytes == 100
    cache.put("a", Sized(10))
    assert cache.num_bytes == 80
    cache.put("huge", Sized(101))
    assert "huge" not in cache
    assert cache.num_bytes == 80
    assert cache.get("nothing") is None
    assert (cache.num_hits, cache.num_misses) == (1, 1)
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_guides_outlive_the_cache(strict: GrammarCompiler) -> None:
    guide: Guide = compiled(strict, choice=["outlives"]).start()
    strict.cache.clear()
    gc.collect()
    assert guide.forced()
