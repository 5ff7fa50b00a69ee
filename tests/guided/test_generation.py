"""The embedded model under guides: what it writes always parses, and always can end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from guiding import BOTH, accepts, compiled
from snapshots import Follower

from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.engine import Engine
from workbench.engine.record import StepRecord
from workbench.errors import RequestError
from workbench.guided import CompiledGrammar, GrammarCompiler
from workbench.guided_params import GuidedDecodingParams
from workbench.models import DecoderLM
from workbench.request import RequestOutput, Status
from workbench.run import Runner
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler
from workbench.speculation import NGram
from workbench.trace import Trace
from workbench.views import TokenView

PROMPT = "# An example of such a value, as a config file would have it:\n"
NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "when": {"type": ["integer", "null"]}},
            "required": ["ok", "when"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "size", "tags", "inner"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "maybe", "naïve", "日本"]


def generate(
    model: DecoderLM, compiler: GrammarCompiler, params: list[SamplingParams], **settings: Any
) -> list[RequestOutput]:
    """Run all requests in one batch."""
    cache = KVCache.for_model(model, num_blocks=settings.pop("num_blocks", 256), block_size=16)
    budgets = {"max_batch_tokens": 256, "max_sequences": 32, **settings}
    scheduler = Scheduler(cache, SchedulerConfig(**budgets))
    runner = Runner(model, cache)
    with Engine(model, cache, scheduler, runner, grammars=compiler) as engine:
        outputs = engine.generate([PROMPT] * len(params), params)
        assert cache.blocks.num_used == 0
        return outputs


def guided(params: SamplingParams, **constraint: Any) -> SamplingParams:
    """Return the parameters under a constraint."""
    return replace(params, guided_decoding=GuidedDecodingParams(**constraint))


def both_ways(max_tokens: int) -> list[SamplingParams]:
    """Return greedy parameters and three that draw, one of them wildly."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "seed": 2, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 3.0, "seed": 3},
    ]
    return [SamplingParams(max_tokens=max_tokens, **setting) for setting in settings]


LISTING = 'root ::= item ("," item){1,3}\nitem ::= [0-9]{1,2} | "(" item ")"'
REGEX = r"[a-z\u0430-\u044f]{2,8}(-[0-9]{1,3}){1,2}"
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "json": {"json": NESTED, "max_whitespace": 1},
    "regex": {"regex": REGEX},
    "choice": {"choice": CHOICES},
    "grammar": {"grammar": LISTING},
}


@pytest.mark.parametrize("backend", BOTH)
def test_output_meets_its_constraint(
    model: DecoderLM, compiler: GrammarCompiler, backend: str
) -> None:
    kinds = [kind for kind in CONSTRAINTS for _ in range(4)]
    jobs = [
        guided(params, backend=backend, **CONSTRAINTS[kind])
        for kind, params in zip(kinds, both_ways(120) * 4, strict=True)
    ]
    plain = SamplingParams(max_tokens=8, temperature=0)
    outputs = generate(model, compiler, [*jobs, plain])
    for kind, output in zip(kinds, outputs, strict=False):
        (completion,) = output.outputs
        text = completion.text
        if completion.finish_reason == "length":
            assert kind in ("json", "grammar")  # deep brackets may go on; all others are short
            continue
        assert completion.finish_reason == "stop", completion.error
        grammar = compiled(compiler, backend, **CONSTRAINTS[kind])
        assert accepts(compiler, grammar, text), text
        if kind == "json":
            jsonschema.Draft202012Validator(NESTED).validate(json.loads(text))
        elif kind == "regex":
            assert re.fullmatch(REGEX, text)
        elif kind == "choice":
            assert text in CHOICES
    ended = [o for o in outputs[:16] if o.outputs[0].finish_reason == "stop"]
    assert len(ended) >= 13
    # The unguided neighbour writes what it writes alone.
    (alone,) = generate(model, compiler, [plain])
    assert alone.outputs[0].token_ids == outputs[-1].outputs[0].token_ids


