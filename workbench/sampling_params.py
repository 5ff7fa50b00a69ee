"""`SamplingParams`: how the tokens of one request are chosen, when it ends, and what it reports.

Frozen and checked when made, so that whatever reaches the engine is free of contradictions that can
be seen without a model; `workbench.sample.check_params` adds what only a vocabulary can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import RequestError
from workbench.guided_params import GuidedDecodingParams
from workbench.keywords import known_keywords

if TYPE_CHECKING:
    from torch import Tensor

# (token ids so far, logits [V]) -> logits [V]
LogitsProcessor = Callable[[list[int], "Tensor"], "Tensor"]
EarlyStopping = bool | Literal["never"]


@known_keywords(RequestError)
@dataclass(frozen=True, slots=True, repr=False)
class SamplingParams:
    """How the tokens of one request are chosen, when it ends, and what it reports.

    Choice. temperature: 0 is greedy. top_k: keep the k likeliest (None: all). top_p: keep the
    smallest set holding this probability. min_p: drop tokens less likely than this fraction of the
    likeliest. seed: fixes the draw whatever the batch.
    Before that, in this order: logits_processors (callables `(token_ids, logits [V]) -> logits`),
    repetition_penalty (of prompt and output, CTRL: divides positive logits, multiplies negative
    ones), presence_penalty and frequency_penalty (of output, subtracted once, and per occurrence),
    logit_bias ({token id: added}), and what is forbidden: bad_words (texts, or lists of token ids),
    no_repeat_ngram_size (no n-gram of prompt and output occurs twice), end tokens before
    min_tokens, and whatever guided_decoding (a schema, grammar, list…) does not allow next.
    End. max_tokens: new tokens at most. stop: strings that end the text (left out of it unless
    include_stop_str). stop_token_ids: ids that end it. ignore_eos: go on past the model's end.
    Branches. n: continuations to return, of best_of made (None: n), the likeliest first; branch i
    draws with seed + i. beam_width: beam search instead, of which the n best are returned;
    length_penalty: a finished beam scores its log-probability / length ** this; early_stopping:
    True ends with `beam_width` finished beams, False when no better one is likely, `never` when
    none is possible. beam_groups with diversity_penalty: diverse groups (Vijayakumar et al. 2016).
    Reports. logprobs: this many top log-probabilities beside each chosen token; prompt_logprobs:
    the same for the prompt's. hidden_states: keep what the model makes of each token, after the
    final norm. activations: keep what these modules give out (`layers.3`, `layers.3.attention`; see
    `model.activation_points`). echo: the text begins with the prompt. truncate_prompt_tokens: keep
    the prompt's last tokens only.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    hidden_states: bool = False
    activations: tuple[str, ...] = ()
    echo: bool = False
    truncate_prompt_tokens: int | None = None
    n: int = 1
    best_of: int | None = None
    beam_width: int | None = None
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    beam_groups: int = 1
    diversity_penalty: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int | None = None
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    guided_decoding: GuidedDecodingParams | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled, and turn lists and tables into tuples."""
        self._freeze()
        self._check_choice()
        self._check_length()
        self._check_guide()
        self._check_branches()
        self._check_reports()

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token is taken, or beam search decides."""
        return self.temperature == 0.0 or self.beam_width is not None

    @property
    def num_branches(self) -> int:
        """How many sequences this request runs: beams, or `best_of`, or `n`."""
        return self.beam_width or self.best_of or self.n

    @property
    def points(self) -> tuple[str, ...]:
        """Where rows are kept of each token: `activations`, and "", the model's own output."""
        return tuple(dict.fromkeys((*self.activations, *([""] if self.hidden_states else []))))

    def __repr__(self) -> str:
        """What differs from the defaults, as one would write it."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        changed = (f"{field.name}={value!r}" for field, value in values if value != field.default)
        return f"SamplingParams({', '.join(changed)})"

    def _freeze(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        points = (self.activations,) if isinstance(self.activations, str) else self.activations
        bias = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        frozen = {
            "stop": _tuple_of("stop", stop, str),
            "activations": _tuple_of("activations", points, str),
            "stop_token_ids": _tuple_of("stop_token_ids", self.stop_token_ids, int),
            "bad_words": tuple(_bad_word(word) for word in _items("bad_words", self.bad_words)),
            "logit_bias": tuple(_bias(pair) for pair in _items("logit_bias", bias)),
            "logits_processors": _items("logits_processors", self.logits_processors),
        }
        for name, value in frozen.items():
            object.__setattr__(self, name, value)

    def _check_choice(self) -> None:
        temperature_fix = "0 is greedy; 1 leaves the model as it is."
        _real("temperature", self.temperature, 0.0, math.inf, temperature_fix)
        _optional_whole("top_k", self.top_k, 1)
        _real("top_p", self.top_p, 0.0, 1.0, "1 keeps every token.", low_open=True)
        _real("min_p", self.min_p, 0.0, 1.0, "0 keeps every token.")
        _optional_whole("seed", self.seed, 0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, math.inf, "1 is none.", True)
        _real("presence_penalty", self.presence_penalty, -math.inf, math.inf, "0 is none.")
        _real("frequency_penalty", self.frequency_penalty, -math.inf, math.inf, "0 is none.")
        _optional_whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 1)
        if len(dict(self.logit_bias)) < len(self.logit_bias):
            fix = "Give each token one bias."
            raise RequestError("logit_bias", self.logit_bias, "names a token twice", fix)
        for processor in self.logits_processors:
            if not callable(processor):
                fix = "Pass functions `(token_ids, logits) -> logits`."
                raise RequestError("logits_processors", processor, "is not callable", fix)

    def _check_length(self) -> None:
        if "" in self.stop:
            raise RequestError("stop", self.stop, "an empty string would stop at once", "Drop it.")
        _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            problem = f"more than max_tokens={self.max_tokens}"
            raise RequestError("min_tokens", self.min_tokens, problem, "Lower it.")

    def _check_guide(self) -> None:
        guide = self.guided_decoding
        if guide is None:
            return
        if not isinstance(guide, GuidedDecodingParams):
            fix = "Pass `GuidedDecodingParams(json=…)`, or another constraint."
            raise RequestError("guided_decoding", guide, "is not a GuidedDecodingParams", fix)
        if self.ignore_eos:
            problem = "a guided text ends with the model's end token"
            raise RequestError("ignore_eos", True, problem, "Leave it out.")

    def _check_branches(self) -> None:
        _whole("n", self.n, 1)
        _optional_whole("best_of", self.best_of, 1)
        _optional_whole("beam_width", self.beam_width, 1)
        if self.beam_width is not None:
            self._check_beams(self.beam_width)
        elif self.num_branches < self.n:
            fix = "Make at least as many as you return."
            raise RequestError("best_of", self.best_of, f"less than n={self.n}", fix)
        elif self.num_branches > 1 and self.greedy:
            fix = "Raise the temperature, or set beam_width."
            raise RequestError("n", self.num_branches, "greedy branches would be equal", fix)

    def _check_beams(self, width: int) -> None:
        if self.best_of is not None or self.n > width:
            fix = "Set beam_width, and n to at most that."
            raise RequestError("n", (self.n, self.best_of), f"not with beam_width={width}", fix)
        for name in ("seed", "top_k"):
            if getattr(self, name) is not None:
                fix = "Leave it out: beam search draws nothing."
                raise RequestError(name, getattr(self, name), "has no meaning for beams", fix)
        if self.top_p != 1.0 or self.min_p != 0.0:
            fix = "Leave both out: beam search draws nothing."
            raise RequestError("top_p, min_p", (self.top_p, self.min_p), "not for beams", fix)
        if self.early_stopping not in (True, False, "never"):
            fix = 'Give True, False or "never".'
            raise RequestError("early_stopping", self.early_stopping, "is no rule", fix)
        _real("length_penalty", self.length_penalty, -math.inf, math.inf, "1 is the mean.")
        _real("diversity_penalty", self.diversity_penalty, 0.0, math.inf, "0 is none.")
        _whole("beam_groups", self.beam_groups, 1)
        if width % self.beam_groups:
            fix = "Make beam_width a multiple of beam_groups."
            raise RequestError("beam_groups", self.beam_groups, f"does not divide {width}", fix)

    def _check_reports(self) -> None:
        _optional_whole("logprobs", self.logprobs, 0)
        _optional_whole("prompt_logprobs", self.prompt_logprobs, 0)
        if not isinstance(self.hidden_states, bool):
            fix = "Pass True or False."
            raise RequestError("hidden_states", self.hidden_states, "is no bool", fix)
        _optional_whole("truncate_prompt_tokens", self.truncate_prompt_tokens, 1)


# A sampling parameter that was given to `generate` or `add` -> where it belongs.
IN_PARAMS = {
    field.name: f"It belongs into the parameters: `wb.SamplingParams({field.name}=…)`."
    for field in fields(SamplingParams)
}


def _whole(name: str, value: Any, least: int, fix: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        problem = f"must be a whole number of at least {least}"
        raise RequestError(name, value, problem, fix or f"Give {least} or more.")


def _optional_whole(name: str, value: Any, least: int) -> None:
    if value is not None:
        fix = "None keeps every token." if name == "top_k" else "Or leave it out."
        _whole(name, value, least, fix)


def _real(name: str, value: Any, low: float, high: float, fix: str, low_open: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and low <= value <= high
    if not inside or (low_open and value == low):
        bracket = "(" if low_open or low == -math.inf else "["
        raise RequestError(name, value, f"must lie in {bracket}{low:g}, {high:g}]", fix)


def _items(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise RequestError(name, values, "must be a list", "Put it into a list.")
    return tuple(values)


def _tuple_of(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    items = tuple(values) if isinstance(values, Iterable) else (values,)
    if not all(isinstance(item, kind) for item in items):
        problem = f"must be a sequence of {kind.__name__}"
        raise RequestError(name, values, problem, f"Give a list of {kind.__name__}.")
    return items


def _bad_word(word: Any) -> str | tuple[int, ...]:
    word = word if isinstance(word, str) else _tuple_of("bad_words", word, int)
    if not word:
        raise RequestError("bad_words", word, "an empty one is in every text", "Drop it.")
    return word  # type: ignore[no-any-return]


def _bias(pair: Any) -> tuple[int, float]:
    try:
        token_id, bias = pair
    except (TypeError, ValueError):
        fix = "Give {token id: number added to its logit}."
        raise RequestError("logit_bias", pair, "is no (token id, bias) pair", fix) from None
    _whole("logit_bias", token_id, 0)
    if bias != -math.inf:  # which forbids the token
        _real("logit_bias", bias, -math.inf, math.inf, "-inf forbids a token.")
    return token_id, float(bias)
