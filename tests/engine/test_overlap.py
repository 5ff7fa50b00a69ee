"""The overlapped loop is the plain one: the same tokens, whatever happens in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drive import MakeEngine, drawn, greedy, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_prompts

from workbench.build import check
from workbench.cache import KVCache
from workbench.config import EngineConfig, ModelConfig, SchedulerConfig
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.events import Event, StepDone
from workbench.layers import probe
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.run import Runner
from workbench.sample import Sampler
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler
from workbench.scheduler.foresight import MANY
from workbench.speculation import NGram, SpeculationConfig
from workbench.speculation.control import Control


@pytest.fixture
def make(make_engine: MakeEngine, device: str, backend: str) -> MakeEngine:
    """Return `make_engine` for every device and backend, in both kinds."""

    def make(model: Any = "llama", **settings: Any) -> Engine:
        return make_engine(model, **{"device": device, "backend": backend, **settings})

    return make


def both(
    make: MakeEngine, prompts: Any, params: Any, *, many: int = MANY, **settings: Any
) -> Engine:
    """Compare the loops over the same requests; return the engine of the overlapped one."""
    plain, ahead = (make(overlap=choice, **settings) for choice in (False, True))
    ahead.scheduler.foresight.many = many
    assert tokens_of(ahead, prompts, params) == tokens_of(plain, prompts, params)
    assert plain.overlap.taken == 0
    return ahead


def test_decodes_are_started_ahead(make: MakeEngine) -> None:
    prompts = random_prompts(6, seed=90, longest=40)
    params = [greedy(20) if i % 2 else drawn(i, 20) for i in range(6)]
    engine = both(make, prompts, params)
    assert engine.overlap.taken == 19  # after the step of the prompts
    assert engine.overlap.dropped == 0
    assert "19 passes taken" in engine.describe()["overlap"]


@pytest.mark.parametrize("many", [1, 4, MANY])
def test_arrivals_lengths_and_growing_tables(make: MakeEngine, many: int) -> None:
    """Rows end by length at every step, others take their places, prompts come in chunks; with few
    decodes that count as many, these run ahead and prompts beside them."""
    prompts = random_prompts(24, seed=91, longest=60)
    params = [greedy(5 + 3 * i) if i % 2 else drawn(i, 6 + 2 * i) for i in range(24)]
    settings = {"max_sequences": 7, "max_batch_tokens": 32, "block_size": 4, "num_blocks": 160}
    engine = both(make, prompts, params, many=many, **settings)
    assert engine.overlap.taken > 20
    assert ("others wait to start" in engine.overlap.plain) == (many > 1)


def test_rows_that_change_places(make_engine: MakeEngine) -> None:
    """One that was admitted later decodes while an earlier prompt ends; then they swap rows."""
    prompts = [[*range(100, 126)], [5, 6, 7, 8]]
    settings = {"max_batch_tokens": 6, "max_sequences": 4, "chunking": "equal_progress"}
    engine = both(make_engine, prompts, [drawn(i, 12) for i in range(2)], **settings)
    assert engine.overlap.taken > 5


def test_ends_that_nobody_foresees(make: MakeEngine) -> None:
    """A stop token or string is seen a step late: its row has run in vain, and leaves nothing."""
    prompts = random_prompts(8, seed=92)
    stops: dict[str, Any] = {"stop_token_ids": tuple(range(0, 320, 9)), "stop": ["e", "1"]}
    params = [drawn(i, 40, **stops) for i in range(8)]
    plain, ahead = (make(overlap=choice, max_sequences=5) for choice in (False, True))
    outputs = [engine.generate(prompts, params) for engine in (plain, ahead)]
    kept = [[(o.outputs[0].token_ids, o.outputs[0].text) for o in each] for each in outputs]
    assert kept[0] == kept[1]
    assert any(o.outputs[0].finish_reason == "stop" for o in outputs[1])
    assert ahead.overlap.taken > 5
    assert ahead.cache.blocks.num_used == 0
    ahead.cache.check()


def test_too_few_blocks(make: MakeEngine) -> None:
    """Nobody is preempted for a pass that is started ahead, and preemption goes as ever."""
    prompts = random_prompts(6, seed=93, longest=30)
    tight: dict[str, Any] = {"num_blocks": 14, "block_size": 8, "max_batch_tokens": 64}
    engine = both(make, prompts, [drawn(i, 40) for i in range(6)], **tight)
    assert engine.cache.stats().recomputed > 0
    assert engine.overlap.plain["no row goes on, or blocks lack"] > 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"logprobs": 1}, "log-probabilities"),
        ({"repetition_penalty": 1.5}, "processed"),
        ({"top_p": 0.9}, "top_p without top_k"),
        ({"activations": "layers.0"}, "more than tokens"),
        ({"logits_processors": [lambda ids, logits: logits]}, "processed"),
        ({"beam_width": 2, "n": 2}, ""),
    ],
)
def test_what_needs_the_host_is_plain_and_says_so(
    make_engine: MakeEngine, settings: dict[str, Any], why: str
) -> None:
    prompts = random_prompts(3, seed=94)
    seeded = {} if "beam_width" in settings else {"temperature": 1.3, "seed": 1}
    params = SamplingParams(max_tokens=8, ignore_eos=True, **seeded, **settings)
    engine = both(make_engine, prompts, params)
    assert engine.overlap.taken == 0
    assert not why or any(why in reason for reason in engine.overlap.plain)


def test_filters_that_stay_on_the_device(make: MakeEngine) -> None:
    prompts = random_prompts(4, seed=95)
    params = [drawn(i, 12, top_k=5 + i, top_p=0.9, min_p=0.05 * i) for i in range(4)]
    assert both(make, prompts, params).overlap.taken == 11


def test_proposers_and_a_users_sampler_are_plain(make_engine: MakeEngine) -> None:
    class Own(Sampler):
        def __call__(self, logits: Any, sequences: Any) -> Any:
            return super().__call__(logits, sequences)

    for part in ({"proposer": NGram(2)}, {"sampler": Own()}):
        engine = make_engine(overlap=True)
        engine.swap(**part)
        tokens_of(engine, random_prompts(2, seed=96), greedy(10))
        assert engine.overlap.taken == 0


class Sometimes(Control):
    """Drafts in one step of five, and knows it one step ahead."""

    def __init__(self) -> None:
        super().__init__(SpeculationConfig(adaptive=True))
        self.asked = 0

    def pauses(self, num_sequences: int) -> bool:
        return self.asked % 5 != 4

    def depth(self, num_sequences: int) -> int:
        self.asked += 1
        return 0 if self.asked % 5 else 4


def test_while_an_adaptive_proposer_pauses_passes_start_ahead(make_engine: MakeEngine) -> None:
    """A step that drafts finds nothing under way."""
    prompts = [[5, 6, 7] * 6, [5, 6, 7] * 6 + [9], *random_prompts(3, seed=8)]
    params = [greedy(30) if i % 2 == 0 else drawn(i, 30) for i in range(5)]
    expected = tokens_of(make_engine(overlap=False), prompts, params)
    engine = make_engine(overlap=True)
    engine.swap(proposer=NGram(4, max_n=2))
    engine.speculator.control = Sometimes()
    outputs = engine.generate(prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert sum(output.metrics.num_accepted for output in outputs) > 0
    assert engine.overlap.taken > 10
    assert engine.overlap.plain["there is a proposer"] >= 4
    assert engine.overlap.dropped == 0


class Reader(NGram):
    """Drafts n-grams, and notes the states that it is handed."""

    needs = ("layers.0", "")

    def __init__(self) -> None:
        super().__init__(4, max_n=2)
        self.seen: dict[int, dict[int, Any]] = {}

    def propose(self, context: Any) -> Any:
        for candidate in context.candidates:
            assert candidate.states is not None
            rows = [candidate.states.rows[point] for point in self.needs]
            seen = self.seen.setdefault(candidate.sequence.sequence_id, {})
            seen |= dict(enumerate(torch.cat(rows, -1), start=candidate.states.start))
        return super().propose(context)


def test_what_a_paused_proposer_reads_is_kept_of_passes_started_ahead(
    make_engine: MakeEngine,
) -> None:
    """Of every token, at its place: prompts come beside, rows end by a token that nobody foresaw,
    and others take their places."""
    prompts = [[5, 6, 7] * 6, [5, 6, 7] * 6 + [9], *random_prompts(7, seed=8, longest=30)]
    stops = {"stop_token_ids": list(range(0, 320, 20))}
    params = [greedy(40) if i < 2 else drawn(i, 40, **stops) for i in range(9)]
    readers = []
    for overlap in (False, True):
        engine = make_engine(overlap=overlap, max_sequences=5, max_batch_tokens=24)
        engine.scheduler.foresight.many = 2
        readers.append(Reader())
        engine.swap(proposer=readers[-1])
        engine.speculator.control = Sometimes()
        tokens_of(engine, prompts, params)
    assert engine.overlap.taken > 10
    plain, ahead = (reader.seen for reader in readers)
    assert plain.keys() == ahead.keys()
    compared = 0
    for number, rows in plain.items():
        for position in rows.keys() & ahead[number].keys():
            torch.testing.assert_close(rows[position], ahead[number][position])
            compared += 1
    assert compared > 100


def test_a_step_by_hand_leaves_nothing_under_way(make_engine: MakeEngine) -> None:
    engine = make_engine(overlap=True, block_size=4)
    engine.add([1, 2, 3], greedy(20))
    for _ in range(4):
        engine.advance()
    assert engine.overlap._ahead is not None
    [sequence] = engine.scheduler.running
    engine.step()
    assert engine.overlap._ahead is None
    assert engine.overlap.dropped == 1
    assert sequence.num_tokens == 3 + 5
    engine.run(3)
    assert engine.overlap._ahead is None
    assert engine.cache.blocks.num_used == engine.cache.blocks.blocks_for(sequence.num_computed)
    engine.discard(list(engine.requests))


def test_what_is_changed_by_the_engines_methods_is_seen_at_once(make: MakeEngine) -> None:
    """Between two steps of the overlapped loop, as a subscriber or a server would."""

    def run(overlap: bool) -> list[list[int]]:
        engine = make(overlap=overlap, block_size=4)
        prompts = random_prompts(4, seed=97)
        names = [engine.add(p, drawn(i, 30)) for i, p in enumerate(prompts)]

        def change(event: Event) -> None:
            if not isinstance(event, StepDone):
                return
            if event.step == 5:
                engine.fork(names[0], new_id="twin")
            if event.step == 8:
                engine.abort(names[1])
            if event.step == 10:
                engine.pause(names[2])
                engine.add([5, 6, 7], greedy(9), request_id="late")
            if event.step == 14:
                engine.resume(names[2])
            if event.step == 18:
                engine.swap(sampler=Sampler(), backend=["sdpa", "reference"][event.step % 2])

        engine.bus.subscribe(change)
        engine.run()
        found = [engine.output(name).outputs[0].token_ids for name in engine.requests]
        if overlap:
            assert engine.overlap.dropped > 1
            assert engine.overlap.taken > 15
        return found

    assert run(True) == run(False)


def test_a_probe_sees_every_pass_once(make_engine: MakeEngine) -> None:
    engine = make_engine(overlap=True)
    engine.add([1, 2, 3], greedy(30))
    for _ in range(3):
        engine.advance()
    with probe(engine.model, ["layers.0"]) as seen:
        before = engine.overlap.dropped
        engine.advance()
        assert "layers.0" in seen
        assert engine.overlap.dropped == before + 1
    engine.run()
    assert engine.overlap.taken > 20


def test_an_interrupted_pass_ahead_is_run_again(make_engine: MakeEngine) -> None:
    """Whatever part of a step fails, its tokens come as if nothing had happened."""
    prompts = random_prompts(4, seed=98)
    expected = tokens_of(make_engine(overlap=False), prompts, drawn(3, 20))
    engine = make_engine(overlap=True)
    names = [engine.add(prompt, drawn(3, 20)) for prompt in prompts]
    calls, original = 0, engine.runner.run

    def run_or_fail(plan: Any) -> Any:
        nonlocal calls
        calls += 1
        output = original(plan)
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return output

    engine.runner.run = run_or_fail  # type: ignore[method-assign]
    while engine.has_work:
        try:
            engine.run()
        except KeyboardInterrupt:
            engine.cache.check()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


# --- any requests, at any time ----------------------------------------------------------------


@pytest.fixture(scope="module")
def small_model() -> DecoderLM:
    sizes = 50, 32, 24, 2, 2, 1, 16
    model = LlamaForCausalLM(ModelConfig("LlamaForCausalLM", *sizes, context=96))
    model.init_weights(std=0.3)
    return model.requires_grad_(False)


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 14),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([None, 5]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.5]),
    logprobs=st.sampled_from([None, None, None, 1]),
    n=st.just(1),
    seed=st.integers(0, 9),
    stop_token_ids=st.sampled_from([(), (1, 2, 3, 4, 5, 6, 7, 8)]),
)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 20), st.lists(st.integers(9, 20), min_size=1, max_size=20), PARAMS),
    min_size=1,
    max_size=8,
)
ACTIONS = st.dictionaries(
    st.integers(1, 25), st.tuples(st.sampled_from(["abort", "pause", "resume", "fork"]), st.just(0))
)


@settings(max_examples=60, deadline=None)
@given(
    requests=REQUESTS,
    actions=ACTIONS,
    num_blocks=st.sampled_from([12, 60]),
    max_sequences=st.integers(1, 6),
    budget=st.integers(6, 40),
)
def test_any_requests_get_the_plain_loops_tokens(
    small_model: DecoderLM,
    requests: list[Any],
    actions: dict[int, Any],
    num_blocks: int,
    max_sequences: int,
    budget: int,
) -> None:
    def run(overlap: bool) -> list[Any]:
        cache = KVCache.for_model(small_model, num_blocks, block_size=4)
        for tensor in cache.tensors:
            tensor.fill_(torch.nan)
        config = SchedulerConfig(max_batch_tokens=budget, max_sequences=max_sequences)
        runner = Runner(small_model, cache, "sdpa")
        scheduler = Scheduler(cache, config)
        engine = Engine(small_model, cache, scheduler, runner, overlap=overlap)
        # By how far a request has come, not by the step: the loops need not plan alike.
        due = sorted(requests, key=lambda request: request[0])
        for step in range(400):
            while due and due[0][0] <= step:
                _, prompt, params = due.pop(0)
                engine.add(prompt, params)
            act(engine, actions.get(step), step)
            if not engine.has_work and not due:
                break
            engine.advance()
            engine.cache.check()
        engine.overlap.drop()
        for name, record in engine.requests.items():
            if not record.finished:
                engine.resume(name)
        engine.run()
        assert engine.cache.blocks.num_used == 0
        outputs = [engine.output(name).outputs for name in sorted(engine.requests)]
        return [[(c.token_ids, c.finish_reason) for c in each] for each in outputs]

    assert run(True) == run(False)


def act(engine: Engine, action: Any, step: int) -> None:
    """Do something to the first request that has not ended."""
    names = [name for name, record in engine.requests.items() if not record.finished]
    if action is None or not names:
        return
    if action[0] == "fork":
        if engine.requests[names[0]].request.params.n == 1:
            engine.fork(names[0], new_id=f"twin{step}")
    else:
        getattr(engine, action[0])(names[0])


@pytest.mark.parametrize("overlap", ["yes", 1, None])
def test_what_is_no_choice_is_refused(overlap: Any) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        check(EngineConfig(overlap=overlap))


def test_auto_is_on_where_there_is_a_gpu(make_engine: MakeEngine, device: str) -> None:
    assert make_engine(device=device).overlap.on == (device == "cuda")
