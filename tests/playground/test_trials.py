"""A candidate that cheats, fails, crashes or hangs is a row with its reason, and the next one runs.

On a GPU the same tests run natively, and candidates are timed.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from workbench.playground import jobs, timing, tuner
from workbench.playground.client import Worker, WorkerLost
from workbench.playground.subject import Subject, Trial
from workbench.playground.trials import failure
from workbench.playground.tuner import prepare, try_config

CONFIG = {"BLOCK": 128, "num_warps": 1}
PLAN = """
from workbench.kernels.launch import Plan
from workbench.kernels.silu_mul import plan as shipped
class Changed(Plan):
{run}
def plan(**inputs):
    made = shipped(**inputs)
    return Changed(made.launches, made.outputs)
"""
REMEMBERS = PLAN.format(
    run="""
    kept = []
    def run(self):
        if not Changed.kept:
            Changed.kept.append(Plan.run(self).clone())
        return self.outputs.copy_(Changed.kept[0])
"""
)
IDLE = PLAN.format(run="    def run(self): return self.outputs")
ELSEWHERE = PLAN.format(
    run="""
    def run(self):
        with torch.cuda.stream(torch.cuda.Stream()):
            return Plan.run(self)
"""
)
WRONG = PLAN.format(run="    def run(self): Plan.run(self)[1, 3] += 1; return self.outputs")
RAISES = PLAN.format(run="    def run(self): raise ValueError('no such shape')")
ABORTS = PLAN.format(run="    def run(self):\n        import os; os.abort()")
LOOPS = PLAN.format(run="    def run(self):\n        while True: pass")


def tried(worker: Worker, source: str | None) -> Trial:
    """Try the one configuration of a cell's silu_mul."""
    return try_config(Subject("silu_mul", "odd width", "float16", source=source), CONFIG, worker)


def test_the_shipped_kernel_is_right_and_timed_only_on_a_gpu(worker: Worker) -> None:
    trial = tried(worker, None)
    assert trial.ok, trial
    assert trial.share is not None
    assert trial.share <= 1
    assert (trial.us is not None) == (trial.default_us is not None) == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        (REMEMBERS, "wrong", "inputs it had not seen: the output at"),
        (IDLE, "wrong", "the output at [0, 0] is nan"),
        (WRONG, "wrong", "the output at [1, 3] is"),
        (RAISES, "failed", "ValueError: no such shape"),
        ("x = 1", "failed", "it defines no kernel"),
        ("def plan(:", "failed", "SyntaxError"),
    ],
)
def test_what_cheats_or_fails_is_a_row_that_says_why(
    worker: Worker, source: str, status: str, reason: str
) -> None:
    trial = tried(worker, source)
    assert (trial.status, trial.us) == (status, None)
    assert reason in trial.reason
    assert tried(worker, None).ok


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (
            "CUDA error: an illegal memory access was encountered\nSearch for it\nCompile with X",
            "crashed",
            "an illegal memory access was encountered",
        ),
        ("it->second->use_count > 0 INTERNAL ASSERT FAILED at C.cpp:2799", "crashed", "use_count"),
        ("no CUDA\nno such shape", "failed", "no such shape"),
    ],
)
def test_a_lost_context_is_a_crash_and_named_by_its_first_words(
    error: str, status: str, reason: str
) -> None:
    found, text = failure(RuntimeError(error))
    assert found == status
    assert text.startswith("RuntimeError: ")
    assert reason in text


def test_a_graph_keeps_the_memory_that_it_writes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replayed:
        def replay(self) -> None:
            pass

        def wait_stream(self, _: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Replayed)
    monkeypatch.setattr(torch.cuda, "current_stream", Replayed)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(timing, "captured", lambda calls, rounds: Replayed())
    monkeypatch.setattr(timing, "_events", lambda: (None, None))
    monkeypatch.setattr(timing, "_elapsed", lambda timed: [100.0])
    output = torch.zeros(3)
    kept = weakref.ref(output)
    graph = timing.Graph([output.zero_])
    del output
    assert kept() is not None
    assert graph.num_calls == 4
    del graph
    assert kept() is None


@pytest.mark.gpu
def test_a_default_is_timed_again_after_others_were_captured(worker: Worker) -> None:
    subject = Subject("rms_norm", "llama-8b decode 1", "bfloat16")
    configs = prepare(subject, worker)["configs"][:4]
    trials = [try_config(subject, config, worker, seconds=0.05) for config in configs]
    assert [trial.status for trial in trials] == ["ok"] * len(configs), trials
    figures, others = worker.ask(jobs.Finals(subject, tuple(configs), 0.1), 60)
    assert len(figures) == len(configs)
    assert others["default"]["p50"] > 0


@pytest.mark.gpu
def test_work_on_another_stream_than_the_timed_one_is_seen(worker: Worker) -> None:
    trial = tried(worker, ELSEWHERE)
    assert trial.status in ("wrong", "failed"), trial
    assert trial.us is None


def test_a_crash_and_a_hang_cost_the_worker_and_nothing_else(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = tried(worker, ABORTS)
    assert crashed.status == "crashed"
    assert "signal 6" in crashed.reason
    assert tried(worker, None).ok
    prepare(Subject("silu_mul", "odd width", "float16", source=LOOPS), worker)
    monkeypatch.setattr(tuner, "TRIAL_SECONDS", 1.0)
    hung = tried(worker, LOOPS)
    assert hung.status == "hung"
    assert "killed" in hung.reason
    monkeypatch.undo()
    assert tried(worker, None).ok


def test_a_user_s_mistake_is_raised_as_it_is(worker: Worker) -> None:
    from workbench.errors import ConfigError

    with pytest.raises(ConfigError, match="silu_mul has no such case"):
        worker.ask(jobs.Prepare(Subject("silu_mul", "none", "float16")), 120)


def test_cancelling_ends_a_job_at_once(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    say = f"open({str(begun)!r}, 'w').close()"
    loops = PLAN.format(run=f"    def run(self):\n        {say}\n        while True: pass")

    def cancel_it(worker: Worker) -> None:
        while not begun.exists():
            time.sleep(0.01)
        worker.cancel()

    with Worker() as worker:
        subject = Subject("silu_mul", "odd width", "float16", source=loops)
        prepare(subject, worker)
        other = threading.Thread(target=cancel_it, args=[worker], daemon=True)
        other.start()
        with pytest.raises(WorkerLost, match="cancelled"):
            worker.ask(jobs.Try(subject, CONFIG), 120)
        other.join(60)
