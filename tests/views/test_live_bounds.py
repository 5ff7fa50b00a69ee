"""A live view of a long run: what it keeps and sends stays bounded, and it still scrubs exactly."""

from __future__ import annotations

import random
import threading

import pytest
from long_run import PARAMS, long_run_engine, work

import workbench as wb
from workbench.events import StepDone
from workbench.views import BatchTimeline, EngineDashboard, KVCacheView, TokenView, View, recording
from workbench.views.wire import GrowingLog

MOST = 600  # events


@pytest.fixture(autouse=True)
def _few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_EVENTS", MOST)


def logs_of(view: View) -> list[GrowingLog]:
    if isinstance(view, KVCacheView):
        return [view._kv.log]
    if isinstance(view, EngineDashboard):
        return [view._meters.log]
    return list(view.run.logs.values())


def size_of(view: View) -> int:
    """Return the entries that a view keeps."""
    logs = logs_of(view)
    return sum(len(v) for log in logs for v in [*log.columns.values(), *log.lists.values()])


def sent_by(view: View) -> int:
    """Return the bytes of all that a front end would get now."""
    return sum(len(v) for k, v in view.get_state().items() if isinstance(v, bytes) and k[0] != "_")


@pytest.mark.parametrize("kind", [KVCacheView, BatchTimeline, TokenView, EngineDashboard])
def test_a_long_run_keeps_and_sends_no_more_than_a_short_one(kind: type[View]) -> None:
    engine, source = long_run_engine(), random.Random(3)
    view = kind(engine)
    events, sizes, sent = [], [], []
    for _ in range(120):
        work(engine, source, 10)
        view.refresh()
        assert view.problem == ""
        events.append(len(view.trace))
        sizes.append(size_of(view))
        sent.append(sent_by(view))
    assert view.trace.num_shortened > 6
    assert max(events) <= MOST + 60, "no more than a step above it"
    begin = [max(values[:40]) for values in (sizes, sent)]
    assert max(sizes[40:]) <= 1.3 * begin[0]
    assert max(sent[40:]) <= 1.3 * begin[1]
    assert view.last_step == view.step == engine.scheduler.step, "it is followed"
    assert 1 < view.first_step < view.last_step - 20
    view.close()


def test_an_engine_on_its_own_thread_is_read_while_it_is_shortened() -> None:
    over = threading.Event()
    with wb.AsyncEngine(long_run_engine()) as engine:
        views = [kind(engine) for kind in (KVCacheView, BatchTimeline, EngineDashboard)]
        trace = views[0].trace

        def ask() -> None:
            for turn in range(40):
                prompts = [[turn + 1, place + 1, 7] for place in range(3)]
                for handle in [engine.generate(prompt, PARAMS) for prompt in prompts]:
                    handle.result()
            over.set()

        asking = threading.Thread(target=ask)
        asking.start()
        while not over.is_set():
            for view in views:
                with trace.reading():  # else it may lose the step between the two lines
                    view.refresh()
                    assert view.last_step == 0 or trace.at(view.last_step).step == view.last_step
                assert view.problem == ""
        asking.join()
        for view in views:
            view.refresh()
            assert view.last_step == trace.of(StepDone)[-1].step
            view.close()
    assert trace.num_shortened >= 1
    assert len(trace) <= 2 * MOST + 60
