"""Every feature that a request or an engine can have, one entry each: the table of combinations.

`tests/engine/test_combinations.py` runs every pair. A new feature is one new entry in `FEATURES`;
then `python tests/support/features.py` writes COMBINATIONS.md again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from drafting import Decoyed
from random_adapters import random_adapter

from workbench.cache.dropping import HeavyHitter, SinkWindow
from workbench.engine import Engine
from workbench.events import Event, PrefixAwaited
from workbench.guided_params import GuidedDecodingParams
from workbench.lora import Adapter, merge
from workbench.models import DecoderLM
from workbench.request import CompletionOutput, Status
from workbench.retention import Retention
from workbench.sample import Sampler
from workbench.sampling_params import SamplingParams
from workbench.speculation import DraftModel

MAX_TOKENS = 10
END = 7  # a stop token
BANNED = tuple(range(0, 320, 3))
BASE = {"max_tokens": MAX_TOKENS, "temperature": 0.8, "seed": 11, "ignore_eos": True}
RETENTION = [
    Retention(0, 4, priority=90),
    Retention(4, priority=10, seconds=1e6),
    Retention(priority=0, seconds=1e-9, part="decode"),
]
NO_HOST_TIER = "there is no host tier for layers with a window"
# Tokens repeat in them, so that penalties and n-grams have work; they share a beginning.
PROMPTS = [[9, 8, 9, 8, 5, 6, 7, 8], [9, 8, 9, 8, 9, 8, 9], [9, 8, 9, 8, *range(40, 50)]]


class Fault(Exception):
    """What a part of the engine raises on purpose."""


@dataclass
class Run:
    """One run of the prompts: what hooks may look at and change between two steps."""

    engine: Engine
    names: list[str]
    step: int = 0
    twins: dict[str, str] = field(default_factory=dict)  # a fork's name -> the original's
    others: list[str] = field(default_factory=list)
    faults: int = 0
    notes: set[str] = field(default_factory=set)
    state: Any = None


@dataclass(frozen=True)
class Feature:
    """One feature. What it promises is that tokens are those of the plain counterpart: the same
    parameters and sampler (and, where blocks of KV are dropped, the same policy and block size),
    each prompt alone on the reference backend, with nothing else going on.

    params: settings of a request. add: what else it is queued with. engine: settings of the engine.
    model: another family than the plain one's. sampler: makes the engine's.
    prepare: called with a run before its first step; between: after every step. holds: what an
    output of it must satisfy besides. happened: whether a run on its own met what it is about.
    refused: other features it cannot be with -> the part of the error's text that says why.
    merged: changes the plain counterpart's model for the time of its run, until what it returns is
    called.
    """

    name: str
    what: str
    params: dict[str, Any] = field(default_factory=dict)
    add: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    sampler: Callable[[], Sampler] | None = None
    prepare: Callable[[Run], None] | None = None
    between: Callable[[Run], None] | None = None
    holds: Callable[[CompletionOutput, list[int]], bool] | None = None
    happened: Callable[[Run], bool] | None = None
    refused: dict[str, str] = field(default_factory=dict)
    merged: Callable[[DecoderLM], Callable[[], None]] | None = None


def no_thirds(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    """A request's own processor: forbids every third token."""
    logits[list(BANNED)] = -torch.inf
    return logits


def prefer_low(logits: torch.Tensor, sequences: list[Any]) -> torch.Tensor:
    """A processor of the whole batch: halves the upper half of the vocabulary."""
    logits[:, 160:] /= 2
    return logits


def _fork(run: Run) -> None:
    if run.step == 3:
        for name in run.names:
            record = run.engine.requests[name]
            if not record.sequences[0].finished and record.request.params.beam_width is None:
                single = replace(record.request.params, n=1, best_of=None)
                run.twins[run.engine.fork(name, single)] = name


def _warm(run: Run) -> None:
    engine = run.engine
    for prompt in PROMPTS:
        engine.generate([prompt], SamplingParams(max_tokens=1, temperature=0))


def _warm_alike(run: Run) -> None:
    for prompt in PROMPTS:
        run.engine.generate([[*prompt[:6], 300, 301, 302]], SamplingParams(max_tokens=1))


