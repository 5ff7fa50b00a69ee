"""Whether what is put together fits together: an engine's parts, prompts and their parameters.

Called by `Engine` before it keeps or queues anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from workbench.cache import KVCache
from workbench.cache.joint import Blocks
from workbench.cache.room import peak
from workbench.config import SchedulerConfig
from workbench.engine.admission import check_room, check_splittable
from workbench.engine.prompts import check_embeds
from workbench.engine.reports import check_fork_reports, check_reports
from workbench.engine.requests import RequestRecord
from workbench.errors import ConfigError, RequestError
from workbench.errors import RequestFinished as AlreadyFinished
from workbench.lora import LoRAManager
from workbench.models import DecoderLM
from workbench.request import Prompt, Request, Sequence
from workbench.run import Runner
from workbench.sample import check_params
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler


def check_parts(
    model: DecoderLM,
    cache: KVCache,
    scheduler: Scheduler,
    runner: Runner,
    loras: LoRAManager | None,
    seed: int | None,
) -> None:
    """Raise `ConfigError` where a part was made for another, as after a cell was run again, and
    for a seed that is none."""
    check_seed(seed)
    if scheduler.blocks is not cache.blocks:
        raise _stranger("scheduler", scheduler, "cache")
    if runner.cache is not cache:
        raise _stranger("runner", runner, "cache")
    if runner.model is not model:
        raise _stranger("runner", runner, "model")
    if loras is not None and loras.model is not model:
        raise _stranger("loras", loras, "model")


def _stranger(field: str, part: object, other: str) -> ConfigError:
    return ConfigError(field, part, f"was made for another {other}", "Make it anew, with this one.")


def check_seed(seed: int | None) -> None:
    """Raise `ConfigError` unless `seed` is None or a whole number from 0."""
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise ConfigError("seed", seed, "must be a whole number of at least 0", "Or leave it out.")


def check_fork(
    record: RequestRecord,
    branch: int,
    params: SamplingParams,
    scheduler: Scheduler,
    model: DecoderLM,
) -> Sequence:
    """Return the sequence to fork; raise `RequestError`, or `RequestFinished` if it has ended."""
    if not isinstance(params, SamplingParams):
        raise RequestError("params", params, "is not a SamplingParams", "Pass one, or leave it.")
    if branch not in range(len(record.sequences)):
        known = f"The request has {len(record.sequences)} so far."
        raise RequestError("branch", branch, "no such branch", known)
    if params.beam_width is not None or record.request.params.beam_width is not None:
        raise RequestError("params.beam_width", params.beam_width, "beams cannot fork", "Use n.")
    parent = record.sequences[branch]
    if parent.finished:
        raise AlreadyFinished(record.request.request_id, str(parent.finish_reason))
    if params.guided_decoding != record.request.params.guided_decoding:
        problem = "a fork goes on under its original's constraint"
        raise RequestError("guided_decoding", params.guided_decoding, problem, "Leave it as it is.")
    check_params(params, model.config.vocab_size)
    check_reports(params, model)
    check_fork_reports(parent.request.params, params)
    blocks, limits = scheduler.blocks, scheduler.config
    limit = check_room(parent.num_prompt_tokens, params, model.config, blocks, limits)
    if limit <= parent.num_tokens:
        problem = f"the request has made {parent.num_output_tokens} already"
        raise RequestError("max_tokens", params.max_tokens, problem, "Raise it.")
    return parent


def check_beams(limit: int, request: Request, blocks: Blocks, config: SchedulerConfig) -> None:
    """Raise `RequestError` unless all beams fit at once: each waits for the others.

    limit: tokens that a beam may reach. The prompt's full blocks are shared, all others are not.
    """
    width = request.params.beam_width
    if width is None:
        return
    if width > config.max_sequences:
        problem = f"more beams than max_sequences={config.max_sequences}"
        raise RequestError("beam_width", width, problem, "Lower it, or raise max_sequences.")
    shared = (len(request.prompt_token_ids) - 1) // blocks.block_size
    for group in blocks.groups:
        own = peak(group, limit, config.max_new_tokens(limit))
        needed = min(width * own, shared + width * (group.blocks_for(limit) - shared))
        if needed > group.num_blocks:
            problem = f"may need {needed} blocks and the whole cache has {group.num_blocks}"
            raise RequestError("beam_width", width, problem, "Lower it, or max_tokens.")


def check_loaded(
    request: Request, blocks: Blocks, model: DecoderLM, config: SchedulerConfig
) -> None:
    """Raise `RequestError` if a request that was saved elsewhere cannot run to its end here."""
    check_params(request.params, model.config.vocab_size)
    check_reports(request.params, model)
    check_embeds(request.embeds, len(request.prompt_token_ids), model)
    num_prompt = len(request.prompt_token_ids)
    limit = check_room(num_prompt, request.params, model.config, blocks, config)
    check_beams(limit, request, blocks, config)
    check_splittable(num_prompt, config)


def check_limits(
    records: Mapping[str, RequestRecord],
    config: SchedulerConfig | None,
    blocks: Blocks,
    model: DecoderLM,
) -> None:
    """Raise `ConfigError` if, under these settings (None: as they are), an unfinished request could
    not run to its end."""
    if config is None:
        return
    if not isinstance(config, SchedulerConfig):
        fix = "Pass `dataclasses.replace(engine.scheduler.config, …)`."
        raise ConfigError("scheduler_config", config, "is no SchedulerConfig", fix)
    check_unfinished(records.values(), config, blocks, model, ("scheduler_config", config))


def check_unfinished(
    records: Iterable[RequestRecord],
    config: SchedulerConfig,
    blocks: Blocks,
    model: DecoderLM,
    asked: tuple[str, Any],
) -> None:
    """Raise `ConfigError` for what was asked (a setting and its value) if an unfinished request
    could not run to its end in these blocks."""
    for record in records:
        if not record.finished:
            try:
                check_loaded(record.request, blocks, model, config)
            except RequestError as error:
                name = record.request.request_id
                problem = f"request {name!r} could not go on: {error.field} {error.problem}"
                raise ConfigError(*asked, problem, "Let it end first, or abort it.") from error


def pair(
    prompts: Iterable[Prompt],
    params: SamplingParams | list[SamplingParams] | None,
    lora: str | list[str | None] | None = None,
) -> list[tuple[Prompt, SamplingParams | None, str | None]]:
    """Return each prompt with its parameters and adapters; `RequestError` unless as many."""
    if isinstance(prompts, str | Tensor) or not isinstance(prompts, Iterable):
        raise RequestError("prompts", prompts, "is not a list of prompts", "Put it into a list.")
    many = list(prompts)
    each = params if isinstance(params, list) else [params] * len(many)
    adapters = lora if isinstance(lora, list) else [lora] * len(many)
    for field, given in (("params", each), ("lora", adapters)):
        if len(given) != len(many):
            fix = "Give one for all, or a list with one each."
            raise RequestError(field, f"{len(given)} of them", f"for {len(many)} prompts", fix)
    return list(zip(many, each, adapters, strict=True))
