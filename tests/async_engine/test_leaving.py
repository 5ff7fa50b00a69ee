"""Whoever stops reading, by whatever way, frees the request's blocks before the next step."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import threading
from concurrent.futures import CancelledError as ReplyCancelled
from concurrent.futures import wait

import pytest
from drive import drawn, greedy
from tiny import random_prompts

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.errors import UnknownRequest
from workbench.events import Event, RequestFinished, StepDone

PROMPT = [5, 6, 7, 8]
LONG = greedy(200)
PACE = 0.06  # at which `LONG` takes twelve seconds


class Watch:
    """Notes at which step each request ended; a subscriber of the engine's bus."""

    def __init__(self) -> None:
        self.ended: dict[str, int] = {}
        self.steps = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestFinished):
            self.ended[event.request_id] = event.step
        self.steps += isinstance(event, StepDone)


def used_and_step(engine: Engine) -> tuple[int, int]:
    engine.cache.check()
    return engine.cache.blocks.num_used, engine.scheduler.step


async def require_gone(aengine: AsyncEngine, step: int) -> None:
    """Every block is free, and at most one step was run since `step` was over."""
    used, now = await aengine.call(used_and_step)
    assert used == 0
    assert now <= step + 1


async def by_break(aengine: AsyncEngine) -> int:
    async for _ in aengine.stream(PROMPT, LONG):
        break
    return aengine._loop.engine.scheduler.step


async def by_aclose(aengine: AsyncEngine) -> int:
    stream = aengine.stream(PROMPT, LONG)
    await anext(stream)
    await stream.aclose()
    return aengine._loop.engine.scheduler.step


async def by_leaving_the_block(aengine: AsyncEngine) -> int:
    async with aengine.stream(PROMPT, LONG) as stream:
        await anext(stream)
    return aengine._loop.engine.scheduler.step


async def by_cancelling_a_waiting_task(aengine: AsyncEngine) -> int:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in aengine.stream(PROMPT, LONG):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    await aengine.pause()  # so that the task is waiting for news when it is cancelled
    await asyncio.sleep(0)
    task.cancel()
    step = aengine._loop.engine.scheduler.step
    with pytest.raises(asyncio.CancelledError):
        await task
    await aengine.resume()
    return step


async def by_cancelling_a_busy_task(aengine: AsyncEngine) -> int:
    started = asyncio.Event()

    async def read() -> None:
        async with aengine.stream(PROMPT, LONG) as stream:
            async for _ in stream:
                started.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    return aengine._loop.engine.scheduler.step


async def by_cancelling_a_reply(aengine: AsyncEngine) -> int:
    stream = aengine.stream(PROMPT, greedy(3))
    task = asyncio.ensure_future(aengine.generate(PROMPT, LONG))
    async for _ in stream:
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return aengine._loop.engine.scheduler.step


@pytest.mark.parametrize(
    "leave",
    [
        by_break,
        by_aclose,
        by_leaving_the_block,
        by_cancelling_a_waiting_task,
        by_cancelling_a_busy_task,
        by_cancelling_a_reply,
    ],
)
def test_blocks_are_free_within_a_step(serve, leave) -> None:
    aengine = serve(pace=PACE)

    async def main() -> None:
        await require_gone(aengine, await leave(aengine))

    asyncio.run(main())


def test_a_thread_that_breaks_or_is_done_with_a_reply(serve) -> None:
    aengine = serve(pace=PACE)
    for _ in aengine.stream(PROMPT, LONG):
        break
    assert aengine.call(used_and_step).result(60)[0] == 0
    reply = aengine.generate(PROMPT, LONG)
    assert reply.cancel()
    assert wait([reply], timeout=60).done == {reply}
    with pytest.raises(ReplyCancelled):
        reply.result(60)
    assert aengine.call(used_and_step).result(60)[0] == 0


