"""Walking guides in tests: texts in, allowed tokens out, and random texts that a guide allows."""

from __future__ import annotations

import random

from workbench.guided import CompiledGrammar, GrammarCompiler, Guide, Vocabulary
from workbench.guided.jobs import Job
from workbench.guided.llguidance_backend import LLGuidanceBackend
from workbench.guided.spelling import Speller
from workbench.guided.xgrammar_backend import XGrammarBackend
from workbench.guided_params import GuidedDecodingParams
from workbench.models.tokenizer import Tokenizer

BOTH = ("xgrammar", "llguidance")


def compiled(compiler: GrammarCompiler, backend: str = "auto", **constraint: object):
    """Return the compiled grammar of a constraint."""
    return compiler.compile(GuidedDecodingParams(backend=backend, **constraint)).result(60)


def in_process(
    tokenizer: Tokenizer,
    width: int,
    backend: str,
    eos_token_ids: list[int] | None = None,
    **constraint: object,
) -> Guide:
    """Return a guide compiled here, without the worker that takes seconds to start."""
    vocabulary = Vocabulary.of(tokenizer, width, eos_token_ids)
    params = GuidedDecodingParams(**constraint)
    exact = XGrammarBackend(vocabulary)
    library = exact
    if backend == "llguidance":
        speller = Speller(vocabulary, tokenizer)
        library = LLGuidanceBackend(vocabulary, speller.encode, exact.check_grammar)
    job = Job(0, params.kind, params.source, (backend,), params.max_whitespace, 60, 2**30)
    answer = library.compile(job)
    start = library.load(answer.payload)
    return CompiledGrammar(params.kind, backend, start, vocabulary, answer.num_bytes).start()


def byte_ids(compiler: GrammarCompiler) -> dict[int, int]:
    """Return the token of each single byte."""
    tokens = enumerate(compiler.vocabulary.tokens)
    return {token[0]: i for i, token in tokens if len(token) == 1}


def accepts(compiler: GrammarCompiler, grammar: CompiledGrammar, text: str) -> bool:
    """Whether a grammar accepts a text, byte by byte, as the whole of it."""
    ids, guide = byte_ids(compiler), grammar.start()
    return all(guide.try_accept(ids[byte]) for byte in text.encode()) and guide.accepting


def random_text(
    compiler: GrammarCompiler, guide: Guide, chance: random.Random, max_tokens: int = 150
) -> bytes | None:
    """Return a text of random allowed tokens, or None if it has not ended in time.

    Tokens that close something become likelier as the text grows.
    """
    tokens, eos = compiler.vocabulary.tokens, compiler.vocabulary.eos_token_ids
    text = b""
    for count in range(max_tokens):
        allowed = guide.allowed()
        ends = [i for i in allowed if i in eos]
        if ends and (len(ends) == len(allowed) or chance.random() < 0.2 + count / 60):
            guide.accept(chance.choice(ends))
            return text
        closing = [
            i for i in allowed if tokens[i] and tokens[i][:1] in b'"}]e1,:' and len(tokens[i]) <= 2
        ]
        going_on = [i for i in allowed if i not in eos]
        token = chance.choice(closing if closing and chance.random() < count / 40 else going_on)
        guide.accept(token)
        text += tokens[token]
    return None