def _watch_waits(run: Run) -> None:
    def note(event: Event) -> None:
        if isinstance(event, PrefixAwaited):
            run.notes.add("waited")

    run.engine.bus.subscribe(note)


def _watch_windows(run: Run) -> None:
    """Note when a window has let go of a block that a sequence is past."""
    groups = [group for group in run.engine.cache.blocks.groups if group.window is not None]
    if any(table.first for group in groups for table in group.tables.values()):
        run.notes.add("let go")


def _neighbour(run: Run) -> None:
    run.others.append(run.engine.add([3, 1, 4], SamplingParams(max_tokens=30, seed=5)))


def _abort(run: Run) -> None:
    name = run.others[0]
    if run.step == 4 and not run.engine.requests[name].finished:
        run.engine.abort(name)
        run.notes.add("aborted")


def _failing(run: Run) -> None:
    original = run.engine.runner.run

    def run_or_fail(plan: Any) -> Any:
        run.faults += 1
        logits = original(plan)
        if run.faults % 3 == 0:
            raise Fault
        return logits

    run.engine.runner.run = run_or_fail


def _swap(run: Run) -> None:
    engine = run.engine
    other = "native" if engine.runner.batch_invariant else "sdpa"
    engine.swap(
        sampler=Sampler(engine.sampler.processors),
        backend=["reference", other][run.step % 2],
        scheduler_policy=["fcfs", "shortest_first"][run.step % 2],
    )


def _time_travel(run: Run) -> None:
    """Go back three steps, once: the same tokens must come again."""
    if run.step == 2:
        run.state = run.engine.checkpoint()
    elif run.step == 5:
        run.notes.add("restored")
        run.engine.restore(run.state)


def _draft(run: Run) -> None:
    engine = run.engine
    windows = any(group.window for group in engine.cache.groups)  # these verify chains alone
    model, settings = engine.model, {"backend": "sdpa"}
    engine.swap(proposer=DraftModel(model, 3, **settings) if windows else Decoyed(model))


def _pause(run: Run) -> None:
    if run.step == 1:
        run.engine.pause(run.names[0])
    elif run.step > 2 and run.engine.requests[run.names[0]].sequences[0].status is Status.PAUSED:
        run.engine.resume(run.names[0])
        run.notes.add("resumed")


def _offloads(run: Run) -> bool:
    stats = run.engine.cache.stats()
    return stats.offloads > 0 and stats.restores > 0


def _all_new(tokens: list[int], prompt: list[int]) -> bool:
    return len({*tokens, *prompt}) == len(tokens) + len(set(prompt))


def _adapter(model: DecoderLM) -> Adapter:
    return random_adapter(model, 3, head=True, dora=True)


def _load_adapter(run: Run) -> None:
    run.engine.loras.load("loud", _adapter(run.engine.model))


def _drops(run: Run) -> bool:
    return run.engine.cache.stats().dropped > 10


def _preemptions(run: Run) -> bool:
    return sum(run.engine.requests[name].metrics.num_preemptions for name in run.names) > 0


