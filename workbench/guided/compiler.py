"""`GrammarCompiler`: from `GuidedDecodingParams` to a `CompiledGrammar`, off the engine's thread.

The engine asks when a request is added and looks at the future between steps. Compiling happens in
a worker process under limits of time and memory that the kernel enforces, so that no grammar can
stop or end the engine. Equal constraints share one compilation and one cached grammar.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from workbench.config import require_positive
from workbench.describe import Described
from workbench.errors import ConfigError, EngineClosed, RequestError, WorkbenchError
from workbench.guided.cache import GrammarCache
from workbench.guided.client import Answer, WorkerClient
from workbench.guided.compiled import CompiledGrammar
from workbench.guided.jobs import Compiled, Job, Refusal
from workbench.guided.llguidance_backend import LLGuidanceBackend
from workbench.guided.spelling import Speller
from workbench.guided.vocabulary import Vocabulary
from workbench.guided.xgrammar_backend import XGrammarBackend
from workbench.guided_params import GuidedDecodingParams, GuideKind
from workbench.models.tokenizer import Tokenizer

MIB = 2**20
# The exact library first, then the one that may still take what that one refuses.
AUTO: dict[GuideKind, tuple[str, ...]] = {
    "json": ("llguidance", "xgrammar"),
    "json_object": ("llguidance",),
    "regex": ("llguidance",),
    "choice": ("llguidance",),
    "grammar": ("xgrammar",),
    "structural_tag": ("xgrammar", "llguidance"),
}
CompiledFuture = Future[CompiledGrammar]


class GrammarCompiler(Described):
    """Compiles constraints for one tokenizer and one width of logits.

    max_seconds, max_bytes: wall time and memory that compiling one constraint may take; a source
    longer than max_source_bytes is refused at once. max_cache_bytes: of grammars kept for reuse.
    eos_token_ids: what ends a text; None takes the tokenizer's. Raises `ConfigError` for a
    tokenizer whose tokens stand for no fixed bytes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        eos_token_ids: Iterable[int] | None = None,
        max_seconds: float = 10.0,
        max_bytes: int = 512 * MIB,
        max_source_bytes: int = 4 * MIB,
        max_cache_bytes: int = 256 * MIB,
    ) -> None:
        if not 0 < max_seconds < float("inf"):
            raise ConfigError("max_seconds", max_seconds, "must be a time above 0", "Raise it.")
        sizes = {"max_bytes": max_bytes, "max_source_bytes": max_source_bytes}
        for name, value in {**sizes, "vocab_size": vocab_size}.items():
            require_positive(f"GrammarCompiler.{name}", value)
        self.vocabulary = Vocabulary.of(tokenizer, vocab_size, eos_token_ids)
        self.max_seconds, self.max_bytes = float(max_seconds), max_bytes
        self.max_source_bytes = max_source_bytes
        self.cache = GrammarCache(max_cache_bytes)
        self._speller = Speller(self.vocabulary, tokenizer)
        self._backends: dict[str, XGrammarBackend | LLGuidanceBackend] = {}
        self._client = WorkerClient(self.vocabulary)
        self._lock = threading.Lock()
        self._running: dict[str, CompiledFuture] = {}
        self._job_ids = itertools.count()
        self._closed = False

    def compile(self, params: GuidedDecodingParams) -> CompiledFuture:
        """Return a future of the compiled grammar, done already where it is cached.

        It fails with `RequestError` of the field `guided_decoding` for a constraint that cannot be
        held to or that exceeds a limit. It cannot be cancelled: others may wait for the same one.
        """
        if self._closed:
            raise EngineClosed("the grammar compiler is closed; make a new one.")
        source = params.source
        backends = AUTO[params.kind] if params.backend == "auto" else (params.backend,)
        key = _key(params, source, backends)
        with self._lock:
            if key in self._running:
                return self._running[key]
            future: CompiledFuture = Future()
            future.set_running_or_notify_cancel()
            cached = self.cache.get(key)
            if cached is not None:
                future.set_result(cached)
                return future
            num_bytes = len(source.encode())
            if num_bytes > self.max_source_bytes:
                problem = f"{num_bytes} bytes long, of at most {self.max_source_bytes}"
                future.set_exception(_error(params, problem, "Make it smaller."))
                return future
            self._running[key] = future
        job = Job(
            job_id=next(self._job_ids),
            kind=params.kind,
            source=source,
            backends=backends,
            max_whitespace=params.max_whitespace,
            max_seconds=self.max_seconds,
            max_bytes=self.max_bytes,
        )
        try:
            self._client.submit(job, lambda answer: self._finish(key, params, future, answer))
        except OSError as error:  # no process, or no more files: nobody would end the future
            said = WorkbenchError(f"the process that compiles grammars cannot be started: {error}")
            self._finish(key, params, future, said)
        return future

    def warm_up(self) -> None:
        """Start the worker process now, so that the first request does not wait for it."""
        self._client.start()

    def close(self) -> None:
        """End the worker process and drop the cache. Compilations on their way fail."""
        self._closed = True
        self._client.close()
        self.cache.clear()

    def describe(self) -> dict[str, Any]:
        """Return the limits, what is being compiled and what is kept."""
        return {
            "vocab_size": self.vocabulary.vocab_size,
            "limits": f"{self.max_seconds:g} s, {self.max_bytes / MIB:.0f} MiB",
            "compiling": len(self._running),
            **self.cache.describe(),
        }

    def _finish(
        self, key: str, params: GuidedDecodingParams, future: CompiledFuture, answer: Answer
    ) -> None:
        """Turn the worker's answer into the future's. Runs on the client's thread."""
        try:
            if isinstance(answer, WorkbenchError):
                raise answer
            if isinstance(answer, Refusal):
                raise _error(params, answer.problem, answer.fix)
            grammar = self._load(params.kind, answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the waiting request gets it
            with self._lock:
                del self._running[key]
            future.set_exception(error)
            return
        with self._lock:
            self.cache.put(key, grammar)
            del self._running[key]
        future.set_result(grammar)

    def _load(self, kind: GuideKind, compiled: Compiled) -> CompiledGrammar:
        if not self._backends:
            # Built here, once: for a large vocabulary this takes a second or two.
            exact = XGrammarBackend(self.vocabulary)
            spell = self._speller.encode
            self._backends = {
                "xgrammar": exact,
                "llguidance": LLGuidanceBackend(self.vocabulary, spell, exact.check_grammar),
            }
        start = self._backends[compiled.backend].load(compiled.payload)
        return CompiledGrammar(kind, compiled.backend, start, self.vocabulary, compiled.num_bytes)


def _key(params: GuidedDecodingParams, source: str, backends: tuple[str, ...]) -> str:
    """Return what equal constraints have in common."""
    content = json.dumps([params.kind, backends, params.max_whitespace, source])
    return hashlib.sha256(content.encode()).hexdigest()


def _error(params: GuidedDecodingParams, problem: str, fix: str) -> RequestError:
    return RequestError("guided_decoding", {params.kind: params.source}, problem, fix)