@pytest.mark.parametrize("proposer", [None, NGram(max_draft=4)])
def test_a_trace_tells_which_tokens_a_grammar_forced(
    model: DecoderLM, compiler: GrammarCompiler, proposer: NGram | None
) -> None:
    cache = KVCache.for_model(model, num_blocks=64, block_size=16)
    scheduler, runner = Scheduler(cache, SchedulerConfig(max_sequences=4)), Runner(model, cache)
    settings: dict[str, Any] = {"proposer": proposer, "grammars": compiler}
    regex = r"[xy]ab☃☃ab☃☃[0-9]{3}"
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=2)
    with Engine(model, cache, scheduler, runner, **settings) as engine, Trace.record(engine) as t:
        engine.generate([PROMPT + "ab☃☃ab☃☃", PROMPT], [guided(params, regex=regex), params])
    told, plain = t.sequences.values()
    guide, makers = compiled(compiler, regex=regex).start(), []
    for token in told.tokens:
        makers.append("forced" if len(guide.allowed()) == 1 else "sampled")
        guide.accept(token.token_id)
    assert {"forced", "sampled"} == set(makers)
    assert "forced" not in [token.maker for token in plain.tokens]
    found = [token.maker for token in told.tokens]
    assert "forced" in found
    assert ("drafted" in found) == (proposer is not None)
    kept = [(a, b) for a, b in zip(found, makers, strict=True) if a != "drafted"]
    assert all(a == b for a, b in kept)
    table = TokenView(t).tokens(told.request_id)
    assert list(table["maker"])[len(told.prompt_token_ids) :] == found


def test_a_cut_is_a_length_and_an_end_is_in_reach(
    model: DecoderLM, compiler: GrammarCompiler
) -> None:
    cut = SamplingParams(max_tokens=20, temperature=2.0, seed=7)
    constraint = {"json": NESTED, "max_whitespace": 0}
    (output,) = generate(model, compiler, [guided(cut, **constraint)])
    assert output.outputs[0].finish_reason == "length"
    guide = compiled(compiler, **constraint).start()
    for token_id in output.outputs[0].token_ids:
        guide.accept(token_id)
    assert not guide.ended
    tokens = compiler.vocabulary.tokens
    for _ in range(200):
        if guide.accepting:
            break
        # Whatever closes first, else the shortest way on.
        allowed = [i for i in guide.allowed() if tokens[i]]
        guide.accept(
            min(allowed, key=lambda i: (tokens[i] not in (b'"', b"}", b"]"), len(tokens[i])))
        )
    assert guide.accepting


@pytest.mark.parametrize(
    "settings",
    [{"num_blocks": 14}, {"max_batch_tokens": 5, "max_sequences": 4}, {"prefix_reuse": False}],
    ids=str,
)
def test_guides_survive_preemption_chunks_and_company(
    model: DecoderLM, compiler: GrammarCompiler, settings: dict[str, Any]
) -> None:
    drawn = SamplingParams(max_tokens=40, temperature=1.0, seed=5)
    jobs = [guided(drawn, **constraint) for constraint in CONSTRAINTS.values()]
    alone = [generate(model, compiler, [job])[0].outputs[0].token_ids for job in jobs]
    crowd = generate(model, compiler, [*jobs, replace(drawn, seed=6)], **settings)
    assert [output.outputs[0].token_ids for output in crowd[:-1]] == alone


def test_branches_and_beams_are_guided_each(model: DecoderLM, compiler: GrammarCompiler) -> None:
    wild = SamplingParams(max_tokens=20, temperature=2.0, seed=1, n=12)
    many, beams = generate(
        model,
        compiler,
        [
            guided(wild, choice=CHOICES),
            guided(SamplingParams(max_tokens=20, beam_width=4, n=4), choice=CHOICES),
        ],
    )
    texts = [output.text for output in many.outputs]
    assert set(texts) <= set(CHOICES)
    assert len(set(texts)) > 1
    single = [guided(replace(wild, n=1, seed=1 + i), choice=CHOICES) for i in range(12)]
    alone = [output.outputs[0].text for output in generate(model, compiler, single)]
    assert texts == alone
    found = [output.text for output in beams.outputs]
    assert set(found) <= set(CHOICES)
    assert len(set(found)) == 4