FEATURES = [
    Feature(
        "greedy",
        "temperature 0",
        params={"temperature": 0, "seed": None},
        refused={
            "n": "greedy branches would be equal",
            "best_of": "greedy branches would be equal",
        },
    ),
    Feature(
        "beams",
        "beam search, two wide",
        params={"beam_width": 2, "n": 2, "seed": None},
        refused={
            "filters": "has no meaning for beams",
            "n": "not with beam_width=2",
            "best_of": "not with beam_width=2",
            "one by one": "more beams than max_sequences=1",
        },
    ),
    Feature("filters", "top_k, top_p, min_p", params={"top_k": 40, "top_p": 0.9, "min_p": 0.01}),
    Feature(
        "logprobs",
        "log-probabilities beside each token",
        params={"logprobs": 2},
        holds=lambda output, _: len(output.logprobs or ()) == len(output.token_ids),
    ),
    Feature(
        "prompt_logprobs",
        "log-probabilities of the prompt's tokens",
        params={"prompt_logprobs": 1},
        happened=lambda run: all(
            len(run.engine.output(name).prompt_logprobs or ()) == len(prompt)
            for name, prompt in zip(run.names, PROMPTS, strict=True)
        ),
    ),
    Feature(
        "hidden_states",
        "what the model makes of each token is kept",
        params={"hidden_states": True},
        holds=lambda output, prompt: (
            output.hidden_states is not None
            and len(output.hidden_states) == len(prompt) + len(output.token_ids) - 1
        ),
        happened=lambda run: all(
            branch.hidden_states.std(dim=0).min() > 0  # each token has its own
            for name in run.names
            for branch in run.engine.output(name).outputs
        ),
    ),
    Feature("echo", "the prompt before the text", params={"echo": True}),
    Feature("n", "three branches of a prompt", params={"n": 3}),
    Feature(
        "best_of",
        "the best of three branches",
        params={"best_of": 3},
    ),
    Feature(
        "stop", "stop strings, a stop token", params={"stop": "5", "stop_token_ids": (END, 134)}
    ),
    Feature(
        "min_tokens",
        "no end token before there are four",
        params={"min_tokens": 4, "stop_token_ids": (END, *range(100, 200))},
        holds=lambda output, _: not {END, *range(100, 200)} & set(output.token_ids[:4]),
    ),
    Feature("repetition", "repetition penalty", params={"repetition_penalty": 2.5}),
    Feature(
        "presence",
        "presence and frequency penalty",
        params={"presence_penalty": 3.0, "frequency_penalty": 2.0},
    ),
    Feature(
        "bias",
        "logit_bias",
        params={"logit_bias": {8: 4.0, **dict.fromkeys(range(200, 260), -math.inf)}},
        holds=lambda output, _: not set(range(200, 260)) & set(output.token_ids),
    ),
    Feature(
        "bad words",
        "words and single tokens that must not come",
        params={"bad_words": ["def", *([i] for i in range(60, 110)), [8, 9], [9, 8]]},
        holds=lambda output, _: not set(range(60, 110)) & set(output.token_ids),
    ),
    Feature(
        "n-grams",
        "no token twice: n-grams of one",
        params={"no_repeat_ngram_size": 1},
        holds=lambda output, prompt: _all_new(output.token_ids, prompt),
    ),
    Feature(
        "processor",
        "a request's own logits processor",
        params={"logits_processors": (no_thirds,)},
        holds=lambda output, _: not set(BANNED) & set(output.token_ids),
    ),
    Feature(
        "batch processor",
        "a processor of the whole batch in the sampler",
        sampler=lambda: Sampler([prefer_low]),
    ),
    Feature(
        "guided",
        "a regular expression that the text must match",
        params={
            "guided_decoding": GuidedDecodingParams(regex="[a-m]{3,30}"),
            "ignore_eos": False,
        },
        engine={"guided": True},
        # Whatever is echoed before it: each token has a letter at least, and an end token none.
        holds=lambda output, _: (
            set(output.text[len(output.text) - len(output.token_ids) + 1 :]) <= set("abcdefghijklm")
        ),
    ),
    Feature(
        "chunks",
        "prompts split over steps of four tokens",
        engine={"max_batch_tokens": 4, "max_sequences": 4},
        happened=lambda run: run.step > MAX_TOKENS + 4,
    ),
    Feature(
        "whole prompts",
        "no splitting, one prompt at a time",
        engine={"chunked_prefill": False, "max_batch_tokens": 16, "max_sequences": 16},
    ),
    Feature(
        "preemption",
        "a cache too small for all",
        engine={"num_blocks": 20, "block_size": 2},
        happened=_preemptions,
    ),
    Feature(
        "swapping",
        "a cache too small for all, and what is preempted swapped to the host",
        engine={"num_blocks": 20, "block_size": 2, "preemption": "swap", "host_blocks": 40},
        happened=lambda run: run.engine.cache.stats().swapped > 0,
    ),
    Feature(
        "host tier",
        "evicted blocks kept on the host",
        engine={"num_blocks": 20, "block_size": 2, "host_blocks": 40},
        happened=_offloads,
    ),
    Feature(
        "no eviction",
        "a sequence starts only if nobody will have to give way",
        engine={"num_blocks": 24, "block_size": 2, "capacity": "guaranteed_no_evict"},
        happened=lambda run: not _preemptions(run),
    ),
    Feature(
        "equal progress",
        "prompts in chunks, side by side",
        engine={"max_batch_tokens": 6, "max_sequences": 4, "chunking": "equal_progress"},
        happened=lambda run: run.step > MAX_TOKENS + 2,
        refused={"whole prompts": "with chunked_prefill off"},
    ),
    Feature(
        "pause",
        "a request paused for two steps",
        between=_pause,
        happened=lambda run: "resumed" in run.notes,
    ),
    Feature("native", "the compiled CPU backend", engine={"backend": "native"}),
    Feature(
        "lora",
        "half of a DoRA adapter of every linear layer; its plain counterpart has it merged",
        add={"lora": "loud:0.5"},
        prepare=_load_adapter,
        happened=lambda run: run.engine.loras.info("loud").num_requests == len(PROMPTS),
        merged=lambda model: merge(model, {_adapter(model): 0.5}),
    ),
    Feature(
        "overlap",
        "a step's pass starts before the last one's tokens are read",
        engine={"overlap": True},
        happened=lambda run: run.engine.overlap.taken > 5,
    ),
    Feature(
        "batch invariant",
        "the reference backend, token by token",
        engine={"backend": "reference", "batch_invariant": True},
    ),
    Feature(
        "prefix reuse",
        "the prompts' blocks are in the cache already",
        engine={"block_size": 2},
        prepare=_warm,
        happened=lambda run: all(
            run.engine.requests[name].metrics.num_cached_tokens > 0 for name in run.names
        ),
    ),
    Feature(
        "partial reuse",
        "the cache has blocks that begin alike and go on differently",
        engine={"block_size": 8},
        prepare=_warm_alike,
        happened=lambda run: run.engine.cache.stats().copies >= len(PROMPTS),
    ),
    Feature(
        "prefix wait",
        "prompts wait for what they share while another computes it",
        engine={"block_size": 2},
        prepare=_watch_waits,
        happened=lambda run: "waited" in run.notes,
    ),
    Feature(
        "retention",
        "parts kept longer than others in a cache too small for all",
        add={"retention": RETENTION},
        engine={"num_blocks": 20, "block_size": 2},
        happened=lambda run: run.engine.cache.stats().evictions > 0,
    ),
    Feature(
        "windows",
        "every layer sees a window of eight tokens",
        model="mistral",
        engine={"block_size": 2},
        between=_watch_windows,
        happened=lambda run: "let go" in run.notes,
        refused={"swapping": NO_HOST_TIER, "host tier": NO_HOST_TIER},
    ),
    Feature(
        "KV groups",
        "one layer sees everything, the others a window of eight tokens",
        model="qwen2-windows",
        engine={"block_size": 2},
        between=_watch_windows,
        happened=lambda run: "let go" in run.notes,
        refused={"swapping": NO_HOST_TIER, "host tier": NO_HOST_TIER},
    ),
    Feature("no reuse", "prefix reuse off", engine={"prefix_reuse": False}),
    Feature("one by one", "one sequence at a time", engine={"max_sequences": 1}),
    Feature(
        "fork",
        "a request goes on twice from its third step",
        between=_fork,
        happened=lambda run: len(run.twins) == len(PROMPTS),
    ),
    Feature(
        "abort",
        "a neighbour is aborted on the way",
        prepare=_neighbour,
        between=_abort,
        happened=lambda run: "aborted" in run.notes,
    ),
    Feature(
        "failing steps",
        "every third step fails after its forward pass",
        prepare=_failing,
        happened=lambda run: run.faults > 5,
    ),
    Feature(
        "speculation",
        "trees of drafts are verified, one path of each mostly right (under windows: chains), by a "
        "model whose keys and values lie in the same blocks",
        prepare=_draft,
        happened=lambda run: (
            sum(run.engine.requests[name].metrics.num_accepted for name in run.names) > 0
        ),
    ),
    Feature("swap", "sampler, backend and policy swapped after each step", between=_swap),
    Feature(
        "time travel",
        "a checkpoint, restored three steps later",
        between=_time_travel,
        happened=lambda run: "restored" in run.notes,
    ),
    Feature(
        "sinks and window",
        "all but the first and the last blocks of a sequence's KV dropped",
        engine={"dropping": SinkWindow(3, 6), "block_size": 2},
        happened=_drops,
        refused=dict.fromkeys(("windows", "KV groups"), "layers have a window already"),
    ),
    Feature(
        "heavy hitters",
        "all but the last and the most attended blocks dropped",
        engine={"dropping": HeavyHitter(4, 4), "block_size": 2},
        happened=_drops,
        refused=dict.fromkeys(("windows", "KV groups"), "layers have a window already"),
    ),
]


