"""From what a user passes to `engine.add` to a `Sequence` that is sure to be able to finish.

Everything that can be wrong with a request is found here, before anything is queued or allocated.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from workbench.activations import Activations
from workbench.cache import Blocks, KVCache
from workbench.cache.room import peak
from workbench.config import ModelConfig, SchedulerConfig
from workbench.engine.prompts import read_prompt, require_text
from workbench.engine.reports import check_reports
from workbench.errors import RequestError
from workbench.guide import Guide
from workbench.metrics import RequestMetrics
from workbench.request import AdapterUse, Prompt, Request, Sequence, TextStream
from workbench.retention import Retention, resolve
from workbench.sample import bad_word_ids, check_params
from workbench.sampling_params import SamplingParams

if TYPE_CHECKING:
    from workbench.models import DecoderLM
    from workbench.models.tokenizer import Tokenizer


def make_request(
    request_id: str,
    prompt: Prompt,
    params: SamplingParams,
    priority: int,
    namespace: str,
    tenant: str,
    timeout: float | None,
    retention: Iterable[Retention] | None,
    lora: tuple[AdapterUse, ...],
    model: DecoderLM,
    tokenizer: Tokenizer | None,
) -> Request:
    """Return the request, or raise `RequestError` for whatever could trip up a later step."""
    require_text("request_id", request_id)
    require_text("namespace", namespace)
    require_text("tenant", tenant)
    if not isinstance(params, SamplingParams):
        fix = "Pass `SamplingParams(max_tokens=…, …)`, or a list of them to `generate`."
        raise RequestError("params", params, "is not a SamplingParams", fix)
    check_reports(params, model)
    text, ids, embeds = read_prompt(prompt, params, model, tokenizer)
    if not isinstance(priority, int):
        raise RequestError("priority", priority, "must be a whole number", "Smaller is sooner.")
    # Where rotations depend on the prompt's length (dynamic RoPE), so must prefix reuse.
    scope = model.rope_scope(len(ids))
    namespace = namespace if scope is None else f"{namespace}\0rope-{scope}"
    if embeds is not None:
        namespace = f"{namespace}\0embeds-{embeds.digest()}"
    if lora:  # what KV holds depends on the adapters' weights
        uses = "+".join(f"{use.digest}:{use.scale!r}" for use in lora)
        namespace = f"{namespace}\0lora-{uses}"
    ends, kept = _deadline(timeout), resolve(retention, len(ids))
    request = Request(request_id, text, ids, params, priority, namespace, ends, tenant, embeds)
    return replace(request, retention=kept, lora=lora)


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < float("inf"):
        raise RequestError("timeout", timeout, "must be seconds above 0", "Or leave it out.")
    return time.monotonic() + timeout


def check_room(
    num_prompt: int,
    params: SamplingParams,
    config: ModelConfig,
    blocks: Blocks,
    limits: SchedulerConfig,
) -> int:
    """Return how many tokens the sequence may reach; raise `RequestError` if it can never fit."""
    if num_prompt >= config.context:
        raise RequestError(
            "prompt",
            f"{num_prompt} tokens",
            f"the model's context is {config.context} and one token must be left to generate",
            "Shorten the prompt.",
        )
    limit = min(num_prompt + params.max_tokens, config.context)
    # The KV of the last token is never needed: it is not fed back.
    for group in blocks.groups:
        needed = peak(group, limit - 1, limits.max_new_tokens(limit - 1))
        if needed > group.num_blocks:
            capacity = group.num_blocks * group.block_size
            has = f"the whole cache has {group.num_blocks} ({capacity} tokens)"
            if group.window is not None:
                has = f"for a window of {group.window} {has}"
            raise RequestError(
                "prompt",
                f"{num_prompt} tokens + max_tokens={params.max_tokens}",
                f"needs {needed} blocks and {has}",
                "Lower max_tokens, shorten the prompt, or build the cache with more blocks.",
            )
    return limit


def make_sequence(
    request: Request,
    sequence_id: int,
    model: DecoderLM,
    cache: KVCache,
    limits: SchedulerConfig,
    default_seed: int | None = None,
) -> Sequence:
    """Return the sequence of a request, or raise `RequestError`; see the functions above.

    A request without a seed gets one: drawn from `default_seed` and its number if that is given,
    else from the operating system.
    """
    params, config, tokenizer = request.params, model.config, model.tokenizer
    num_prompt = len(request.prompt_token_ids)
    check_splittable(num_prompt, limits)
    check_params(params, config.vocab_size)
    limit = check_room(num_prompt, params, config, cache.blocks, limits)
    if params.stop and tokenizer is None:
        problem = "the engine has no tokenizer to find text with"
        raise RequestError("stop", params.stop, problem, "Use stop_token_ids.")
    stop_ids = stop_ids_of(params, config)
    return Sequence(
        sequence_id=sequence_id,
        request=request,
        token_ids=list(request.prompt_token_ids),
        num_prompt_tokens=num_prompt,
        metrics=RequestMetrics(arrival=time.monotonic()),
        seed=_seed(params, sequence_id, default_seed),
        stop_ids=stop_ids,
        num_tracked=tracked_by(params, stop_ids),
        max_num_tokens=limit,
        stream=output_stream(request, (), tokenizer),
        bad_word_ids=bad_word_ids(params, tokenizer, config.vocab_size),
        # Nothing can be said of the first token: no distribution came before it.
        prompt_logprobs=None if params.prompt_logprobs is None else [None],
        activations=Activations(params.points) if params.points else None,
    )


def make_branch(
    parent: Sequence,
    num_tokens: int,
    request: Request,
    sequence_id: int,
    index: int,
    model: DecoderLM,
) -> Sequence:
    """Return a sequence that goes on from `parent`'s first `num_tokens`, for `request`.

    Branch i of a request draws with its first branch's seed + i, as a request of that seed would.
    """
    shared = num_tokens - parent.num_prompt_tokens
    tokens = parent.token_ids[:num_tokens]
    params, config = request.params, model.config
    limit = parent.num_prompt_tokens + params.max_tokens
    seed = parent.seed if params.seed is None else params.seed
    scores, kept = parent.prompt_logprobs, parent.activations
    stop_ids, words = stop_ids_of(params, config), parent.bad_word_ids
    if params.bad_words != parent.request.params.bad_words:
        words = bad_word_ids(params, model.tokenizer, config.vocab_size)
    return Sequence(
        sequence_id=sequence_id,
        request=request,
        token_ids=tokens,
        num_prompt_tokens=parent.num_prompt_tokens,
        metrics=parent.metrics.branch(),
        seed=seed + index,
        stop_ids=stop_ids,
        num_tracked=tracked_by(params, stop_ids),
        max_num_tokens=min(limit, config.context),
        stream=output_stream(request, tokens[parent.num_prompt_tokens :], model.tokenizer),
        index=index,
        leader=(parent.leader or parent) if request is parent.request else None,
        bad_word_ids=words,
        guide=_guide_after(parent, num_tokens),
        logprobs=parent.logprobs[:shared] if parent.logprobs else None,
        prompt_logprobs=list(scores) if scores and params.prompt_logprobs is not None else None,
        activations=kept.first(num_tokens, params.points) if kept and params.points else None,
    )


def _guide_after(parent: Sequence, num_tokens: int) -> Guide | None:
    """Return a copy of `parent`'s guide as it was after its first `num_tokens`."""
    if parent.guide is None:
        return None
    guide = parent.guide.fork()
    guide.rollback(parent.num_tokens - num_tokens)
    return guide