def test_forks_checkpoints_and_files_keep_the_guide(
    model: DecoderLM, compiler: GrammarCompiler, tmp_path: Path
) -> None:
    params = guided(SamplingParams(max_tokens=60, temperature=1.0, seed=3), json=NESTED)
    (expected,) = generate(model, compiler, [params])
    cache = KVCache.for_model(model, num_blocks=64, block_size=16)
    budgets = SchedulerConfig(max_batch_tokens=64, max_sequences=8)
    parts = model, cache, Scheduler(cache, budgets), Runner(model, cache)
    with Engine(*parts, grammars=compiler) as engine:
        name = engine.add(PROMPT, params)
        early = engine.fork(name)  # before there is a guide
        while engine.requests[name].num_output_tokens < 9:
            engine.step()
        late, state = engine.fork(name), engine.checkpoint()
        path = engine.save(name, tmp_path / "guided.json")
        loaded = engine.load(path, request_id="loaded")
        engine.run()
        for one in (name, early, late, loaded):
            assert engine.output(one).outputs[0].token_ids == expected.outputs[0].token_ids
        engine.restore(state)
        engine.run()
        assert engine.output(name).outputs[0].text == expected.outputs[0].text
        other = replace(params, guided_decoding=GuidedDecodingParams(regex="a+"))
        engine.restore(state)
        with pytest.raises(RequestError, match="under its original's constraint"):
            engine.fork(name, other)


def test_a_grammar_that_cannot_be_ends_its_request_alone(
    model: DecoderLM, compiler: GrammarCompiler
) -> None:
    plain = SamplingParams(max_tokens=6, temperature=0)
    bad = [
        guided(plain, regex="(a"),
        guided(plain, json={"$ref": "#"}),
        guided(plain, grammar='root ::= "a" root'),
        guided(replace(plain, n=1, min_tokens=6), choice=["ab"]),
        guided(replace(plain, n=3, temperature=1.0), regex="(a"),
        guided(replace(plain, best_of=3, temperature=1.0), regex="(a"),
        guided(replace(plain, beam_width=3, n=2), regex="(a"),
    ]
    outputs = generate(model, compiler, [*bad, plain])
    (alone,) = generate(model, compiler, [plain])
    assert outputs[-1].outputs[0].token_ids == alone.outputs[0].token_ids
    for output in outputs[:-1]:
        for one in output.outputs:
            assert one.finish_reason == "error"
            assert "guided_decoding" in one.error
            assert not one.token_ids or output is outputs[3]
    assert [len(output.outputs) for output in outputs[4:-1]] == [3, 1, 1]


def test_a_request_that_waits_for_its_grammar_can_be_aborted(model: DecoderLM) -> None:
    cache = KVCache.for_model(model, num_blocks=64, block_size=16)
    parts = model, cache, Scheduler(cache, SchedulerConfig()), Runner(model, cache)
    with Engine(*parts) as engine:  # its own compiler, whose worker has yet to start
        params = guided(SamplingParams(max_tokens=6), choice=["yes", "no"])
        name, other = engine.add(PROMPT, params), engine.add(PROMPT, params)
        assert engine.has_work
        assert engine.abort(name).outputs[0].finish_reason == "abort"
        engine.run()
        assert engine.output(other).outputs[0].text in ("yes", "no")
    with pytest.raises(RequestError, match="ignore_eos"):
        replace(params, ignore_eos=True)
    with pytest.raises(RequestError, match="is not a GuidedDecodingParams"):
        SamplingParams(guided_decoding="json")


