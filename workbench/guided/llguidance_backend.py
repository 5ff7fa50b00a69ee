"""llguidance behind a `Guide`: checks in the worker, builds the same grammar for the engine.

Exact for JSON schemas, regular expressions and choices, which `auto` sends here: what it does not
support it refuses. Its grammars cannot be shipped between processes, but building one is
deterministic: what the worker could build within its limits, the engine can. While a sequence runs,
its own limits hold: a lexer or parser that grows too large stops with a reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark
from torch import Tensor

from workbench.guided.guide import UNSPELLED, Matcher
from workbench.guided.jobs import Compiled, Job, Refused
from workbench.guided.schema_ends import check_schema
from workbench.guided.structural import formats, normal_form, to_llguidance
from workbench.guided.vocabulary import Vocabulary

# JSON's whitespace, as llguidance writes it.
BLANK = r"[\x20\x0A\x0D\x09]"
ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)
Encode = Callable[[str], list[int]]
CheckGrammar = Callable[[str], None]

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions


class LLGuidanceBackend:
    """One vocabulary's checker and loader.

    encode: how the tokenizer writes a text; where the grammar leaves only one text, the masks hold
    that text's own tokens. check_grammar: what looks for faults in a GBNF grammar.
    """

    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary, encode: Encode, check_grammar: CheckGrammar) -> None:
        wrapper = TokenizerWrapper(_TokenTable(vocabulary, encode))
        eos = list(vocabulary.eos_token_ids)
        self._tokenizer = LLTokenizer(wrapper, n_vocab=vocabulary.vocab_size, eos_token=eos)
        assert self._tokenizer.vocab_size == vocabulary.vocab_size, "its masks fit the logits"
        self._check_grammar = check_grammar

    def compile(self, job: Job) -> Compiled:
        """Build the grammar in the worker, to see that it can be. Raises `Refused` if not."""
        try:
            payload = getattr(self, f"_{job.kind}")(job)
        except ValueError as error:
            raise Refused(f"llguidance: {error}") from error
        failed, messages = LLMatcher.validate_grammar_with_warnings(payload, self._tokenizer)
        if failed or messages:  # a warning says that something is not enforced
            raise Refused(f"llguidance: {_reason(messages[0])}")
        # Validation has touched what both builds share, so that this one's growth is its own.
        before = psutil.Process().memory_info().rss
        matcher = self._build(payload)
        if matcher.is_error():
            raise Refused(f"llguidance: {_reason(matcher.get_error())}")
        grown = psutil.Process().memory_info().rss - before
        return Compiled(self.name, payload, max(len(payload), grown))

    def load(self, payload: str) -> Callable[[], Matcher]:
        """Return what makes matchers of a grammar that the worker could build, at its start.

        Each is built anew: copies share their lexer, which grows as they run, so that a text on
        which it grows too large would end every sequence of the same grammar.
        """

        def start() -> Matcher:
            matcher = self._build(payload)
            assert not matcher.is_error(), "the worker built the same grammar"
            return _LLGuidanceMatcher(matcher)

        return start

    def _build(self, payload: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, payload, log_level=0)

    def _json(self, job: Job) -> str:
        check_schema(json.loads(job.source))
        limit = job.max_whitespace
        options: JsonCompileOptions = {"whitespace_flexible": limit != 0}
        if limit:
            options["whitespace_pattern"] = f"{BLANK}{{1,{limit}}}"
        return str(LLMatcher.grammar_from_json_schema(job.source, overrides=options))

    _json_object = _json

    def _regex(self, job: Job) -> str:
        return str(LLMatcher.grammar_from_regex(job.source))

    def _choice(self, job: Job) -> str:
        escaped = ("".join(map(_escape, text)) for text in json.loads(job.source))
        return str(LLMatcher.grammar_from_regex("|".join(escaped)))

    def _grammar(self, job: Job) -> str:
        self._check_grammar(job.source)
        try:
            lark = gbnf_to_lark(ESCAPE.sub(_literal, job.source))
        except Refused:
            raise
        # The converter raises whatever its parser meets, down to plain Exception.
        except Exception as error:
            problem = f"llguidance cannot convert the grammar: {_reason(str(error))}"
            raise Refused(problem, "Use backend='xgrammar'.") from error
        return str(LLMatcher.grammar_from_lark(lark))

    def _structural_tag(self, job: Job) -> str:
        tag = normal_form(job.source)
        for inner in formats(tag):
            if inner.get("type") == "json_schema":
                check_schema(inner["json_schema"])
        return str(LLMatcher.grammar_from_lark(to_llguidance(tag)))


class _TokenTable:
    """A vocabulary as llguidance asks for it: bytes, special ids, and how a text is tokenized."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, encode: Encode) -> None:
        self.eos_token_id = vocabulary.eos_token_ids[0]
        special = vocabulary.eos_token_ids
        # Special tokens need a name there; the others without bytes are simply never allowed.
        names = {i: f"<|end{i}|>".encode() for i in special}
        self.tokens = [names.get(i, token) for i, token in enumerate(vocabulary.tokens)]
        self.special_token_ids = list(special)
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text. Bytes raise TypeError, which says that text is wanted."""
        if not isinstance(text, str):
            raise TypeError("text, not bytes")
        return self._encode(text)


class _LLGuidanceMatcher:
    """A `Matcher` over llguidance's; end tokens never reach it."""

    def __init__(self, inner: LLMatcher) -> None:
        self._inner = inner

    @property
    def accepting(self) -> bool:
        return bool(self._inner.is_accepting())

    @property
    def problem(self) -> str:
        if not self._inner.is_error():
            return ""
        reason = _reason(self._inner.get_error())
        return UNSPELLED if reason.startswith("NoExtension") else f"llguidance: {reason}"

    def accept(self, token_id: int) -> bool:
        return bool(self._inner.try_consume_tokens([token_id]) == 1)

    def rollback(self, num_tokens: int) -> None:
        self._inner.rollback(num_tokens)

    def fork(self) -> Matcher:
        return _LLGuidanceMatcher(self._inner.deep_copy())

    def fill(self, mask: Tensor) -> None:
        self._inner.unsafe_compute_mask_ptr(mask.data_ptr(), mask.numel() * 4)


def _escape(character: str) -> str:
    return character if character.isalnum() else f"\\x{{{ord(character):x}}}"


def _literal(escape: re.Match[str]) -> str:
    """Return the character of a numbered escape, which the converter would garble."""
    number = escape[1] or escape[2] or escape[3]
    if not number:
        return escape[0]
    character = chr(int(number, 16))
    if not character.isprintable() or character in '"\\[]^-':
        problem = f"llguidance cannot convert the grammar: it has {escape[0]}"
        raise Refused(problem, "Use backend='xgrammar'.")
    return character


def _reason(message: str) -> str:
    """Return the lines of an error that say why, without the grammar it repeats."""
    lines = [line.strip() for line in message.split("<state>")[0].splitlines() if line.strip()]
    said = [*lines[:1], *(line for line in lines[1:] if line.startswith("error:"))]
    return " ".join(line[:200] for line in said)
