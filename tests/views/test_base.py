"""What every view has from `View`: one step, pictures, live updates on the right thread, an end."""

from __future__ import annotations

import asyncio
import base64
import gc
import threading
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import workbench as wb
from workbench.errors import ConfigError
from workbench.events import EventBus, StateSeen, StepDone
from workbench.trace import Trace
from workbench.views.base import View, link, packed
from workbench.views.pace import Pacer
from workbench.views.picture import figure_png


class Counting(View):
    """Shows how many steps a trace has."""

    _esm = "export default { render() {} }"

    def update(self) -> tuple[int, int]:
        self.updates = [*getattr(self, "updates", ()), threading.get_ident()]
        steps = self.trace.of(StepDone)
        if steps and steps[-1].num_free_blocks < 0:
            raise ValueError("a block too few")
        return 0, steps[-1].step if steps else 0

    def summary(self) -> str:
        return f'step {self.step} of {self.last_step} & "more"'

    def draw(self, figure: Any) -> None:
        figure.add_subplot().plot([0, self.step])


def done(step: int, free: int = 5) -> StepDone:
    return StepDone(step, ((1, step),), {}, free)


def trace_of(steps: int) -> Trace:
    trace = Trace()
    for step in range(1, steps + 1):
        trace(done(step))
    return trace


def test_views_of_one_trace_share_a_step_and_others_do_not() -> None:
    trace = trace_of(9)
    one, two, other = Counting(trace), Counting(trace), Counting(trace_of(4))
    one.step = 7
    assert (two.step, other.step) == (7, 0)
    assert one.trace_id == two.trace_id != other.trace_id
    two.close()
    one.step = 3
    assert two.step == 7, "a closed view still follows"


def test_linked_views_of_two_runs_share_the_longer_range() -> None:
    long, short = Counting(trace_of(9)), Counting(trace_of(4))
    link(short, long)
    assert (short.trace_id, short.last_step, long.last_step) == (long.trace_id, 9, 9)
    short.step = 8
    assert long.step == 8
    long.close()
    short.refresh()
    assert (short.last_step, short.step) == (4, 4)


def test_a_still_picture_and_words_beside_the_widget() -> None:
    view = Counting(trace_of(3))
    bundle, _ = view._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"].startswith('<img alt="step 0 of 3 &amp; &quot;more&quot;"')
    assert bundle["text/plain"] == repr(view) == 'Counting(step 0 of 3 & "more")'


def test_a_picture_shows_a_dollar_as_a_dollar() -> None:
    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_yticks([0, 1], [r"request $\no$", "$1 and $2"])
        axes.plot([0, 1], label=r"$\such$")
        axes.set_title(r"$\formula$")
        axes.text(0, 0, r"$\anywhere$")
        axes.legend()

    assert figure_png(draw).startswith(b"\x89PNG")


def test_a_view_subscribed_by_hand_follows_the_bus() -> None:
    bus, view = EventBus(), Counting()
    bus.subscribe(view)
    for step in range(1, 4):
        bus.emit(done(step))
    view.refresh()
    assert (view.live, view.last_step, view.step) == (True, 3, 3)
    view.step = 1  # whoever looks back follows no more
    assert not view.follow
    bus.emit(done(4))
    view.refresh()
    assert (view.last_step, view.step) == (4, 1)
    view.step = 4
    assert view.follow
    view.close()
    assert not bus, "a closed view still listens"


def test_a_followed_step_is_not_sent_but_one_that_was_asked_for_is() -> None:
    bus, view, told = EventBus(), Counting(), []
    bus.subscribe(view)
    view.send_state = lambda key=None: told.append(key)
    bus.emit(done(1))
    view.refresh()
    assert (view.step, view.last_step) == (1, 1)
    assert "step" not in told
    assert "last_step" in told
    view.step = 0
    assert "step" in told


def test_what_is_no_source_is_refused_and_so_is_an_event_for_a_finished_trace() -> None:
    with pytest.raises(ConfigError, match="subscribe"):
        Counting("run.trace")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finished trace"):
        EventBus().subscribe(Counting(trace_of(1)))


def test_views_of_one_engine_share_its_recording_and_end_it(make_engine: Any) -> None:
    engine = make_engine()
    one, two = Counting(engine), Counting(engine)
    assert one.trace is two.trace
    assert engine.bus.describe() == {"subscribers": 1}
    engine.generate([[5, 6, 7]], wb.SamplingParams(max_tokens=3, ignore_eos=True))
    one.refresh()
    assert one.last_step == one.step == 3
    with one:
        pass
    assert engine.bus
    two.close()
    two.close()
    assert not engine.bus
    assert Counting(engine).trace is not one.trace


