"""`EngineDashboard`: its figures are the engine's own, and its buttons do what they say."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import workbench as wb
from workbench.events import StepDone
from workbench.views.dashboard import EngineDashboard

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11], [9, 9], [1, 2, 3]]


def params(count: int = 6, **settings: Any) -> wb.SamplingParams:
    return wb.SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, **settings)


def press(board: EngineDashboard, command: str, **content: Any) -> None:
    """Do what the browser does when a button is pressed."""
    board._handle_custom_msg({"command": command, **content}, [])


def test_figures_are_those_of_the_engine(make_engine: Any) -> None:
    engine = make_engine(num_blocks=7, max_sequences=3)
    with wb.Trace.record(engine) as trace:
        records = []
        for prompt in PROMPTS:
            engine.add(prompt, params(12))
        while engine.has_work:
            running = len(engine.scheduler.running)
            records.append((engine.step(), engine.cache.blocks.num_used, running))
    board = EngineDashboard(trace)
    figures = board.figures()
    assert list(figures.index) == [record.plan.step for record, _, _ in records]
    assert list(figures["used"]) == [used for _, used, _ in records]
    made = [len(record.tokens) for record, _, _ in records]
    assert list(figures["made"].diff().fillna(made[0])) == made
    assert figures["made"].iloc[-1] == 4 * 12
    computed = [record.plan.num_tokens for record, _, _ in records]
    assert list(figures["computed"].diff().fillna(computed[0])) == computed
    assert figures["preempted"].iloc[-1] > 0, "the cache was meant to be too small"
    assert figures["found"].iloc[-1] > 0
    assert figures["running"].max() == 3
    seconds = [1e3 * sum(step.seconds.values()) for step in trace.of(StepDone)]
    assert list(figures["step_ms"]) == pytest.approx(seconds)
    assert board.control == {}, "a recorded run cannot be driven"


def test_latencies_are_those_of_the_requests(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0  # on the engine's clock and the trace's: each step takes a second
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(wb.Trace.__call__, "__defaults__", (lambda: now,))
    engine = make_engine()
    with wb.Trace.record(engine) as trace:
        names = [
            engine.add(prompt, params(length))
            for prompt, length in zip(PROMPTS, (1, 5, 9, 2), strict=True)
        ]
        while engine.has_work:
            now += 1.0
            engine.step()
    outputs = [engine.output(name) for name in names]
    board = EngineDashboard(trace)
    log = board._meters.log  # type: ignore[union-attr]
    ttft = sorted(output.metrics.ttft for output in outputs)
    tpot = sorted(o.metrics.tpot for o in outputs if len(o.outputs[0].token_ids) > 1)
    assert sorted(log.numbers("ttft_ms") / 1e3) == pytest.approx(ttft)
    assert sorted(log.numbers("tpot_ms") / 1e3) == pytest.approx(tpot)
    assert len(set(ttft)) > 1
    assert log.numbers("tpot_ms").size == 3


def test_buttons_step_abort_and_configure_the_engine(make_engine: Any) -> None:
    expected = [o.outputs[0].token_ids for o in make_engine().generate(PROMPTS, params())]
    engine = make_engine()
    names = [engine.add(prompt, params()) for prompt in PROMPTS]
    with EngineDashboard(engine) as board:
        assert [row[:3] for row in board.control["requests"]] == [
            [name, 0, "waiting"] for name in names
        ]
        press(board, "step", count=2)
        board.refresh()
        assert (engine.scheduler.step, board.last_step) == (2, 2)
        assert board.control["requests"][0] == [names[0], 0, "running", len(PROMPTS[0]), 2]
        press(board, "configure", changes={"max_sequences": 2, "policy": "priority"})
        assert engine.scheduler.config.max_sequences == 2
        assert board.control["limits"]["policy"] == "priority"
        press(board, "abort", request_id=names[3])
        press(board, "step", count=1000)
        got = [engine.output(name).outputs[0].token_ids for name in names]
    assert got[:3] == expected[:3]
    assert got[3] == expected[3][:2]


@pytest.mark.parametrize(
    ("command", "content", "said"),
    [
        ("configure", {"changes": {"max_sequences": 65}}, "more than max_batch_tokens=64"),
        ("configure", {"changes": {"policy": "fairest"}}, "no such policy"),
        ("configure", {"changes": {"max_sequences": "many"}}, "whole number"),
        ("abort", {"request_id": "nobody"}, "not a request of this engine"),
        ("step", {"count": 0}, "no number of steps"),
        ("step", {"count": 1.5}, "no number of steps"),
        ("step", {}, "KeyError"),
        ("explode", {}, "is no command"),
        ("run", {}, "no running event loop"),
    ],
)
def test_what_a_command_could_not_do_is_said(
    make_engine: Any, command: str, content: dict[str, Any], said: str
) -> None:
    engine = make_engine()
    before = engine.scheduler.config
    with EngineDashboard(engine) as board:
        press(board, command, **content)
        assert said in board.notice
        assert engine.scheduler.config is before
        press(board, "step", count=1)
        assert board.notice == ""


def test_whatever_a_command_raises_is_said(make_engine: Any, monkeypatch: Any) -> None:
    """In a callback of the widget nobody would see it."""
    engine = make_engine()

    def broken(_: object) -> None:
        raise AssertionError("a fault of ours")

    with EngineDashboard(engine) as board:
        monkeypatch.setattr(engine, "abort", broken)
        press(board, "abort", request_id="r0")
        assert board.notice == "AssertionError: a fault of ours"


def test_running_is_a_task_that_leaves_the_loop_alive(make_engine: Any) -> None:
    async def main() -> None:
        engine = make_engine()
        with EngineDashboard(engine) as board:
            press(board, "run")
            assert board.control["state"] == "running"
            name = engine.add(PROMPTS[0], params(20))
            while not engine.output(name).finished:
                await asyncio.sleep(0)
            press(board, "pause")
            assert board.control["state"] == "paused"
            late = engine.add(PROMPTS[1], params(2))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not engine.output(late).outputs[0].token_ids
            press(board, "run")
        await asyncio.sleep(0)
        assert engine.has_work, "closed, it must step no more"
        engine.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_step_that_fails_is_said_and_stops(make_engine: Any) -> None:
    def broken(logits: Any, rows: Any) -> Any:
        raise ZeroDivisionError("out of a sampler")

    async def main() -> None:
        engine = make_engine()
        with EngineDashboard(engine) as board:
            engine.add(PROMPTS[0], params())
            engine.swap(sampler=broken)
            press(board, "run")
            while not board.notice:
                await asyncio.sleep(0)
            assert "out of a sampler" in board.notice
            assert board._controls.state == "paused"  # type: ignore[union-attr]
        engine.close()
        with pytest.raises(wb.errors.EngineClosed):
            EngineDashboard(engine)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_asynchronous_engine_is_driven_by_word(make_engine: Any) -> None:
    engine = make_engine()
    with wb.AsyncEngine(engine) as aengine:
        aengine.pause().result(60)
        board = EngineDashboard(aengine)
        reply = aengine.generate(PROMPTS[0], params(4), request_id="r")
        press(board, "step", count=2)
        assert aengine.call(lambda e: e.scheduler.step).result(60) == 2
        press(board, "configure", changes={"max_sequences": 3})
        assert aengine.call(lambda e: e.scheduler.config.max_sequences).result(60) == 3
        press(board, "abort", request_id="nobody")
        aengine.call(lambda e: None).result(60)  # it came after the abort, and so did this
        assert "not a request" in board.notice
        press(board, "run")
        assert reply.result(60).finished
        board.close()
        assert not aengine.bus
