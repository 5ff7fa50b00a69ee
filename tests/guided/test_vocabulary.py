"""`Vocabulary`: the bytes of every token, for every kind of fast tokenizer."""

from __future__ import annotations

import pytest
from tiny_tokenizers import BUILDERS, wrap
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from workbench.errors import ConfigError
from workbench.guided import GrammarCompiler, Vocabulary
from workbench.guided.spelling import Speller
from workbench.models.tokenizer import Tokenizer

TEXTS = ["hello world", "def f(self):\n    return 1", "naïve café 日本", 'x = {"a": [1, 2]}']


@pytest.fixture(params=sorted(BUILDERS))
def small(request: pytest.FixtureRequest) -> Tokenizer:
    """A small tokenizer of each kind."""
    return Tokenizer(wrap(BUILDERS[request.param]()))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_what_they_decode_to(small: Tokenizer, text: str) -> None:
    vocabulary = Vocabulary.of(small, small.vocab_size)
    before = small.encode("hello")
    ids = [i for i in small.hf.encode(text, add_special_tokens=False) if vocabulary.tokens[i]]
    spelled = b"".join(vocabulary.tokens[i] for i in ids)
    # After a prompt, as a guided text is: nothing is stripped at its start.
    decoded = small.decode([*before, *ids])[len(small.decode(before)) :]
    assert spelled.decode() == decoded
    assert spelled


def test_every_byte_of_the_embedded_model_has_a_token(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary.of(tokenizer, 4096)
    assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.tokens)


def test_special_unknown_and_padded_ids_have_no_bytes(small: Tokenizer) -> None:
    vocabulary = Vocabulary.of(small, small.vocab_size + 37)
    assert len(vocabulary.tokens) == vocabulary.vocab_size == small.vocab_size + 37
    assert not any(vocabulary.tokens[small.vocab_size :])
    for name in ("<s>", "</s>", "<|user|>", "<unk>"):
        token_id = small.hf.backend_tokenizer.token_to_id(name)
        if token_id is not None:
            assert vocabulary.tokens[token_id] == b""


def test_added_text_has_its_own_bytes() -> None:
    tokenizer = Tokenizer(wrap(BUILDERS["byte_level"]()))
    vocabulary = Vocabulary.of(tokenizer, tokenizer.vocab_size)
    for text in ("    ", "<tool→>"):
        assert vocabulary.tokens[tokenizer.hf.convert_tokens_to_ids(text)] == text.encode()


def test_a_head_narrower_than_the_tokenizer(small: Tokenizer) -> None:
    assert len(Vocabulary.of(small, 100).tokens) == 100


def test_end_tokens_are_the_callers_if_given(tokenizer: Tokenizer) -> None:
    assert Vocabulary.of(tokenizer, 4096).eos_token_ids == tokenizer.eos_token_ids
    assert Vocabulary.of(tokenizer, 4096, [4, 2, 4]).eos_token_ids == (4, 2)


@pytest.mark.parametrize("eos", [[], [5000], [-1]])
def test_refuses_a_model_that_can_end_nothing(tokenizer: Tokenizer, eos: list[int]) -> None:
    with pytest.raises(ConfigError, match="no token to end"):
        Vocabulary.of(tokenizer, 4096, eos)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.CTC()])
def test_refuses_tokens_that_stand_for_no_fixed_bytes(decoder: decoders.Decoder | None) -> None:
    backend = Backend(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    if decoder is not None:
        backend.decoder = decoder
    odd = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    with pytest.raises(ConfigError, match="fixed bytes"):
        GrammarCompiler(odd, 2)


@pytest.mark.parametrize("text", [*TEXTS, "", " ", "\n"])
def test_speller_writes_exactly_the_text_or_a_start_of_it(small: Tokenizer, text: str) -> None:
    vocabulary = Vocabulary.of(small, small.vocab_size)
    ids = Speller(vocabulary, small).encode(text)
    spelled = b"".join(vocabulary.tokens[i] for i in ids)
    has_bytes = {bytes([b]) for b in text.encode()} <= set(vocabulary.tokens)
    assert spelled == text.encode() if has_bytes else text.encode().startswith(spelled)