def together(features: tuple[Feature, ...]) -> SamplingParams:
    """Return the parameters of a request with all of these features."""
    settings = dict(BASE)
    for feature in features:
        settings |= feature.params
    return SamplingParams(**settings)


def settings_of(features: tuple[Feature, ...]) -> dict[str, Any]:
    """Return the settings of an engine with all of these features."""
    settings: dict[str, Any] = {}
    for feature in features:
        settings |= feature.engine
    return settings


def run(make_engine: Callable[..., Engine], features: tuple[Feature, ...]) -> Run:
    """Run the prompts with all of these features, to the end."""
    engine = make_engine(model_of(features), **settings_of(features))
    use_samplers(engine, features)
    params, state = together(features), Run(engine, [])
    for feature in features:
        if feature.prepare is not None:
            feature.prepare(state)
    wishes = {name: wish for feature in features for name, wish in feature.add.items()}
    state.names = [engine.add(prompt, params, **wishes) for prompt in PROMPTS]
    while engine.has_work:
        assert state.step < 500, "it does not end"
        idle = not engine.scheduler.num_unfinished
        try:
            engine.advance()
        except Fault:
            engine.cache.check()
        if idle and not engine.scheduler.num_unfinished:
            continue  # nothing but grammars was waited for, which takes as long as it takes
        state.step += 1
        for feature in features:
            if feature.between is not None:
                feature.between(state)
    return state