def test_a_view_subscribed_to_an_engine_knows_what_was_before(make_engine: Any) -> None:
    engine = make_engine()
    engine.generate([[5, 6, 7]], wb.SamplingParams(max_tokens=2, ignore_eos=True))
    view, other = Counting(), Counting(engine)
    engine.bus.subscribe(view)
    assert view.trace is other.trace
    assert isinstance(view.trace.events[0], StateSeen)
    engine.generate([[5, 6, 8]], wb.SamplingParams(max_tokens=2, ignore_eos=True))
    view.refresh()
    assert (view.last_step, other.last_step) == (4, 4)
    assert len(view.trace.of(StepDone)) == 2, "an event was taken twice"
    view.close()
    other.close()
    assert not engine.bus


def test_views_watch_an_engine_on_its_own_thread(make_engine: Any) -> None:
    with wb.AsyncEngine(make_engine()) as engine:
        many, few = (
            wb.SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (40, 3)
        )
        first = engine.generate([5, 6, 7], many)
        one, two = Counting(engine), Counting()
        engine.bus.subscribe(two)
        assert one.trace is two.trace
        first.result()
        engine.generate([5, 6, 8], few).result()
        for view in (one, two):
            view.refresh()
            assert view.last_step == view.trace.of(StepDone)[-1].step > 40
            view.close()
        assert not engine.bus


def test_a_closed_view_is_freed_with_its_trace() -> None:
    trace = trace_of(2)
    view = Counting(trace)
    watched = weakref.ref(view), weakref.ref(trace)
    view.close()
    del view, trace
    gc.collect()
    assert [watch() for watch in watched] == [None, None]


def test_updates_come_on_the_loops_thread_however_fast_events_come() -> None:
    async def watch() -> Counting:
        bus, view = EventBus(), Counting()
        bus.subscribe(view)
        worker = threading.Thread(target=lambda: [bus.emit(done(n)) for n in range(1, 2001)])
        worker.start()
        while view.last_step < 2000:
            await asyncio.sleep(0.01)
        worker.join()
        return view

    view = asyncio.run(asyncio.wait_for(watch(), 60))
    assert set(view.updates) == {threading.get_ident()}
    assert len(view.updates) < 1000, "every event made an update"


def test_an_error_in_an_update_is_shown_and_goes_when_it_is_over() -> None:
    async def watch() -> list[str]:
        bus, view, seen = EventBus(), Counting(), []
        bus.subscribe(view)
        for free, wrong in ((-1, True), (5, False)):
            bus.emit(done(1, free))
            while bool(view.problem) is not wrong:
                await asyncio.sleep(0.01)
            seen.append(view.problem)
        return seen

    problems = asyncio.run(asyncio.wait_for(watch(), 60))
    assert "ValueError: a block too few" in problems[0]
    assert problems[1] == ""


def test_a_pacer_calls_back_from_a_busy_cell_and_once_more_at_its_end() -> None:
    calls: list[int] = []
    state = {"n": 0}

    async def cell() -> None:
        pacer = Pacer(lambda: calls.append(state["n"]), seconds=3600)
        for n in range(1, 100):
            state["n"] = n
            pacer.poke()
        assert calls == [1], "the first at once, the next when its time comes"
        pacer._next = 0.0
        state["n"] = 100
        pacer.poke()
        assert calls == [1, 100]
        pacer.stop()
        pacer.poke()

    asyncio.run(cell())
    assert calls == [1, 100]


def test_a_pacer_whose_loop_is_closed_says_so() -> None:
    async def make() -> Pacer:
        return Pacer(lambda: None)

    pacer = asyncio.run(make())
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="closed"):
        pool.submit(pacer.poke).result()


def test_packed_arrays_are_little_endian_and_empty_ones_are_nothing() -> None:
    assert zlib.decompress(packed([1, 258], "u2")) == b"\x01\x00\x02\x01"
    assert packed([], "u2") == b""


def test_following_again_goes_to_the_newest_step() -> None:
    bus, view = EventBus(), Counting()
    bus.subscribe(view)
    for step in range(1, 6):
        bus.emit(done(step))
    view.refresh()
    view.step = 2
    assert not view.follow
    view.follow = True  # as the browser says it, without the step
    assert view.step == 5
