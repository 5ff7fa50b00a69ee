"""Whether a model's vocabulary can do what a request's sampling parameters ask.

Called by the engine when a request is added or forked, before anything is queued. What needs no
vocabulary was checked when the `SamplingParams` were made.
"""

from __future__ import annotations

from collections.abc import Iterable

from workbench.errors import RequestError
from workbench.models.tokenizer import Tokenizer
from workbench.sampling_params import SamplingParams

# Logits are processed in float32: what is nothing or infinite there would change its meaning.
SMALLEST, LARGEST = 2.0**-126, 2.0**127


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise `RequestError` if a model of this vocabulary cannot do what `params` ask."""
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(params, name)
        if value is not None and value > vocab_size:
            problem = f"the model has only {vocab_size} tokens"
            raise RequestError(name, value, problem, f"Ask for {vocab_size} or fewer.")
    _check_ids("logit_bias", dict(params.logit_bias), vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    for word in params.bad_words:
        if not isinstance(word, str):
            _check_ids("bad_words", word, vocab_size)
    _check_sizes(params)


def bad_word_ids(
    params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """Return `params.bad_words` as token ids; raise `RequestError` for a text that has none.

    A text counts twice: as the tokenizer encodes it alone, and after a space.
    """
    words: list[tuple[int, ...]] = []
    for word in params.bad_words:
        if not isinstance(word, str):
            words.append(word)
            continue
        if tokenizer is None:
            problem = "the engine has no tokenizer to encode it with"
            raise RequestError("bad_words", word, problem, "Pass lists of token ids.")
        try:
            word.encode()
        except UnicodeEncodeError:
            problem = "must be text that UTF-8 can hold"
            raise RequestError("bad_words", word, problem, "Pass a plain str.") from None
        spellings = [tuple(tokenizer.encode(s, special=False)) for s in (word, f" {word}")]
        if not all(spellings):
            raise RequestError("bad_words", word, "has no tokens", "Drop it.")
        for spelling in spellings:
            _check_ids("bad_words", spelling, vocab_size)
        words += spellings
    return tuple(dict.fromkeys(words))


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            problem = f"is outside the vocabulary of {vocab_size}"
            raise RequestError(name, token_id, problem, "Use this model's token ids.")


def _check_sizes(params: SamplingParams) -> None:
    if not SMALLEST <= params.repetition_penalty <= LARGEST:
        problem = "is beyond what float32 can hold"
        raise RequestError("repetition_penalty", params.repetition_penalty, problem, "1 is none.")
    named = [(name, getattr(params, name)) for name in ("presence_penalty", "frequency_penalty")]
    named += [("logit_bias", bias) for bias in dict(params.logit_bias).values()]
    for name, value in named:
        if value > LARGEST or -float("inf") < value < -LARGEST:
            raise RequestError(name, value, "is beyond what float32 can hold", "Make it smaller.")