def tracked_by(params: SamplingParams, stop_ids: frozenset[int]) -> int | None:
    """Return how many top log-probabilities must be noted beside each token; None: nothing.

    More than `logprobs` where branches are ranked by them. Beam search looks at enough candidates
    that as many as there are beams go on even if every end token is among them, and past those that
    other groups have taken.
    """
    if params.beam_width is None:
        ranked = params.logprobs is None and params.num_branches > params.n
        return 0 if ranked else params.logprobs
    taken = params.beam_width if params.beam_groups > 1 else 0
    wanted = params.beam_width * (1 + max(1, len(stop_ids))) + taken
    return max(wanted, params.logprobs or 0)


def stop_ids_of(params: SamplingParams, config: ModelConfig) -> frozenset[int]:
    """Return the token ids that end a sequence."""
    stop_ids = frozenset(params.stop_token_ids)
    return stop_ids if params.ignore_eos else stop_ids | frozenset(config.eos_token_ids)


def output_stream(
    request: Request, output: Iterable[int], tokenizer: Tokenizer | None
) -> TextStream | None:
    """Return a text stream that has taken in `output`; None where no stop string is looked for."""
    if tokenizer is None or not request.params.stop:
        return None
    stream = tokenizer.stream(request.text_token_ids, request.params)
    for token_id in output:
        stream.push(token_id)
    return stream


def check_splittable(num_prompt: int, config: SchedulerConfig) -> None:
    """Raise `RequestError` for a prompt over the step budget where prompts may not be split."""
    if not config.chunked_prefill and num_prompt > config.max_batch_tokens:
        raise RequestError(
            "prompt",
            f"{num_prompt} tokens",
            f"more than max_batch_tokens={config.max_batch_tokens} with chunked_prefill off",
            "Turn chunked_prefill on, or raise max_batch_tokens.",
        )


def _seed(params: SamplingParams, sequence_id: int, default_seed: int | None) -> int:
    if params.seed is not None:
        return params.seed
    if default_seed is not None:
        return (default_seed << 32) + sequence_id
    return secrets.randbits(62)
