"""A prompt as the user gives it, made into token ids and the embeddings among them.

Called once for each request by `make_request`. Whatever is wrong with a prompt is found here.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from workbench.embeds import PromptEmbeds
from workbench.errors import RequestError
from workbench.request import Prompt
from workbench.sampling_params import SamplingParams

if TYPE_CHECKING:
    from workbench.models import DecoderLM
    from workbench.models.tokenizer import Tokenizer

PLACEHOLDER = 0  # the token id where an embedding stands: of any vocabulary, and never read


class ReadPrompt(NamedTuple):
    """A prompt: its text where it was text, a token id for each place, and what stands in place of
    ids (None: nothing)."""

    text: str | None
    token_ids: tuple[int, ...]
    embeds: PromptEmbeds | None


def read_prompt(
    prompt: Prompt, params: SamplingParams, model: DecoderLM, tokenizer: Tokenizer | None
) -> ReadPrompt:
    """Return what a prompt holds, or raise `RequestError` for an empty or impossible one."""
    if isinstance(prompt, str):
        parts: list[int | Tensor] = list(_encode(prompt, tokenizer))
    else:
        parts = [prompt] if isinstance(prompt, Tensor) else _parts(prompt)
    if not parts:
        raise RequestError("prompt", prompt, "is empty", "Give at least one token.")
    embeds = _embeds(parts, model) if any(isinstance(part, Tensor) for part in parts) else None
    ids = _token_ids(parts, model.config.vocab_size)
    if params.truncate_prompt_tokens is not None:
        dropped = max(0, len(ids) - params.truncate_prompt_tokens)
        ids, embeds = ids[dropped:], _without(embeds, dropped)
    if embeds is not None:
        _check_choice(params)
    return ReadPrompt(prompt if isinstance(prompt, str) else None, ids, embeds)


def _encode(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        fix = "Pass token ids, or a tokenizer."
        raise RequestError("prompt", text, "the engine has no tokenizer", fix)
    require_text("prompt", text)
    return tokenizer.encode(text) if text else []


def _parts(prompt: object) -> list[int | Tensor]:
    if not isinstance(prompt, Tokens) or isinstance(prompt, bytes | bytearray | memoryview):
        problem = "is neither text nor a list of token ids, nor embeddings"
        fix = "Of an array, pass `ids.tolist()`."
        if isinstance(prompt, Mapping):
            fix = "Pass the text, or the ids, by itself."
        raise RequestError("prompt", prompt, problem, fix)
    return list(prompt)


def _token_ids(parts: list[int | Tensor], vocab_size: int) -> tuple[int, ...]:
    """Return an id for each place; raise `RequestError` for one that the model does not have."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, Tensor):
            ids += [PLACEHOLDER] * len(part)
            continue
        if not isinstance(part, int) or isinstance(part, bool):
            problem, fix = f"token {len(ids)} is not an int", "Pass ints."
            if isinstance(part, str):
                fix = "A list is one prompt's token ids; several texts go to `generate`, as a list."
            raise RequestError("prompt", part, problem, fix)
        if not 0 <= part < vocab_size:
            problem = f"token {len(ids)} is outside the vocabulary of {vocab_size}"
            raise RequestError("prompt", part, problem, "Use this model's tokenizer.")
        ids.append(part)
    return tuple(ids)


def _embeds(parts: list[int | Tensor], model: DecoderLM) -> PromptEmbeds:
    rows: list[Tensor] = []
    positions: list[int] = []
    length = 0
    for part in parts:
        size = 1
        if isinstance(part, Tensor):
            rows.append(_rows(part, model))
            size = len(part)
            positions += range(length, length + size)
        length += size
    return PromptEmbeds(torch.cat(rows), tuple(positions))


def _rows(part: Tensor, model: DecoderLM) -> Tensor:
    """Return a copy of embeddings [n, hidden] on the CPU, in the model's dtype; or raise."""
    hidden = model.config.hidden_size
    shown = f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)} on {part.device}"
    if not part.is_floating_point():
        problem = "is a tensor, and not of floats as embeddings are"
        raise RequestError("prompt", shown, problem, "Of token ids, pass `ids.tolist()`.")
    if part.dim() != 2 or part.shape[1] != hidden or not len(part):
        problem = f"embeddings of this model are [tokens, {hidden}]"
        raise RequestError("prompt", shown, problem, "Give one row for each token.")
    if part.is_meta or part.layout != torch.strided:
        raise RequestError("prompt", shown, "holds no numbers to copy", "Give a dense tensor.")
    rows = part.detach().to("cpu", model.dtype, copy=True)
    if not rows.isfinite().all():
        problem = f"holds NaN or infinity, or does in the model's {model.config.dtype}"
        raise RequestError("prompt", shown, problem, "Look at how the embeddings were made.")
    return rows


def check_embeds(embeds: PromptEmbeds | None, num_tokens: int, model: DecoderLM) -> None:
    """Raise `RequestError` unless embeddings that were saved elsewhere fit prompt and model."""
    if embeds is None:
        return
    _rows(embeds.rows, model)
    places = embeds.positions
    rising = all(a < b for a, b in pairwise((-1, *places, num_tokens)))
    if not rising or len(places) != len(embeds.rows):
        problem = f"no places of {len(embeds.rows)} embeddings in {num_tokens} tokens"
        raise RequestError("prompt", places, problem, "Save the request again.")


def _without(embeds: PromptEmbeds | None, dropped: int) -> PromptEmbeds | None:
    """Return what is left of embeddings when a prompt loses its first tokens."""
    if embeds is None or not dropped:
        return embeds
    kept = slice(embeds.within(0, dropped).stop, None)
    positions = tuple(position - dropped for position in embeds.positions[kept])
    return PromptEmbeds(embeds.rows[kept].clone(), positions) if positions else None


def _check_choice(params: SamplingParams) -> None:
    """Raise `RequestError` for a choice that goes by the prompt's ids, which embeddings lack."""
    plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": None}
    for field, value in plain.items():
        if (given := getattr(params, field)) != value:
            problem = "goes by the prompt's token ids, and embeddings have none"
            raise RequestError(field, given, problem, "Use presence_penalty, or leave it out.")


def require_text(field: str, value: object) -> None:
    """Raise `RequestError` unless `value` is text that UTF-8 can hold."""
    try:
        valid = isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise RequestError(field, value, "must be text that UTF-8 can hold", "Pass a plain str.")
