"""`Guide`: tokens in and back, forks, ends, jumps and drafts, the same over both libraries."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from guiding import BOTH, byte_ids, compiled, in_process
from tiny_tokenizers import BUILDERS, wrap

from workbench.errors import GuideFailed
from workbench.guided import (
    CompiledGrammar,
    GrammarCompiler,
    Guide,
    Vocabulary,
    draft_masks,
)
from workbench.models.tokenizer import Tokenizer
from workbench.sample.bitmask import allocate_bitmask

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    {"json": SCHEMA},
    {"regex": r"[a-z]+(-[0-9]{2})*"},
    {"choice": ["yes", "no", "yesterday", 'naïve\n"café"', "日本"]},
    {"grammar": 'root ::= item ("," item)*\nitem ::= [0-9]+ | "(" root ")"'},
]
EOS = 2


@pytest.fixture(params=[(b, i) for b in BOTH for i in range(len(CONSTRAINTS))], ids=str)
def grammar(request: pytest.FixtureRequest, compiler: GrammarCompiler) -> CompiledGrammar:
    """Every kind of constraint on every backend."""
    backend, index = request.param
    return compiled(compiler, backend, **CONSTRAINTS[index])


def walk(guide: Guide, chance: random.Random, num_tokens: int) -> list[int]:
    """Accept random allowed tokens, no end token; return them."""
    taken = []
    while len(taken) < num_tokens:
        allowed = [i for i in guide.allowed() if i != EOS]
        if not allowed:
            break
        taken.append(chance.choice(allowed))
        guide.accept(taken[-1])
    return taken


def after(grammar: CompiledGrammar, token_ids: list[int]) -> Guide:
    """Return a fresh guide that has accepted these."""
    guide = grammar.start()
    for token_id in token_ids:
        guide.accept(token_id)
    return guide


def state(guide: Guide) -> tuple[int, list[int], bool, bool, bool]:
    """Return everything a guide tells."""
    told = (guide.accepting, guide.ended, guide.finished)
    return (guide.num_tokens, guide.allowed(), *told)


@pytest.mark.parametrize("seed", range(4))
def test_rollback_and_fork_equal_a_fresh_run(grammar: CompiledGrammar, seed: int) -> None:
    chance = random.Random(seed)
    guide = grammar.start()
    tokens: list[int] = []
    for _ in range(8):
        tokens += walk(guide, chance, chance.randint(1, 6))
        twin = guide.fork()
        back = chance.randint(0, len(tokens))
        guide.rollback(back)
        assert state(twin) == state(after(grammar, tokens))
        walk(twin, chance, 3)  # leaves the other as it is
        tokens = tokens[: len(tokens) - back]
        assert state(guide) == state(after(grammar, tokens))


def test_an_end_token_is_allowed_exactly_where_the_grammar_accepts(
    grammar: CompiledGrammar,
) -> None:
    chance = random.Random(1)
    for _ in range(20):
        guide = grammar.start()
        for _ in range(40):
            assert (EOS in guide.allowed()) == guide.accepting
            twin = guide.fork()
            assert twin.try_accept(EOS) == guide.accepting
            if not walk(guide, chance, 1):
                break


def test_nothing_follows_an_end_token(compiler: GrammarCompiler) -> None:
    for backend in BOTH:
        guide = compiled(compiler, backend, regex="ab?").start()
        guide.accept(byte_ids(compiler)[ord("a")])
        assert guide.accepting
        assert not guide.finished
        guide.accept(EOS)
        assert guide.ended
        assert guide.finished
        assert guide.allowed() == [EOS]
        assert not guide.try_accept(EOS)
        assert not guide.try_accept(byte_ids(compiler)[ord("b")])
        assert guide.fork().ended
        guide.rollback(1)
        guide.accept(byte_ids(compiler)[ord("b")])
        assert guide.finished
        assert not guide.ended
        guide.accept(EOS)
        guide.rollback(3)
        assert state(guide) == state(compiled(compiler, backend, regex="ab?").start())


def test_what_is_not_allowed_changes_nothing(grammar: CompiledGrammar) -> None:
    guide = grammar.start()
    walk(guide, random.Random(3), 2)
    before = state(guide)
    forbidden = set(range(4096)) - set(guide.allowed())
    refused = [i for i in sorted(forbidden)[:200] if not guide.fork().try_accept(i)]
    for token_id in [*refused, -1, 4096, 10**9, 0, 5]:
        with pytest.raises(GuideFailed, match="not allowed here"):
            guide.accept(token_id)
    assert state(guide) == before


@pytest.mark.parametrize("backend", BOTH)
def test_two_end_tokens_both_end(tokenizer: Tokenizer, backend: str) -> None:
    guide = in_process(tokenizer, 4100, backend, choice=["a"], eos_token_ids=[4, 2])
    assert not {2, 4} & set(guide.allowed())
    guide.accept(tokenizer.encode("a")[-1])
    assert guide.allowed() == [2, 4]
    assert all(guide.fork().try_accept(i) for i in (2, 4))


@pytest.mark.parametrize("kind", sorted(BUILDERS))
@pytest.mark.parametrize("backend", BOTH)
def test_every_tokenizer_and_padded_heads(kind: str, backend: str) -> None:
    tokenizer = Tokenizer(wrap(BUILDERS[kind]()))
    tokens = Vocabulary.of(tokenizer, tokenizer.vocab_size).tokens
    width = tokenizer.vocab_size + 45
    start = in_process(tokenizer, width, backend, regex=r"(hello|def|the|[^<]| )*")
    chance = random.Random(0)
    for _ in range(10):
        guide, text = start.fork(), b""
        for _ in range(30):
            allowed = [i for i in guide.allowed() if i not in tokenizer.eos_token_ids]
            assert max(allowed) < tokenizer.vocab_size
            token_id = chance.choice(allowed)
            guide.accept(token_id)
            assert tokens[token_id]
            text += tokens[token_id]
        assert b"<" not in text


@pytest.mark.parametrize("backend", BOTH)
def test_a_vocabulary_that_cannot_spell_the_text_is_reported(backend: str) -> None:
    tokenizer = Tokenizer(wrap(BUILDERS["metaspace"]()))  # knows few characters, and no bytes
    guide = in_process(tokenizer, tokenizer.vocab_size, backend, choice=["\u16a0"])
    with pytest.raises(GuideFailed, match="spells what must follow"):
        guide.allowed()


def test_forced_tokens_are_the_only_way(compiler: GrammarCompiler) -> None:
    for backend in BOTH:
        grammar = compiled(compiler, backend, regex=r"(x|y)☃☃[0-9]")
        guide = grammar.start()
        assert guide.forced() == []
        guide.accept(byte_ids(compiler)[ord("x")])
        forced = guide.forced()
        assert forced
        assert guide.num_tokens == 1
        for token_id in forced:
            assert guide.allowed() == [token_id]
            guide.accept(token_id)
        assert len(guide.allowed()) > 1
        guide.rollback(len(forced))
        assert guide.forced(limit=1) == forced[:1]
    done = compiled(compiler, choice=["a"]).start()
    done.accept(byte_ids(compiler)[ord("a")])
    assert done.forced() == []


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_of_drafts(grammar: CompiledGrammar, seed: int) -> None:
    chance = random.Random(seed)
    guide = grammar.start()
    prefix = walk(guide, chance, 2)
    tokens = walk(guide.fork(), chance, 5)
    if tokens:
        tokens[chance.randrange(len(tokens))] = chance.randrange(4096)
    before = state(guide)
    masks = draft_masks(guide, tokens)
    assert state(guide) == before
    good = masks.allowed.index(False) if False in masks.allowed else len(tokens)
    assert not any(masks.allowed[good:])
    for i in range(len(tokens) + 1):
        expected = allocate_bitmask(1, 4096)[0]
        if i <= good:
            after(grammar, prefix + tokens[:i]).fill(expected)
        assert torch.equal(masks.bitmask[i], expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_of_drafts(grammar: CompiledGrammar, seed: int) -> None:
    chance = random.Random(seed)
    guide = grammar.start()
    prefix = walk(guide, chance, 1)
    tokens: list[int] = []
    parents: list[int] = []
    for i in range(12):
        parent = chance.randint(-1, i - 1)
        path = path_to(parent, tokens, parents)
        twin = after(grammar, prefix)
        valid = all(twin.try_accept(t) for t in path)
        options = twin.allowed() if valid else [7]
        tokens.append(chance.choice(options) if chance.random() < 0.8 else chance.randrange(4096))
        parents.append(parent)
    before = state(guide)
    masks = draft_masks(guide, tokens, parents)
    assert state(guide) == before
    for i in range(12):
        twin = after(grammar, prefix)
        valid = all(twin.try_accept(t) for t in path_to(i, tokens, parents))
        assert masks.allowed[i] == valid
        expected = allocate_bitmask(1, 4096)[0]
        if valid:
            twin.fill(expected)
        assert torch.equal(masks.bitmask[i + 1], expected)


def path_to(node: int, tokens: list[int], parents: list[int]) -> list[int]:
    """Return the draft tokens from the root to a node."""
    path = []
    while node >= 0:
        path.append(tokens[node])
        node = parents[node]
    return path[::-1]


def test_a_token_that_drafts_reject_can_be_an_end(compiler: GrammarCompiler) -> None:
    a = byte_ids(compiler)[ord("a")]
    for backend in BOTH:
        guide = compiled(compiler, backend, regex="a{1,3}").start()
        masks = draft_masks(guide, [EOS, a, EOS, a], [-1, -1, 1, 2])
        assert masks.allowed == [False, True, True, False]
        bits = np.unpackbits(masks.bitmask[3].numpy().view(np.uint8), bitorder="little")
        assert np.flatnonzero(bits).tolist() == [EOS]


def test_guides_show_themselves(grammar: CompiledGrammar) -> None:
    assert grammar.backend in repr(grammar)
    assert "tokens=0" in repr(grammar.start())