def model_of(features: tuple[Feature, ...]) -> str:
    """Return the model family that the features run with."""
    return next((feature.model for feature in features if feature.model is not None), "llama")


def use_samplers(engine: Engine, features: tuple[Feature, ...]) -> None:
    """Give the engine the sampler of the features that bring one."""
    for feature in features:
        if feature.sampler is not None:
            engine.swap(sampler=feature.sampler())


def refusal(a: Feature, b: Feature) -> str | None:
    """Return what the error says where two features exclude each other."""
    return a.refused.get(b.name) or b.refused.get(a.name)


def exist_together(a: Feature, b: Feature) -> bool:
    """Whether an engine can have both: one engine has one model, and one dropping policy."""
    if "dropping" in a.engine and "dropping" in b.engine:
        return a == b
    return a.model is None or b.model is None or a.model == b.model


def table() -> str:
    """Return COMBINATIONS.md."""
    names = [feature.name for feature in FEATURES]
    lines = [
        "# Combinations",
        "",
        "What happens when two features meet. `=`: every token, reason to end and log-probability "
        "equals that of the plain counterpart: the same parameters and dropping policy, each "
        "prompt alone, on the reference backend, in whole prompts, without reuse, forks or "
        "faults. A letter: refused, with the error below, before anything is queued. `–`: of "
        "different models or policies.",
        "",
        "`tests/engine/test_combinations.py` runs every pair, and keeps this file equal to what it "
        "runs; `python tests/support/features.py` writes it.",
        "",
    ]
    lines += [f"{i}. **{f.name}**: {f.what}" for i, f in enumerate(FEATURES, start=1)]
    reasons = sorted({reason for f in FEATURES for reason in f.refused.values()})
    letters = dict(zip(reasons, "abcdefghijklmnopqrstuvwxyz", strict=False))
    header = ["", *map(str, range(1, len(names) + 1))]
    lines += ["", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row, a in enumerate(FEATURES):
        marks = [
            letters.get(refusal(a, b) or "", "=") if exist_together(a, b) else "–"
            for b in FEATURES[: row + 1]
        ]
        cells = [f"{row + 1} {a.name}", *marks, *[""] * (len(names) - row - 1)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{letter}: `{reason}`" for reason, letter in letters.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).parents[2].joinpath("COMBINATIONS.md").write_text(table(), encoding="utf-8")
