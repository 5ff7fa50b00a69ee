"""A trace says of each token where it came from; its texts outlive the tokenizer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from drive import MakeEngine, drawn, greedy
from tiny import random_prompts

from workbench import events
from workbench.batch import StepPlan
from workbench.request import Sequence
from workbench.results import ForwardOutput
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

PROMPTS = random_prompts(4, seed=21, longest=20)


def test_tokens_from_before_the_recording(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add(PROMPTS[0], greedy(9))
    engine.run(3)
    with Trace.record(engine) as trace:
        engine.run()
    [log] = trace.sequences.values()
    assert log.token_ids == engine.find("r0").sequences[0].output_token_ids
    assert [token.maker for token in log.tokens] == ["brought"] * 3 + ["sampled"] * 6
    assert [token.step for token in log.tokens] == [None] * 3 + [4, 5, 6, 7, 8, 9]


def test_of_a_whole_run(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=40, block_size=4)
    with Trace.record(engine) as trace:
        engine.add(PROMPTS[0], greedy(9, logprobs=2))
        engine.add(PROMPTS[1], greedy(7))
        engine.add(PROMPTS[2], drawn(3, 6, n=3, logprobs=0))
        beams = SamplingParams(beam_width=2, n=2, max_tokens=5, ignore_eos=True)
        searched = engine.add(PROMPTS[3], beams)
        engine.run(3)
        twin = engine.fork("r0", greedy(12))
        engine.run()
    logs = trace.sequences
    plain = [s for n, r in engine.requests.items() if n != searched for s in r.sequences]
    for sequence in plain:
        log = logs[sequence.sequence_id]
        assert log.token_ids == sequence.output_token_ids
        assert list(log.prompt_token_ids) == sequence.token_ids[: sequence.num_prompt_tokens]
        assert log.finish_reason == sequence.finish_reason
        assert {token.maker for token in log.tokens} == {"sampled"}
        if log.request_id != twin:  # of what it shares, its parent was told more
            assert_logprobs(sequence, [token.logprob for token in log.tokens])
        assert log.seconds == sorted(log.seconds)
    [twin_log] = [log for log in logs.values() if log.request_id == twin]
    parent = logs[engine.find("r0").sequences[0].sequence_id]
    assert twin_log.parent_id == parent.sequence_id
    assert twin_log.tokens[:3] == parent.tokens[:3]
    assert {token.sequence_id for token in twin_log.tokens[3:]} == {twin_log.sequence_id}
    of_beams = [log for log in logs.values() if log.request_id == searched]
    assert {token.maker for log in of_beams for token in log.tokens} == {"chosen"}
    ended = [log.token_ids for log in of_beams if log.finish_reason != "dropped"]
    assert ended or of_beams


def assert_logprobs(sequence: Sequence, told: list[float | None]) -> None:
    asked = sequence.request.params.logprobs is not None
    expected = [entry.logprob for entry in sequence.logprobs or []] if asked else None
    assert told == (expected or [None] * len(told))


def test_restored_tokens_keep_their_origin(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with Trace.record(engine) as trace:
        engine.add(PROMPTS[0], greedy(8))
        engine.run(4)
        state = engine.checkpoint()
        engine.run(2)
        engine.restore(state)
        engine.run()
    first, again = trace.sequences.values()
    assert first.finish_reason == "abort"
    assert again.tokens[:4] == first.tokens[:4]
    assert [token.step for token in again.tokens] == [1, 2, 3, 4, 7, 8, 9, 10]


def test_drafted_tokens() -> None:
    trace = Trace()
    for event in (
        events.RequestAdded(0, "r", 4, 2, 9, (1, 2)),
        events.StepDone(1, ((4, 3),), {}, 0),
        events.DraftVerified(2, 4, "medusa", (5, 6, 7), (-1, 0, 0), None, (0, 2), 8),
        events.StepDone(2, ((4, 5), (4, 7), (4, 8)), {}, 0, (), ((-0.5, ()), (-1.0, ()), None)),
        events.StepDone(3, ((4, 9),), {}, 0),
    ):
        trace(event)
    [log] = trace.sequences.values()
    assert [(t.token_id, t.step, t.maker, t.proposer, t.logprob) for t in log.tokens] == [
        (3, 1, "sampled", None, None),
        (5, 2, "drafted", "medusa", -0.5),
        (7, 2, "drafted", "medusa", -1.0),
        (8, 2, "sampled", None, None),
        (9, 3, "sampled", None, None),
    ]


def test_texts_are_saved(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    with Trace.record(engine) as trace:
        name = engine.add("for index, value", greedy(6, logprobs=3))
        engine.run()
    ids = engine.find(name).sequences[0].token_ids
    top = [i for log in trace.sequences.values() for t in log.tokens for i, _ in t.top]
    loaded = Trace.load(trace.save(tmp_path / "t.trace"))
    engine.close()
    prompt = next(iter(loaded.sequences.values())).prompt_token_ids
    assert "".join(map(loaded.text_of, prompt)) == "for index, value"
    assert [loaded.text_of(i) for i in ids + top] == [trace.text_of(i) for i in ids + top]
    unknown = next(i for i in range(320) if str(i) not in loaded.header["texts"])
    assert loaded.text_of(unknown) == f"<{unknown}>"


def test_perfetto_shows_requests_and_kv_use(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(num_blocks=24, block_size=4)
    with Trace.record(engine) as trace:
        names = [engine.add(prompt, greedy(9)) for prompt in PROMPTS]
        engine.run(3)
        engine.pause(names[0], release=True)
        engine.run(2)
        engine.resume(names[0])
        engine.run()
    written = json.loads(trace.to_perfetto(tmp_path / "t.json").read_text())["traceEvents"]
    tracks = {r["tid"]: r["args"]["name"] for r in written if r["name"] == "thread_name"}
    assert tracks == dict(enumerate(names))
    states = [(r["name"], r["ts"], r["dur"]) for r in written if (r["pid"], r["ph"]) == (2, "X")]
    of_first = [
        (r["name"], r["ts"], r["ts"] + r["dur"])
        for r in written
        if (r["pid"], r["ph"], r.get("tid")) == (2, "X", 0)
    ]
    expected = ["waiting", "running", "paused", "waiting", "running"]
    assert [name for name, *_ in of_first] == expected
    ends = [end for *_, end in of_first]
    assert [begin for _, begin, _ in of_first[1:]] == pytest.approx(ends[:-1])
    assert all(duration >= 0 for *_, duration in states)
    rows = [r for r in written if (r["pid"], r["ph"]) == (3, "X")]
    assert len(rows) == sum(len(plan.rows) for plan in trace.of(events.StepPlanned))
    used = [r["args"]["used"] for r in written if r["name"] == "blocks"]
    assert used == [trace.at(step).num_used for step in trace.steps]
    [preempted] = [r for r in written if r["name"] == "preempted"]
    assert preempted["args"]["cause"] == "paused and released"


def test_a_data_frame_of_each_kind(make_engine: MakeEngine) -> None:
    pytest.importorskip("pandas", reason="the extra `notebook` brings it")
    engine = make_engine(num_blocks=24, block_size=4)
    with Trace.record(engine) as trace:
        engine.add(PROMPTS[0], greedy(9))
        engine.run()
    frame = trace.to_pandas(events.BlockAllocated)
    assert list(frame.columns) == ["seconds", "step", "block_id", "sequence_id", "index"]
    assert list(frame["index"]) == [event.index for event in trace.of(events.BlockAllocated)]
    assert frame["seconds"].is_monotonic_increasing
    assert len(trace.to_pandas(events.Preempted)) == 0


def test_what_the_device_says_is_told(make_engine: MakeEngine) -> None:
    """A stand-in for the timer: on a CPU there is none."""
    engine = make_engine()
    run = engine.runner.run

    def timed(plan: StepPlan) -> ForwardOutput:
        output = run(plan)
        output.timer = SimpleNamespace(seconds=0.25)
        return output

    engine.add(PROMPTS[0], greedy(4))
    with Trace.record(engine) as trace:
        engine.run(2)
        engine.runner.run = timed  # type: ignore[method-assign]
        engine.run()
    assert [done.device_seconds for done in trace.of(events.StepDone)] == [None, None, 0.25, 0.25]


@pytest.mark.gpu
def test_a_gpu_counts_its_passes(make_engine: MakeEngine) -> None:
    engine = make_engine(device="cuda", backend="triton")
    engine.add(PROMPTS[0], greedy(8))
    with Trace.record(engine) as trace:
        begin = time.perf_counter()
        engine.run()
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - begin
    # A pass that was started ahead ran during the step before, so that steps alone bound nothing.
    counted = [done.device_seconds or 0.0 for done in trace.of(events.StepDone)]
    assert all(counted)
    assert sum(counted) < elapsed