class Stalled:
    """An engine beside a compiler whose answers come when they are asked for."""

    def __init__(
        self, model: DecoderLM, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.future: Future[CompiledGrammar] = Future()
        self.grammar = compiled(compiler, choice=["yes", "no"])
        monkeypatch.setattr(compiler, "compile", lambda _: self.future)
        cache = KVCache.for_model(model, num_blocks=64, block_size=16)
        parts = model, cache, Scheduler(cache, SchedulerConfig()), Runner(model, cache)
        self.engine = Engine(*parts, grammars=compiler)
        self.params = guided(SamplingParams(max_tokens=6), choice=["yes", "no"])
        self.follower = Follower(cache)
        self.engine.bus.subscribe(self.follower)

    def step(self) -> StepRecord:
        """Step, and compare what the events say of the sequences with what is."""
        record = self.engine.step()
        alive = [s for r in self.engine.requests.values() for s in r.sequences if not s.finished]
        self.follower.compare(self.engine.cache, self.engine.scheduler, alive)
        return record

    def answer(self) -> None:
        self.future.set_result(self.grammar)


@pytest.fixture
def stalled(
    model: DecoderLM, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stalled]:
    made = Stalled(model, compiler, monkeypatch)
    with made.engine as engine:
        yield made
        assert not engine.has_work
        engine.cache.check()
        assert engine.cache.blocks.num_used == 0


@pytest.mark.parametrize("paused", [False, True])
def test_a_time_out_does_not_wait_for_the_grammar(stalled: Stalled, paused: bool) -> None:
    engine = stalled.engine
    late = engine.add(PROMPT, stalled.params, timeout=1e-9)
    early = engine.add(PROMPT, stalled.params, timeout=1e6)
    branched = replace(stalled.params, n=3)
    branches = engine.add(PROMPT, branched, timeout=1e-9)
    if paused:
        engine.pause(late)
    record = stalled.step()
    assert {s.request.request_id for s in record.finished} == {late, branches}
    for name in (late, branches):
        assert engine.output(name).finished
        assert {o.finish_reason for o in engine.output(name).outputs} == {"timeout"}
    assert engine.has_work
    stalled.answer()
    engine.run()
    assert engine.output(early).outputs[0].text in ("yes", "no")


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("resumed", ["before", "after"])
def test_a_pause_while_the_grammar_is_compiled(
    stalled: Stalled, release: bool, resumed: str
) -> None:
    engine = stalled.engine
    name = engine.add(PROMPT, stalled.params)
    engine.pause(name, release=release)
    stalled.step()
    if resumed == "before":
        engine.resume(name)
        stalled.step()
    stalled.answer()
    stalled.step()
    engine.run()
    if resumed == "after":
        assert engine.output(name).outputs[0].token_ids == []
        engine.resume(name)
        engine.run()
    assert engine.output(name).outputs[0].text in ("yes", "no")
    assert engine.scheduler.paused == []


def test_a_paused_request_from_a_checkpoint_resumes_before_its_grammar(stalled: Stalled) -> None:
    engine = stalled.engine
    name = engine.add(PROMPT, stalled.params)
    engine.pause(name)
    engine.restore(engine.checkpoint())
    engine.step()
    assert engine.requests[name].sequences[0].status is Status.PAUSED
    engine.resume(name)
    engine.step()
    stalled.answer()
    engine.run()
    assert engine.output(name).outputs[0].text in ("yes", "no")


def test_a_request_paused_before_its_grammar_can_be_aborted(stalled: Stalled) -> None:
    name = stalled.engine.add(PROMPT, stalled.params)
    stalled.engine.pause(name)
    assert stalled.engine.abort(name).outputs[0].finish_reason == "abort"
    assert stalled.engine.scheduler.paused == []
    stalled.engine.step()
    stalled.answer()


def test_whatever_breaks_a_compilation_ends_only_who_waits_for_it(
    model: DecoderLM, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: GuidedDecodingParams) -> Future[CompiledGrammar]:
        future: Future[CompiledGrammar] = Future()
        future.set_exception(OSError("the worker is gone"))
        return future

    monkeypatch.setattr(compiler, "compile", broken)
    plain = SamplingParams(max_tokens=4, temperature=0)
    lost, other = generate(model, compiler, [guided(plain, regex="a+"), plain])
    assert (lost.outputs[0].finish_reason, lost.outputs[0].error) == ("error", "the worker is gone")
    assert other.outputs[0].finish_reason == "length"
