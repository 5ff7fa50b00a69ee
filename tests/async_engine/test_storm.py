"""Hundreds of streams from several loops and threads, left at random: nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from typing import Any

import pytest
from drive import drawn
from tiny import random_prompts

from workbench.async_engine import AsyncEngine

PROMPTS = random_prompts(20, seed=240, longest=24)
NUM_STREAMS = 500


class Count:
    """How many streams ended in which way, over all threads."""

    def __init__(self) -> None:
        self.whole = self.left = self.cancelled = 0


async def read_one(
    aengine: AsyncEngine, source: random.Random, expected: dict[int, list[int]], count: Count
) -> None:
    """Read one stream: quickly or slowly, to its end or not."""
    number = source.randrange(len(PROMPTS))
    leave_after = source.randrange(1, 12) if source.random() < 0.3 else None
    slow = source.random() < 0.3
    got: list[int] = []
    async for delta in aengine.stream(PROMPTS[number], drawn(number, 16)):
        got += delta.token_ids
        if leave_after is not None and len(got) >= leave_after:
            count.left += 1
            return
        for _ in range(source.randrange(60) if slow else 0):
            await asyncio.sleep(0)
    assert got == expected[number]
    count.whole += 1


def run_loop(
    aengine: AsyncEngine, seed: int, expected: dict[int, list[int]], streams: int, count: Count
) -> None:
    """Run streams as tasks of a loop of its own and cancel some."""
    source = random.Random(seed)

    async def main() -> None:
        tasks = [
            asyncio.create_task(read_one(aengine, source, expected, count)) for _ in range(streams)
        ]
        for task in tasks:
            if source.random() < 0.2:
                for _ in range(source.choice((0, 1, 30))):
                    await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [r for r in results if isinstance(r, asyncio.CancelledError)]
        assert [r for r in results if r is not None and r not in cancelled] == []
        count.cancelled += len(cancelled)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def run_plain(
    aengine: AsyncEngine, seed: int, expected: dict[int, list[int]], streams: int, count: Count
) -> None:
    """Read streams one after the other in a plain thread; leave some."""
    source = random.Random(seed)
    for _ in range(streams):
        number = source.randrange(len(PROMPTS))
        leaves = source.random() < 0.4
        got: list[int] = []
        for delta in aengine.stream(PROMPTS[number], drawn(number, 16)):
            got += delta.token_ids
            if leaves:
                count.left += 1
                break
        else:
            assert got == expected[number]
            count.whole += 1


@pytest.mark.parametrize("max_pending", [1024, 40])
def test_a_storm_leaves_nothing_behind(serve, make_engine, max_pending: int) -> None:
    params = [drawn(number, 16) for number in range(len(PROMPTS))]
    outputs = make_engine().generate(PROMPTS, params)
    expected = {i: output.outputs[0].token_ids for i, output in enumerate(outputs)}
    threads_before = set(threading.enumerate())
    # Few blocks: requests are preempted while others come and go.
    aengine = serve(num_blocks=60, block_size=4, max_sequences=24, max_pending=max_pending)
    counts, errors = [Count() for _ in range(6)], []

    def guarded(target: Any, *args: Any) -> None:
        try:
            target(*args)
        except BaseException as error:
            errors.append(error)
            raise

    shares = [(run_loop, 150), (run_loop, 150), (run_loop, 150)] + [(run_plain, 17)] * 3
    assert sum(streams for _, streams in shares) >= NUM_STREAMS
    threads = [
        threading.Thread(target=guarded, args=(target, aengine, i, expected, streams, counts[i]))
        for i, (target, streams) in enumerate(shares)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive(), "a reader waits for ever"
    assert errors == []
    gc.collect()
    aengine.call(lambda engine: engine.cache.check()).result(60)
    assert aengine.call(lambda engine: engine.cache.blocks.num_used).result(60) == 0
    assert aengine.describe()["pending"] == aengine.describe()["in line"] == 0
    ends = [sum(getattr(c, name) for c in counts) for name in ("whole", "left", "cancelled")]
    assert sum(ends) == sum(streams for _, streams in shares)
    assert all(ends), ends
    aengine.close()
    assert set(threading.enumerate()) <= threads_before
