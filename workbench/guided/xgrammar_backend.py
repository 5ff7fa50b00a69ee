"""xgrammar behind a `Guide`: compiles in the worker, loads what it compiled for the engine.

Exact for GBNF grammars and structural tags, which `auto` sends here. JSON schemas and regular
expressions it takes only as far as `xgrammar_audit` found it to enforce them. It has no limits of
its own: the worker's are needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import xgrammar
from torch import Tensor

from workbench.guided.ebnf import check_rules_end
from workbench.guided.guide import Matcher
from workbench.guided.jobs import Compiled, Job, Refused
from workbench.guided.schema_ends import check_schema
from workbench.guided.structural import formats, normal_form
from workbench.guided.vocabulary import Vocabulary
from workbench.guided.xgrammar_audit import check_regex_for_xgrammar, check_schema_for_xgrammar


class XGrammarBackend:
    """One vocabulary's compiler and loader."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._info = xgrammar.TokenizerInfo(
            list(vocabulary.tokens),
            xgrammar.VocabType.RAW,
            vocab_size=vocabulary.vocab_size,
            stop_token_ids=list(vocabulary.eos_token_ids),
        )
        # One thread: a job's memory and time are then its own.
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=1, cache_enabled=False)

    def compile(self, job: Job) -> Compiled:
        """Compile in the worker. Raises `Refused` with the library's words."""
        compiled = self._call(getattr(self, f"_{job.kind}"), job)
        return Compiled(self.name, compiled.serialize_json(), compiled.memory_size_bytes)

    def load(self, payload: str) -> Callable[[], Matcher]:
        """Return what makes matchers of a compiled grammar, at its start."""
        grammar = xgrammar.CompiledGrammar.deserialize_json(payload, self._info)
        return lambda: _XGrammarMatcher(xgrammar.GrammarMatcher(grammar))

    def check_grammar(self, source: str) -> None:
        """Raise `Refused` for a GBNF grammar with a fault, or with a rule that never ends."""
        grammar = self._call(xgrammar.Grammar.from_ebnf, source)
        check_rules_end(str(grammar))

    def _call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return function(argument)
        except RuntimeError as error:
            # "[time] file:line: what": the last part is for the user.
            message = str(error).strip().split("\n")[0]
            if "bad_alloc" in message:
                raise MemoryError from error
            raise Refused(f"xgrammar: {message.rsplit('.cc:', 1)[-1]}") from error

    def _json(self, job: Job) -> xgrammar.CompiledGrammar:
        schema = json.loads(job.source)
        check_schema(schema)
        check_schema_for_xgrammar(schema)
        compact = job.max_whitespace == 0
        return self._compiler.compile_json_schema(
            job.source,
            any_whitespace=not compact,
            separators=(",", ":") if compact else None,
            # What a schema leaves open stays open, as JSON Schema has it.
            strict_mode=False,
            max_whitespace_cnt=job.max_whitespace or None,
        )

    _json_object = _json

    def _regex(self, job: Job) -> xgrammar.CompiledGrammar:
        check_regex_for_xgrammar(job.source)
        return self._compiler.compile_regex(job.source)

    def _grammar(self, job: Job) -> xgrammar.CompiledGrammar:
        self.check_grammar(job.source)
        return self._compiler.compile_grammar(job.source)

    def _choice(self, job: Job) -> xgrammar.CompiledGrammar:
        texts = [{"type": "const_string", "value": text} for text in json.loads(job.source)]
        tag = {"type": "structural_tag", "format": {"type": "or", "elements": texts}}
        return self._compiler.compile_structural_tag(tag)

    def _structural_tag(self, job: Job) -> xgrammar.CompiledGrammar:
        tag = normal_form(job.source)
        for inner in formats(tag):
            if inner.get("type") == "json_schema":
                check_schema(inner["json_schema"])
                check_schema_for_xgrammar(inner["json_schema"])
            elif inner.get("type") == "regex":
                check_regex_for_xgrammar(inner["pattern"])
            elif inner.get("type") == "grammar":
                self.check_grammar(inner["grammar"])
        return self._compiler.compile_structural_tag(tag)


class _XGrammarMatcher:
    """A `Matcher` over xgrammar's; end tokens never reach it."""

    problem = ""

    def __init__(self, inner: xgrammar.GrammarMatcher) -> None:
        self._inner = inner

    @property
    def accepting(self) -> bool:
        return bool(self._inner.is_completed())

    def accept(self, token_id: int) -> bool:
        return bool(self._inner.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        self._inner.rollback(num_tokens)

    def fork(self) -> Matcher:
        return _XGrammarMatcher(self._inner.fork())

    def fill(self, mask: Tensor) -> None:
        self._inner.fill_next_token_bitmask(mask[None])