def test_a_loop_that_is_closed_with_streams_in_it(serve) -> None:
    """Its tasks are never run again; the request ends at its next token."""
    aengine = serve(pace=PACE)
    loop = asyncio.new_event_loop()

    async def read() -> None:
        async for _ in aengine.stream(PROMPT, LONG):
            pass

    task = loop.create_task(read())  # kept: neither the task nor its stream is collected
    loop.run_until_complete(aengine.stream(PROMPT, greedy(4)).__anext__())
    aengine.pause().result(60)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    aengine.resume().result(60)
    aengine.drain().result(60)
    assert not task.done()
    assert aengine.call(used_and_step).result(60)[1] < 150, "it did not run to its end"
    task._log_destroy_pending = False


def test_a_destroyed_task_of_a_closed_loop(serve) -> None:
    aengine = serve(pace=PACE)
    loop = asyncio.new_event_loop()
    reply = asyncio.ensure_future(aengine.generate(PROMPT, LONG), loop=loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    reply._log_destroy_pending = False
    del reply
    gc.collect()
    assert aengine.call(used_and_step).result(60)[0] == 0


def test_abort_by_id_ends_streams_and_replies_with_what_there_is(serve) -> None:
    aengine = serve(max_pending=2, pace=PACE)
    stream = aengine.stream(PROMPT, LONG, request_id="s")
    reply = aengine.generate(PROMPT, LONG, request_id="r")
    in_line = aengine.generate(PROMPT, LONG, request_id="l")
    next(stream)
    aengine.pause().result(60)  # so that none ends by itself before it is aborted
    assert aengine.abort("l").result(60) == in_line.result(60)
    assert in_line.result(0).outputs[0].token_ids == []
    output = aengine.abort("s").result(60)
    *_, last = stream
    assert last.output == output == stream.output
    assert last.finish_reason == output.outputs[0].finish_reason == "abort"
    assert aengine.abort("r").result(60) == reply.result(60)
    for name in ("s", "never"):
        with pytest.raises(UnknownRequest):
            aengine.abort(name).result(60)
    aengine.resume().result(60)


def test_a_request_that_others_end_or_forget(serve) -> None:
    aengine = serve(pace=PACE)
    reply = aengine.generate(PROMPT, LONG, request_id="r")
    stream = aengine.stream(PROMPT, LONG, request_id="s")
    next(stream)
    aengine.call(lambda engine: engine.abort("r")).result(60)
    assert reply.result(60).outputs[0].finish_reason == "abort"
    aengine.call(lambda engine: engine.discard(["s"])).result(60)
    with pytest.raises(UnknownRequest):
        list(stream)

    def end_second(event: Event) -> None:
        if isinstance(event, StepDone) and len(event.tokens) == 1:
            engine = aengine._loop.engine
            for name in list(engine.requests):
                engine.abort(name)

    aengine.bus.subscribe(end_second)
    assert aengine.generate(PROMPT, LONG).result(60).outputs[0].finish_reason == "abort"
    aengine.bus.unsubscribe(end_second)


def test_a_timeout_ends_a_stream(serve) -> None:
    aengine = serve(pace=PACE)
    aengine.pause().result(60)
    stream = aengine.stream(PROMPT, LONG, timeout=1e-3)
    aengine.call(lambda engine: threading.Event().wait(0.01)).result(60)
    aengine.resume()
    (last,) = stream
    assert last.finish_reason == "timeout"


def test_an_interrupt_while_a_thread_reads_harms_nothing(serve, make_engine) -> None:
    """The main thread is interrupted where it waits; the engine's thread goes on."""
    prompts = random_prompts(4, seed=220)
    params = [drawn(i, 200 - len(p)) for i, p in enumerate(prompts)]
    expected = [o.outputs for o in make_engine().generate(prompts, params)]
    aengine = serve(pace=0.005)
    replies = [aengine.generate(p, own) for p, own in zip(prompts, params, strict=True)]
    interrupts, previous = 0, signal.getsignal(signal.SIGINT)
    source = random.Random(3)

    def ring(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    alarm = signal.signal(signal.SIGALRM, ring)
    try:
        while interrupts <= 3 or not all(reply.done() for reply in replies):
            stream = aengine.stream(PROMPT, LONG)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-3 + 0.02 * source.random())
                for _ in stream:
                    pass
            except KeyboardInterrupt:
                interrupts += 1
                stream.close()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, alarm)
    assert signal.getsignal(signal.SIGINT) is previous
    assert [reply.result(60).outputs for reply in replies] == expected
