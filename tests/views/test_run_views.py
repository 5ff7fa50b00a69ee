"""What the views of a run show in the browser is what the engine did, over random runs."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from long_run import long_run_engine, work
from recorded_run import SCRIPT, RecordedRun
from tiny import VOCAB

import workbench as wb
from workbench import events
from workbench.engine import StepRecord
from workbench.errors import ConfigError, RequestError
from workbench.trace import Trace
from workbench.views import BatchTimeline, SpeculationTree, TokenView, recording
from workbench.views.lane import Maker, State, Work
from workbench.views.run_log import RunLog

READER = Path(__file__).parent / "read_run.mjs"
SHARED = [5 + 7 * i % (VOCAB - 6) for i in range(30)]


def drive(engine: wb.Engine, source: random.Random, steps: int) -> list[StepRecord]:
    """Work with forks, branches, beams, pauses, aborts and rewinding; return what steps did."""
    states, records = [], []
    for _ in range(steps):
        if source.random() < 0.4:
            prompt = [*SHARED[: source.randint(0, 24)], *source.choices(range(1, VOCAB), k=3)]
            kinds = [
                {"max_tokens": source.randint(1, 20), "logprobs": 3, "seed": 1},
                {"max_tokens": source.randint(1, 9), "n": 2, "seed": 1},
                {"max_tokens": source.randint(1, 9), "beam_width": 2},
            ]
            engine.add(prompt, wb.SamplingParams(**source.choice(kinds)))
        running = [n for n, r in engine.requests.items() if not r.finished and r.strategy is None]
        act = source.random()
        if running and act < 0.05:
            engine.abort(source.choice(running))
        elif running and act < 0.1:
            with suppress(RequestError):
                engine.fork(source.choice(running), wb.SamplingParams(max_tokens=30))
        elif running and act < 0.15:
            engine.pause(source.choice(running), release=source.random() < 0.5)
        elif act < 0.3:
            for name in running:
                engine.resume(name)
        elif act < 0.34:
            states.append(engine.checkpoint())
        elif states and act < 0.36:
            engine.restore(source.choice(states))
        records.append(engine.step())
    return records


def read(node: Any, view: BatchTimeline) -> dict[str, Any]:
    """Return what the browser's code says of a timeline's columns."""
    names = [f"{group}_{part}" for group in view.GROUPS for part in ("old", "new")]
    state = {name: base64.b64encode(getattr(view, name)).decode() for name in names}
    done = node(str(READER), stdin=json.dumps({"state": state, "groups": view.GROUPS}))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("seed", range(3))
def test_the_browser_shows_what_the_engine_did(
    seed: int, node: Any, make_engine: Callable[..., wb.Engine]
) -> None:
    engine = make_engine(num_blocks=24, max_batch_tokens=24, max_sequences=5)
    with Trace.record(engine) as trace:
        view = BatchTimeline(trace)
        records = []
        source = random.Random(seed)
        for _ in range(4):  # in parts, as a live view reads
            records += drive(engine, source, 20)
            view.refresh()
    said = read(node, view)
    assert [step["step"] for step in said["steps"]] == [r.step for r in records]
    for step, record in zip(said["steps"], records, strict=True):
        plan = record.plan
        rows = zip(plan.sequences, plan.starts, plan.num_new, strict=True)
        told = [(row["sequence"], row["from"], len(row["tokens"])) for row in step["rows"]]
        assert told == [(s.sequence_id, start, count) for s, start, count in rows]
        made = [token.token_id for token in record.tokens]
        assert [token for row in step["rows"] for token in row["made"]] == made
    for sequence in trace.sequences.values():
        lane = next(x for x in said["lanes"] if x["sequence"] == sequence.sequence_id)
        assert lane["tokens"] == [*sequence.prompt_token_ids, *sequence.token_ids]
    unfinished = {s.sequence_id: s.token_ids for r in engine.requests.values() for s in r.sequences}
    lanes = {lane["sequence"]: lane["tokens"] for lane in said["lanes"]}
    for number, tokens in unfinished.items():
        if number in lanes:  # an ended hypothesis of a beam never was a sequence of its own
            assert lanes[number] == tokens, number
    assert len(set(unfinished) & set(lanes)) > 5


def events_of(*kinds: Any) -> Trace:
    trace = Trace({"max_batch_tokens": 8})
    for event in kinds:
        trace(event)
    return trace


def done(step: int, *tokens: tuple[int, int], **more: Any) -> events.StepDone:
    return events.StepDone(step, tokens, {"run": 0.002, "sample": 0.001}, 9, **more)


def preempted() -> Trace:
    """A request is preempted after two steps, and computes its KV again."""
    return events_of(
        events.RequestAdded(0, "a", 0, 3, 9, (1, 2, 3)),
        events.RequestAdded(0, "b", 1, 2, 9, (1, 2)),
        events.SequenceAdmitted(1, 0, 0),
        events.PrefixAwaited(1, 1, 0, 2),
        events.StepPlanned(1, ((0, 0, 3),), 1, 1),
        done(1, (0, 7)),
        events.PrefixAwaited(2, 1, 0, 2),
        events.StepPlanned(2, ((0, 3, 1),), 1, 1),
        done(2, (0, 8), logprobs=((-0.5, ((8, -0.5), (9, -1.0))),)),
        events.Preempted(4, 0, "no free block for b", 4),
        events.SequenceAdmitted(4, 0, 0),
        events.StepPlanned(4, ((0, 0, 5),), 1, 1),
        done(4, (0, 9), device_seconds=0.001),
        events.RequestFinished(5, "a", 0, "stop", 3),
        events.StepPlanned(5, ((0, 5, 1),), 1, 1),
        done(5, (0, 6)),
    )


def test_waiting_preemption_and_recomputing_are_told_with_their_cause(node: Any) -> None:
    said = read(node, BatchTimeline(preempted()))
    assert [s["step"] for s in said["steps"]] == [1, 2, 4, 5]
    assert [s["rows"][0]["name"] for s in said["steps"]] == [
        "prefill",
        "decode",
        "recompute",
        "decode",
    ]
    assert said["steps"][0]["states"] == [State.RUNNING, State.AWAITING_PREFIX]
    assert said["steps"][3]["states"] == [State.ENDED, State.AWAITING_PREFIX]
    words = said["steps"][1]["words"]
    assert words[1]["state"] == "waiting for a prefix"
    assert words[1]["why"] == "a computes 2 tokens that both begin with"
    changes = RunLog.of(BatchTimeline(preempted()).trace).lists["causes"]
    assert "no free block for b; KV of 4 tokens to be computed again" in changes
    assert said["lanes"][0]["life"] == [0, 4]


def test_a_paused_request_that_loses_its_blocks_says_so(node: Any) -> None:
    trace = events_of(
        events.RequestAdded(0, "a", 0, 3, 9, (1, 2, 3)),
        events.SequenceAdmitted(1, 0, 0),
        events.StepPlanned(1, ((0, 0, 3),), 0, 1),
        done(1, (0, 7)),
        events.SequencePaused(1, 0),
        events.StepPlanned(2, (), 0, 0),
        done(2),
        events.Preempted(3, 0, "no free block for b", 3),
        events.StepPlanned(3, (), 0, 0),
        done(3),
    )
    said = read(node, BatchTimeline(trace))["steps"]
    assert [step["states"] for step in said] == [[State.RUNNING], [State.PAUSED], [State.PAUSED]]
    assert "why" not in said[1]["words"][0]
    assert said[2]["words"][0]["why"].startswith("no free block for b; KV of 3 tokens")


def test_where_each_token_came_from(node: Any) -> None:
    trace = preempted()
    lane = read(node, BatchTimeline(trace))["lanes"][0]
    assert lane["tokens"] == [1, 2, 3, 7, 8, 9, 6]
    assert lane["steps"] == [None] * 3 + [1, 2, 4, 5]
    assert lane["makers"] == [Maker.PROMPT] * 3 + [Maker.SAMPLED] * 4
    assert lane["logprobs"] == [None] * 4 + [-0.5, None, None]
    assert lane["tops"][4] == [8, 9]
    table = TokenView(trace).tokens("a")
    assert list(table["step"]) == [0, 0, 0, 1, 2, 4, 5]
    assert table["probability"][4] == pytest.approx(0.6065, abs=1e-4)
    with pytest.raises(ConfigError, match="One of: a, b"):
        TokenView(trace).tokens("c")


def drafted() -> Trace:
    """A draft of four, a tree: its second root and the child of that are accepted."""
    tree = (20, 21, 22, 23), (-1, -1, 0, 1), (0.6, 0.3, 0.2, 0.9), (1, 3), 30
    return events_of(
        events.RequestAdded(0, "a", 0, 2, 9, (1, 2)),
        events.SequenceAdmitted(1, 0, 0),
        events.StepPlanned(1, ((0, 0, 2),), 0, 1),
        done(1, (0, 7)),
        events.StepPlanned(2, ((0, 2, 5),), 0, 1),
        events.DraftVerified(2, 0, "medusa", *tree),
        done(2, (0, 21), (0, 23), (0, 30), num_computed=(5,)),
        events.StepPlanned(3, ((0, 5, 1),), 0, 1),
        done(3, (0, 8)),
    )


def test_drafts_accepted_tokens_and_who_drafted_them(node: Any) -> None:
    view = SpeculationTree(drafted())
    assert view.step == 2, "opens where there is something to see"
    assert "medusa drafted 4 tokens for a, mean probability 0.50; 2 accepted" in view.summary()
    assert view.acceptance().values.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert view.drafts().iloc[0].tolist() == [2, "a", "medusa", 4, 2, 2, 30]
    said = read(node, BatchTimeline(view.trace))
    lane, row = said["lanes"][0], said["steps"][1]["rows"][0]
    assert lane["tokens"] == [1, 2, 7, 21, 23, 30, 8]
    makers = [Maker.PROMPT] * 2 + [
        Maker.SAMPLED,
        Maker.DRAFTED,
        Maker.DRAFTED,
        Maker.SAMPLED,
        Maker.SAMPLED,
    ]
    assert lane["makers"] == makers
    kinds = ["own", "rejected", "accepted", "rejected", "accepted"]
    assert [kind for _, kind in row["tokens"]] == kinds
    assert (row["name"], row["drafted"], row["accepted"], row["made"]) == (
        "verify",
        4,
        2,
        [21, 23, 30],
    )
    assert said["steps"][2]["rows"][0]["name"] == "decode"
    view.step = 3
    assert view.draft() is None
    assert "no draft was verified" in view.summary()


def test_a_recording_that_begins_in_the_middle_shows_what_was_there(
    node: Any, make_engine: Callable[..., wb.Engine]
) -> None:
    engine = make_engine()
    name = engine.add([5, 6, 7, 8], wb.SamplingParams(max_tokens=6, ignore_eos=True))
    engine.step()
    engine.step()
    with Trace.record(engine) as trace:
        engine.run()
    said = read(node, BatchTimeline(trace))
    tokens = [*engine.output(name).prompt_token_ids, *engine.output(name).outputs[0].token_ids]
    assert said["lanes"][0]["tokens"] == tokens
    assert said["steps"][0]["step"] == 3
    assert {s["rows"][0]["work"] for s in said["steps"]} == {Work.DECODE}


def test_a_bus_listened_to_in_the_middle_invents_nothing() -> None:
    trace = Trace()
    for event in (
        events.Preempted(3, 4, "no room", 7),
        done(3, (4, 1)),
        events.StepPlanned(4, ((4, 9, 1),), 0, 1),
        done(4, (4, 2)),
    ):
        trace(event)
    view = BatchTimeline(trace)
    assert view.run.lanes[0].name == "sequence 4"
    assert view.run.num_columns == 1, "the step that was not seen whole is left out"
    assert view.summary().startswith("step 4 of 4: 1 tokens in 1 rows (1 decode)")


def test_tables_say_what_the_timeline_draws() -> None:
    view = BatchTimeline(preempted())
    steps = view.steps()
    assert list(steps.index) == [1, 2, 4, 5]
    assert list(steps["tokens"]) == [3, 1, 5, 1]
    assert steps["run_ms"].tolist() == pytest.approx([2.0] * 4)
    assert steps["device_ms"].dropna().tolist() == pytest.approx([1.0])
    rows = view.rows(4)
    assert rows.loc[0, ["request", "work", "start", "num"]].tolist() == ["a", "recompute", 0, 5]
    with pytest.raises(ConfigError, match="One from 1 to 5"):
        view.rows(3)
    with pytest.raises(ConfigError, match="steps, ms"):
        BatchTimeline(view.trace, axis="hours")


def test_a_beam_that_is_a_fork_of_forks_has_all_its_tokens() -> None:
    """Each forks from the one before it at all but its last token, and adds one."""
    trace, count = Trace(), 1500
    trace(events.RequestAdded(0, "beams", 0, 2, count, (5, 6, 7)))
    for number in range(1, count):
        told = "beams", number, number - 1, 2, number + 2, (number,), 1
        trace(events.SequenceForked(number, *told))
    run = RunLog.of(trace)
    run.read()
    places = run.token_places(run.lanes[-1])
    assert [run.columns["token_id"][p] for p in places] == [5, 6, 7, *range(1, count)]
    assert len(run.token_places(run.lanes[0])) == 3


def test_before_anything_happened_every_view_says_so() -> None:
    for kind in (BatchTimeline, TokenView, SpeculationTree):
        view = kind(Trace())
        assert view.to_png().startswith(b"\x89PNG")
        assert "no " in view.summary()
    assert list(TokenView(Trace()).tokens().columns)[:2] == ["token_id", "text"]


@pytest.mark.parametrize("kind", [BatchTimeline, TokenView, SpeculationTree])
def test_a_still_picture_of_a_long_run_is_small(kind: Any) -> None:
    trace = RecordedRun(60, seed=3, drafts="tree", logprobs=3).run(150)
    view = kind(trace)
    view.step = 70
    assert 2_000 < len(view.to_png()) < 120_000
    bundle, _ = view._repr_mimebundle_()
    assert SCRIPT not in bundle["text/html"]


def test_views_of_a_trace_read_it_once_and_share_the_request(make_engine: Any) -> None:
    engine = make_engine()
    timeline, tokens = BatchTimeline(engine), TokenView(engine)
    assert timeline.run is tokens.run
    engine.generate([[5, 6], [7, 8]], wb.SamplingParams(max_tokens=3, ignore_eos=True))
    timeline.refresh()
    timeline.selected = timeline.run.lanes[1].sequence_id
    lane = tokens.lane()
    assert lane is not None
    assert lane.name == "r1"
    assert tokens.summary().startswith("r1 at step 3 of 3: 2 prompt tokens, 3 of 3")
    for view in (timeline, tokens):
        view.close()


def test_a_long_run_is_a_few_megabytes() -> None:
    trace = RecordedRun(100, seed=1, max_running=64, prompt=(20, 300), wanted=(50, 400)).run(1000)
    view = BatchTimeline(trace)
    sent = sum(
        len(getattr(view, f"{group}_{part}")) for group in view.GROUPS for part in ("old", "new")
    )
    rows = len(view.run.columns["row_lane"])
    assert rows > 15_000
    assert sent < 20 * rows, f"{sent} bytes for {rows} rows"


def test_the_timeline_of_what_is_left(monkeypatch: pytest.MonkeyPatch, node: Any) -> None:
    monkeypatch.setattr(recording, "MOST_EVENTS", 600)
    engine, source = long_run_engine(), random.Random(5)
    view, tokens = BatchTimeline(engine), TokenView(engine)
    for _ in range(40):
        work(engine, source, 10)
        view.refresh()
    tokens.refresh()
    assert tokens.run is view.run, "read once for both"
    done = view.trace.of(events.StepDone)
    said = read(node, view)
    assert [step["step"] for step in said["steps"]] == [event.step for event in done]
    for event, step in zip(done, said["steps"], strict=True):
        made = {row["sequence"]: row["made"] for row in step["rows"] if row["made"]}
        assert made == {number: [token] for number, token in event.tokens}
    for state in (view.trace.at(event.step) for event in done[::7]):
        lanes = {lane["sequence"]: lane["tokens"] for lane in said["lanes"]}
        for number in state.running:
            told = state.token_ids(number)
            assert lanes[number][: len(told)] == told
    view.close()
    tokens.close()
