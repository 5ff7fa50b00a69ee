"""What a vocabulary cannot do is refused with the field, the value and the fix."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tiny import VOCAB, tokenizer

from workbench.errors import RequestError
from workbench.models.tokenizer import Tokenizer
from workbench.sample import bad_word_ids, check_params
from workbench.sampling_params import SamplingParams

FITTING: list[dict[str, Any]] = [
    {"logprobs": 20, "prompt_logprobs": 20},
    {"logit_bias": {0: 1e30, 19: -math.inf}},
    {"stop_token_ids": (0, 19), "bad_words": [[0, 19]]},
    {"repetition_penalty": 1e-30, "presence_penalty": -5e4, "frequency_penalty": 1e30},
    {"top_k": 1000},
]
UNFITTING: list[tuple[dict[str, Any], str]] = [
    ({"logprobs": 21}, "logprobs=21: the model has only 20 tokens. Ask for 20 or fewer"),
    ({"prompt_logprobs": 21}, "prompt_logprobs=21: the model has only 20 tokens"),
    ({"logit_bias": {20: 1.0}}, "logit_bias=20: is outside the vocabulary of 20"),
    ({"logit_bias": {3: 1e39}}, r"logit_bias=1e\+39: is beyond what float32 can hold"),
    ({"logit_bias": {3: -1e39}}, r"logit_bias=-1e\+39: is beyond"),
    ({"stop_token_ids": (3, 20)}, "stop_token_ids=20: is outside"),
    ({"stop_token_ids": (-1,)}, "stop_token_ids=-1: is outside"),
    ({"bad_words": [[1, 2], [3, 20]]}, "bad_words=20: is outside"),
    ({"bad_words": [[-1]]}, "bad_words=-1: is outside"),
    ({"repetition_penalty": 1e39}, "repetition_penalty=.* is beyond"),
    ({"repetition_penalty": 1e-39}, "repetition_penalty=.* is beyond"),
    ({"presence_penalty": 1e39}, "presence_penalty=.* is beyond"),
    ({"frequency_penalty": -1e39}, "frequency_penalty=.* is beyond"),
]


@pytest.mark.parametrize("params", FITTING, ids=str)
def test_what_fits(params: dict[str, Any]) -> None:
    check_params(SamplingParams(**params), vocab_size=20)


@pytest.mark.parametrize(("params", "message"), UNFITTING, ids=str)
def test_what_does_not_fit(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_params(SamplingParams(**params), vocab_size=20)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logit_bias": ((1, 2.0), (1, 3.0))}, "names a token twice"),
        ({"logit_bias": {1: math.inf}}, "must lie in"),
        ({"repetition_penalty": 0.0}, "must lie in"),
        ({"repetition_penalty": -1.0}, "must lie in"),
        ({"no_repeat_ngram_size": 0}, "at least 1"),
        ({"bad_words": [""]}, "an empty one"),
        ({"bad_words": [[]]}, "an empty one"),
        ({"bad_words": "text"}, "must be a list"),
        ({"logits_processors": [3]}, "is not callable"),
        ({"min_tokens": 200}, "more than max_tokens=128"),
    ],
    ids=str,
)
def test_what_no_vocabulary_can_do(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**params)


def test_a_bad_word_counts_alone_and_after_a_space() -> None:
    words = Tokenizer(tokenizer())
    params = SamplingParams(bad_words=["return", [5, 6], "return"])
    found = bad_word_ids(params, words, VOCAB)
    assert [words.decode(word) for word in found] == ["return", " return", words.decode([5, 6])]


@pytest.mark.parametrize(
    ("word", "with_tokenizer", "message"),
    [
        ("x", False, "the engine has no tokenizer"),
        ("\ud800", True, "must be text that UTF-8 can hold"),
        ("long", True, "is outside the vocabulary"),
    ],
)
def test_bad_words_that_cannot_be_encoded(word: str, with_tokenizer: bool, message: str) -> None:
    words = Tokenizer(tokenizer()) if with_tokenizer else None
    with pytest.raises(RequestError, match=message):
        bad_word_ids(SamplingParams(bad_words=[word]), words, 3 if word == "long" else VOCAB)
