"""Back-pressure, pause, drain, close, jobs between steps, and steps that fail."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import traceback
import weakref
from typing import Any

import pytest
from drive import drawn, greedy
from tiny import random_prompts

import workbench as wb
from workbench.async_engine import AsyncEngine, OnLoop
from workbench.errors import (
    ConfigError,
    EngineClosed,
    EngineDraining,
    QueueFull,
    RequestFailed,
    UnknownRequest,
)
from workbench.events import Event, StepDone

PROMPTS = random_prompts(12, seed=230)
LONG = greedy(200)
PACE = 0.06  # at which `LONG` takes twelve seconds


def step_of(engine: wb.Engine) -> int:
    return engine.scheduler.step


# --- back-pressure ----------------------------------------------------------------------------


def test_at_most_max_pending_are_with_the_engine(serve, make_engine) -> None:
    expected = [o.outputs for o in make_engine().generate(PROMPTS, greedy(6))]
    aengine = serve(max_pending=3)
    most = []
    aengine.bus.subscribe(lambda _: most.append(len(aengine._loop.engine.requests)))

    async def main() -> list[Any]:
        await aengine.pause()
        replies = [aengine.generate(p, greedy(6)) for p in PROMPTS]
        await aengine.resume()
        return await asyncio.gather(*replies)

    assert [output.outputs for output in asyncio.run(main())] == expected
    assert max(most) == 3


def test_who_will_not_wait_is_told(serve) -> None:
    aengine = serve(max_pending=2)
    aengine.pause().result(60)
    first = [aengine.stream(p, greedy(4), wait=False) for p in PROMPTS[:2]]
    with pytest.raises(QueueFull, match="max_pending=2"):
        aengine.generate(PROMPTS[2], greedy(4), wait=False).result(60)
    with pytest.raises(QueueFull):
        next(aengine.stream(PROMPTS[2], greedy(4), wait=False))
    patient = aengine.generate(PROMPTS[2], greedy(4))
    assert aengine.describe()["in line"] == 1 or aengine.call(step_of).result(60) == 0
    first[0].close()  # its place goes to the one in line
    assert aengine.call(lambda engine: len(engine.requests)).result(60) >= 1
    aengine.resume()
    assert len(patient.result(60).outputs[0].token_ids) == 4
    assert sum(len(delta.token_ids) for delta in first[1]) == 4


def test_leaving_the_line(serve) -> None:
    aengine = serve(max_pending=1)
    aengine.pause().result(60)
    holder = aengine.stream(PROMPTS[0], greedy(3))
    left = [aengine.generate(PROMPTS[1], LONG), aengine.generate(PROMPTS[2], LONG)]
    last = aengine.generate(PROMPTS[3], greedy(3))
    left[0].cancel()
    left[1].cancel()
    aengine.resume()
    assert len(list(holder)) > 0
    assert last.result(60).finished
    assert aengine.call(step_of).result(60) < 20


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_bad_limit(make_engine, limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_pending"):
        AsyncEngine(make_engine(), max_pending=limit)


# --- pause, drain, call -----------------------------------------------------------------------


def test_a_pause_stops_steps_and_keeps_requests(serve, make_engine, hurry) -> None:
    (expected,) = make_engine().generate([PROMPTS[0]], drawn(5, 150))
    aengine = serve(pace=PACE)
    stream = aengine.stream(PROMPTS[0], drawn(5, 150))
    deltas = [next(stream)]
    aengine.pause().result(60)
    step = aengine.call(step_of).result(60)
    added = aengine.generate(PROMPTS[1], greedy(2))  # accepted, and it waits
    assert aengine.call(lambda e: (e.scheduler.step, len(e.requests))).result(60) == (step, 2)
    assert aengine.describe()["state"] == "paused"
    hurry(aengine)
    aengine.resume().result(60)
    deltas += stream
    assert [t for d in deltas for t in d.token_ids] == expected.outputs[0].token_ids
    assert added.result(60).finished


def test_steps_of_a_paused_engine(serve, make_engine) -> None:
    (expected,) = make_engine().generate([PROMPTS[0]], greedy(6))
    aengine = serve(max_pending=1)
    aengine.pause().result(60)
    stream = aengine.stream(PROMPTS[0], greedy(6))
    in_line = aengine.generate(PROMPTS[1], greedy(1))
    assert aengine.step().result(60) == 1
    assert next(stream).token_ids == expected.outputs[0].token_ids[:1]
    assert aengine.step(3).result(60) == 3
    assert aengine.call(step_of).result(60) == 4
    assert aengine.step(100).result(60) == 3, "two of it, and one of who was in line"
    assert in_line.result(0).finished
    assert [t for delta in stream for t in delta.token_ids] == expected.outputs[0].token_ids[1:]
    assert aengine.step().result(60) == 0
    with pytest.raises(ConfigError, match="count"):
        aengine.step(0)
    aengine.resume().result(60)


def test_drain_finishes_what_there_is_and_takes_nothing_new(serve) -> None:
    aengine = serve(max_pending=2)

    async def main() -> None:
        await aengine.pause()
        replies = [aengine.generate(p, greedy(20)) for p in PROMPTS[:5]]
        drained = asyncio.ensure_future(aengine.drain())
        late = aengine.generate(PROMPTS[6])
        with pytest.raises(EngineDraining, match="resume"):
            await late
        with pytest.raises(EngineDraining):
            await anext(aengine.stream(PROMPTS[6]))
        assert not drained.done() or all(reply.done() for reply in replies)
        await drained
        assert all(len(reply.result(0).outputs[0].token_ids) == 20 for reply in replies)
        assert aengine.describe()["state"] == "draining"
        await aengine.drain()
        await aengine.resume()
        assert (await aengine.generate(PROMPTS[6], greedy(2))).finished

    asyncio.run(main())


def test_call_runs_between_steps_on_the_engine_thread(serve) -> None:
    aengine = serve(pace=PACE)
    stream = aengine.stream(PROMPTS[0], LONG)
    next(stream)

    def look(engine: wb.Engine) -> str:
        engine.scheduler.books.require_closed("look")
        engine.swap(scheduler_policy="shortest_first")
        return threading.current_thread().name

    assert aengine.call(look).result(60) == "workbench-engine"
    with pytest.raises(ZeroDivisionError) as caught:
        aengine.call(lambda engine: 1 / 0).result(60)
    assert any(frame.name == "<lambda>" for frame in traceback.extract_tb(caught.tb))
    stream.close()


def test_a_fork_made_by_call_runs_along(serve, hurry) -> None:
    aengine = serve(pace=PACE)
    stream = aengine.stream(PROMPTS[0], greedy(150), request_id="one")
    next(stream)
    aengine.call(lambda engine: engine.fork("one", new_id="two")).result(60)
    hurry(aengine)
    aengine.drain().result(60)
    twin = aengine.call(lambda engine: engine.forget("two")).result(60)
    list(stream)
    assert stream.output is not None
    assert twin.outputs[0].token_ids == stream.output.outputs[0].token_ids


def test_streams_wait_while_a_restored_engine_catches_up(serve, make_engine) -> None:
    params = drawn(9, 60, logprobs=1)
    (expected,) = make_engine().generate([PROMPTS[0]], params)
    aengine = serve()
    aengine.pause().result(60)  # so that it is known how far each has come
    stream = aengine.stream(PROMPTS[0], params)
    reply = aengine.generate(PROMPTS[0], params)
    aengine.step(2).result(60)
    got = [next(stream)]
    state = aengine.call(lambda engine: engine.checkpoint()).result(60)
    for _ in range(10):
        aengine.step().result(60)
        got.append(next(stream))
    later = aengine.stream(PROMPTS[1], LONG)
    aengine.step().result(60)
    next(later)
    aengine.call(lambda engine: engine.restore(state)).result(60)
    aengine.resume().result(60)
    got += stream
    assert [t for delta in got for t in delta.token_ids] == expected.outputs[0].token_ids
    assert "".join(delta.text for delta in got) == expected.outputs[0].text
    assert sum(len(delta.logprobs or ()) for delta in got) == 60
    assert reply.result(60).outputs[0].token_ids == expected.outputs[0].token_ids
    with pytest.raises(UnknownRequest):
        list(later)


def test_it_sleeps_when_there_is_nothing_to_do(serve) -> None:
    aengine = serve()
    aengine.generate(PROMPTS[0], greedy(2)).result(60)
    turns = []
    real = aengine._loop.desk.settle
    aengine._loop.desk.settle = lambda: (turns.append(1), real())
    for _ in range(3):
        aengine.call(step_of).result(60)
    threading.Event().wait(0.3)
    assert len(turns) <= 4, "the thread turned without anything to do"


# --- the end ----------------------------------------------------------------------------------


def test_close_during_traffic_reaches_everybody(serve, make_engine) -> None:
    engine = make_engine()
    aengine = serve(engine, max_pending=3, pace=PACE)

    async def main() -> list[Any]:
        reads = [asyncio.ensure_future(_last(aengine.stream(p, LONG))) for p in PROMPTS]
        replies = [asyncio.ensure_future(aengine.generate(p, LONG)) for p in PROMPTS]
        drained = asyncio.ensure_future(aengine.drain())
        await aengine.call(step_of)
        await aengine.aclose()
        return await asyncio.gather(*reads, *replies, drained, return_exceptions=True)

    results = asyncio.run(main())
    assert len(results) == 25
    assert {type(result) for result in results} == {EngineClosed}
    assert len(set(map(id, results))) == 25, "each has an error of its own"
    assert engine.closed
    assert engine.cache.num_bytes == 0
    assert not aengine._loop.thread.is_alive()


def test_a_closed_one_refuses_everything(serve) -> None:
    aengine = serve()
    aengine.close()
    aengine.close()
    asyncio.run(aengine.aclose())
    uses = [
        lambda: aengine.generate([1]).result(60),
        lambda: next(aengine.stream([1])),
        lambda: aengine.abort("r").result(60),
        lambda: aengine.call(step_of).result(60),
        lambda: aengine.pause().result(60),
        lambda: aengine.resume().result(60),
        lambda: aengine.drain().result(60),
    ]
    for use in uses:
        with pytest.raises(EngineClosed, match="build a new one"):
            use()
    assert repr(aengine) == "AsyncEngine(state=closed)"
    with pytest.raises(EngineClosed):
        AsyncEngine(aengine._loop.engine)


def test_submissions_while_it_closes_are_answered(make_engine) -> None:
    """Whatever is asked for at the very moment of closing comes back, as done or as refused."""
    for _ in range(20):
        aengine, replies, go = AsyncEngine(make_engine()), [], threading.Event()

        def submit(aengine=aengine, replies=replies, go=go) -> None:
            go.wait()
            for _ in range(30):
                replies.append(aengine.generate([1, 2], greedy(1)))
                replies.append(aengine.call(step_of))

        thread = threading.Thread(target=submit)
        thread.start()
        go.set()
        aengine.close()
        thread.join()
        for reply in replies:
            error = reply.exception(timeout=60)
            assert error is None or isinstance(error, EngineClosed)


def test_the_engine_closed_by_call_ends_the_thread(serve) -> None:
    aengine = serve(pace=PACE)
    reply = aengine.generate(PROMPTS[0], LONG)
    aengine.call(lambda engine: engine.close()).result(60)
    with pytest.raises(EngineClosed):
        reply.result(60)
    aengine._loop.thread.join(60)
    assert aengine.closed


def test_closing_on_the_engine_thread_does_not_wait_for_itself(serve) -> None:
    aengine = serve()
    aengine.call(lambda engine: aengine.close()).result(60)
    aengine._loop.thread.join(60)
    assert aengine.closed


def test_del_ends_the_thread_and_frees(make_engine) -> None:
    aengine = AsyncEngine(make_engine())
    thread, engine = aengine._loop.thread, aengine._loop.engine
    tensor = weakref.ref(engine.cache.tensor)
    reply = aengine.generate(PROMPTS[0], greedy(3))
    del aengine
    assert reply.result(60).finished, "who waits keeps it alive"
    del reply
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    assert engine.closed
    gc.collect()
    assert tensor() is None


@pytest.mark.slow  # a fresh process imports torch and transformers
def test_a_program_that_forgets_to_close_ends(tmp_path) -> None:
    program = (
        "import workbench as wb\n"
        "a = wb.AsyncEngine(wb.build(wb.EngineConfig('tinypy', num_blocks=32)))\n"
        "s = a.stream('def f(', wb.SamplingParams(max_tokens=300, ignore_eos=True))\n"
        "print(next(s).request_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "r0\n", "")


# --- failures ---------------------------------------------------------------------------------


class Fault(Exception):
    """What a part of the engine raises here."""


def fail_from(engine: wb.Engine, first: int, last: int, error: BaseException) -> None:
    """Make the sampler raise in these calls."""
    real, calls = engine.sampler, iter(range(10**9))

    def sampler(logits: Any, rows: Any) -> Any:
        if first <= next(calls) <= last:
            raise error
        return real(logits, rows)

    engine.swap(sampler=sampler)


def test_a_failing_step_reaches_every_waiter_and_the_loop_goes_on(serve, make_engine) -> None:
    engine = make_engine()
    fail_from(engine, 5, 5, Fault("broken kernel"))
    aengine = serve(engine)

    async def main() -> list[Any]:
        await aengine.pause()
        streams = [aengine.stream(p, LONG) for p in PROMPTS[:4]]
        reads = [asyncio.ensure_future(_last(stream)) for stream in streams]
        replies = [asyncio.ensure_future(aengine.generate(p, LONG)) for p in PROMPTS[4:8]]
        await aengine.resume()
        results = await asyncio.gather(*reads, *replies, return_exceptions=True)
        assert await aengine.call(lambda e: e.cache.blocks.num_used) == 0
        assert (await aengine.generate(PROMPTS[0], greedy(4))).finished
        return results

    results = asyncio.run(main())
    assert len(results) == 8
    for error in results:
        assert isinstance(error, RequestFailed)
        assert isinstance(error.__cause__, Fault)
        assert error.request_id in str(error)
        text = "".join(traceback.format_exception(error))
        assert "broken kernel" in text
        assert "in sampler" in text, "the traceback leads to where it happened"
    assert len(set(map(id, results))) == 8


async def _last(stream: Any) -> Any:
    return [delta async for delta in stream][-1]


def test_what_was_made_before_the_failure_is_still_read(serve, make_engine) -> None:
    engine = make_engine()
    fail_from(engine, 5, 5, Fault())
    aengine = serve(engine)
    stream = aengine.stream(PROMPTS[0], LONG)
    got: list[int] = []

    def read() -> None:
        for delta in stream:
            got.extend(delta.token_ids)

    with pytest.raises(RequestFailed):
        read()
    assert len(got) == 5
    assert list(stream) == []


def test_requests_that_were_not_running_are_not_concerned(serve, make_engine) -> None:
    engine = make_engine(max_sequences=2)
    fail_from(engine, 3, 3, Fault())
    aengine = serve(engine)
    aengine.pause().result(60)
    replies = [aengine.generate(p, greedy(8)) for p in PROMPTS[:5]]
    aengine.resume()
    errors = [reply.exception(60) for reply in replies]
    assert [isinstance(error, RequestFailed) for error in errors] == [True, True] + [False] * 3


def test_a_step_that_always_fails_ends_everything_and_does_not_spin(serve, make_engine) -> None:
    engine = make_engine(max_sequences=2)
    fail_from(engine, 0, 10**9, Fault())
    aengine = serve(engine)
    replies = [aengine.generate(p, greedy(8)) for p in PROMPTS[:6]]
    assert all(isinstance(reply.exception(60), RequestFailed) for reply in replies)
    assert aengine.call(step_of).result(60) <= 6


def test_a_request_that_cannot_go_on_ends_alone(serve, make_engine) -> None:
    expected = [o.outputs for o in make_engine().generate(PROMPTS[:3], greedy(8))]

    def bad(token_ids, logits):
        if len(token_ids) == len(PROMPTS[1]) + 3:
            raise Fault("odd")
        return logits

    aengine = serve(make_engine())
    settings = [{}, {"logits_processors": [bad]}, {}]
    pairs = zip(PROMPTS, settings, strict=False)
    replies = [aengine.generate(p, greedy(8, **own)) for p, own in pairs]
    ill = replies[1].result(60).outputs[0]
    assert ill.finish_reason == "error"
    assert ill.error is not None
    assert ill.error.endswith("Fault: odd")
    assert ill.token_ids == expected[1][0].token_ids[:3]
    assert replies[0].result(60).outputs == expected[0]
    assert replies[2].result(60).outputs == expected[2]


def test_a_request_of_somebody_else_in_a_failing_step_is_aborted_and_told_of(
    serve, make_engine, capsys
) -> None:
    engine = make_engine()
    fail_from(engine, 2, 2, Fault("odd"))
    engine.add(PROMPTS[0], LONG, request_id="before")
    aengine = serve(engine)
    aengine.drain().result(60)
    # In the tests a warning of our own is an error, and one in mid-step goes to stderr instead.
    assert "'before' was aborted: its step failed with Fault('odd')" in capsys.readouterr().err
    output = aengine.call(lambda e: e.forget("before")).result(60)
    assert output.outputs[0].finish_reason == "abort"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_the_thread_reaches_every_waiter(serve, make_engine) -> None:
    engine = make_engine()
    fail_from(engine, 3, 3, SystemExit("out of a sampler"))
    aengine = serve(engine)
    replies = [aengine.generate(p, LONG) for p in PROMPTS[:3]]
    for reply in replies:
        error = reply.exception(60)
        assert isinstance(error, EngineClosed)
        assert isinstance(error.__cause__, SystemExit)
    aengine._loop.thread.join(60)
    with pytest.raises(EngineClosed) as caught:
        aengine.generate([1]).result(60)
    assert isinstance(caught.value.__cause__, SystemExit)


# --- the bridge -------------------------------------------------------------------------------


def test_events_reach_a_loop_newest_first_and_never_pile_up(serve) -> None:
    aengine, seen, threads = serve(), [], set()

    async def main() -> None:
        def note(event: Event) -> None:
            seen.append(event)
            threads.add(threading.current_thread())

        bridge = OnLoop(note, StepDone)
        unsubscribe = aengine.bus.subscribe(bridge)
        reply = aengine.generate(PROMPTS[0], greedy(40))
        reply.result(60)  # blocks this loop: nothing can be handed over meanwhile
        assert seen == []
        while not seen:
            await asyncio.sleep(0)
        unsubscribe()

    asyncio.run(main())
    assert len(seen) == 1
    assert seen[0].step >= 40
    assert threads == {threading.current_thread()}
