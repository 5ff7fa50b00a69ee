"""A sweep goes on where it stopped, refuses another's file, and blames the right configuration."""

from __future__ import annotations

import importlib.util
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workbench.errors import ConfigError, MissingExtra
from workbench.kernels.tuning import TunedTable
from workbench.playground import jobs, program, timing, tuner
from workbench.playground.client import Worker, WorkerLost
from workbench.playground.search import make_search
from workbench.playground.subject import Subject, Trial, config_key
from workbench.playground.sweep import Sweep, load_sweep, open_sweep, sweep_name
from workbench.playground.timing import relative_error
from workbench.playground.tuner import tune, tuned_row

SUBJECT = Subject("silu_mul", "odd width", "float16")
CONFIGS = [{"A": a, "B": b} for a in (1, 2, 4) for b in (8, 16)]


class FakeWorker(Worker):
    """Answers from a function instead of a process: `play(job, alone)`."""

    def __init__(self, play: Any) -> None:
        super().__init__(interpret=True)
        self.play, self.asked = play, list[Any]()

    def ask(self, job: Any, seconds: float) -> Any:
        self.asked.append(job)
        self._prepared = job.subject
        if isinstance(job, jobs.Prepare):
            return facts()
        return self.play(job)

    def knows(self, subject: Any) -> bool:
        return bool(self._prepared == subject)


def facts(**changes: Any) -> dict[str, Any]:
    ceilings = {"copy": 4e12, "read": 4e12, "gemm": 8e14}
    made = {"space": {"A": [1, 2, 4], "B": [8, 16]}, "configs": CONFIGS, "bucket": "b"}
    made |= {"source_hash": "0" * 16, "num_bytes": 4_000_000, "flops": 8, "rotated": 32}
    made |= {"device": "NVIDIA H200", "driver": "1", "torch": "2", "triton": "3"}
    return made | {"target": "cuda:90", "ceilings": ceilings} | changes


def timed(job: Any) -> Any:
    """Time a configuration as A * B."""
    if isinstance(job, jobs.Finals):
        each = [us(config["A"] * config["B"]) for config in job.configs]
        return each, {"default": us(8.0), "library": us(20.0)}
    value = float(job.config["A"] * job.config["B"])
    return Trial(job.config, "ok", us=us(value), default_us=8.0, max_err=0.25, share=0.5)


def us(value: float) -> dict[str, float]:
    return {"p10": value, "p50": value, "p90": value + 1, "n": 100, "rel_error": 0.001}


def test_a_sweep_finds_the_fastest_and_writes_what_the_table_needs(tmp_path: Path) -> None:
    path = tmp_path / sweep_name(SUBJECT)
    sweep = tune(SUBJECT, worker=FakeWorker(timed), path=path)
    assert len(sweep.trials) == len(CONFIGS)
    row = tuned_row(load_sweep(path))
    assert row.config == {"A": 1, "B": 8}
    assert (row.latency_us["p50"], row.default_us, row.library_us) == (8.0, 8.0, 20.0)
    assert row.bound == pytest.approx(1 / 8)
    assert (row.max_err, row.checked) == (0.25, ["odd width"])


def test_a_sweep_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    tune(SUBJECT, worker=FakeWorker(timed), path=path, max_trials=2)
    text = path.read_text()
    finals = [line for line in text.splitlines() if "finals" in line]
    assert len(finals) == 1
    # as if it had been killed while it wrote the third trial
    path.write_text(text.replace(finals[0] + "\n", "") + '{"config": {"A": ')
    worker = FakeWorker(timed)
    sweep = tune(SUBJECT, worker=worker, path=path)
    tried = [config_key(job.config) for job in worker.asked if isinstance(job, jobs.Try)]
    assert len(tried) == len(set(tried)) == len(CONFIGS) - 2
    assert len(sweep.trials) == len(load_sweep(path).trials) == len(CONFIGS)


def test_who_reads_a_sweep_leaves_the_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    sweep = tune(SUBJECT, worker=FakeWorker(timed), path=path)
    text = path.read_text()
    path.write_text(text + '{"config": {"A": ')
    assert load_sweep(path).trials == sweep.trials
    assert path.read_text() == text + '{"config": {"A": '


def test_what_a_later_run_finds_is_in_the_finals(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"

    def play(job: Any) -> Any:
        """Time a configuration as 100 / (A * B): the default is the slowest."""
        if isinstance(job, jobs.Finals):
            each = [us(100 / (config["A"] * config["B"])) for config in job.configs]
            return each, {"default": us(12.5)}
        value = 100 / (job.config["A"] * job.config["B"])
        return Trial(job.config, "ok", us=us(value), default_us=12.5, max_err=0.0, share=0.0)

    first = tune(SUBJECT, worker=FakeWorker(play), path=path, max_trials=1)
    assert first.finals["best"]["config"] == CONFIGS[0]
    tune(SUBJECT, worker=FakeWorker(play), path=path)
    assert load_sweep(path).finals["best"]["config"] == CONFIGS[-1]
    worker = FakeWorker(play)
    tune(SUBJECT, worker=worker, path=path)  # nothing is left to try
    assert [type(job) for job in worker.asked] == [jobs.Prepare]


@pytest.mark.parametrize(
    "changes", [{"source_hash": "1" * 16}, {"device": "NVIDIA H100"}, {"triton": "4"}]
)
def test_a_file_of_another_kernel_or_machine_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "s.jsonl"
    header = {"format": 1, **facts()}
    open_sweep(path, header)
    (name,) = changes
    with pytest.raises(ConfigError, match=f"its {name} is"):
        open_sweep(path, header | changes)
    assert open_sweep(path, header).trials == {}


@pytest.mark.parametrize("content", ["", "{", '{"format": 99}\n', '{"format": 1}\n{"x": 1}\n'])
def test_what_is_no_sweep_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not a sweep file"):
        load_sweep(path)


def test_a_crash_among_several_compilations_is_blamed_on_the_right_one() -> None:
    guilty = CONFIGS[3]

    def play(job: Any) -> Any:
        if isinstance(job, jobs.Try) and guilty in (job.config, *job.ahead):
            raise WorkerLost("crashed", "signal 11")
        return timed(job)

    sweep = tune(SUBJECT, worker=FakeWorker(play))
    crashed = [trial.config for trial in sweep.trials.values() if trial.status == "crashed"]
    assert crashed == [guilty]
    assert len(sweep.timed) == len(CONFIGS) - 1


def test_one_that_is_lost_in_the_finals_becomes_a_row_and_the_others_are_timed() -> None:
    guilty = CONFIGS[0]

    def play(job: Any) -> Any:
        if isinstance(job, jobs.Finals) and guilty in job.configs:
            return jobs.Failed("crashed", "CUDA error: an illegal memory access")
        return timed(job)

    sweep = tune(SUBJECT, worker=FakeWorker(play))
    (lost,) = (trial for trial in sweep.trials.values() if not trial.ok)
    assert (lost.config, lost.status) == (guilty, "crashed")
    assert "illegal memory access" in lost.reason
    assert guilty not in [entry["config"] for entry in sweep.finals["candidates"]]
    assert tuned_row(sweep).latency_us["p50"] == 16.0


def test_finals_that_fail_for_nobody_s_fault_are_told() -> None:
    def play(job: Any) -> Any:
        if isinstance(job, jobs.Finals) and len(job.configs) > 1:
            raise WorkerLost("hung", "Finals took more than 120 s")
        return timed(job)

    with pytest.raises(WorkerLost, match="hung"):
        tune(SUBJECT, worker=FakeWorker(play))


def test_failures_are_rows_and_a_budget_ends_the_search() -> None:
    def play(job: Any) -> Any:
        if isinstance(job, jobs.Try) and job.config["A"] == 2:
            return Trial(job.config, "out of resources", "shared memory")
        return timed(job)

    sweep = tune(SUBJECT, worker=FakeWorker(play))
    assert [t.reason for t in sweep.trials.values() if not t.ok] == ["shared memory"] * 2
    assert len(tune(SUBJECT, worker=FakeWorker(play), budget=0).trials) == 1


def test_a_budget_is_spread_over_what_is_left() -> None:
    """Whoever takes its whole part leaves the others theirs; all parts together are all of it."""
    kernels = ["rms_norm", "prefill_attention", "gemv", "silu_mul"]
    shares = program.budget_shares([Subject(kernel, "case") for kernel in kernels])
    assert [subject.kernel for subject, _ in shares] == kernels
    left, taken = 80.0, []
    for _, share in shares:
        taken.append(share * left)
        left -= taken[-1]
    assert taken == pytest.approx([10, 40, 20, 10])
    assert left == 0


def test_without_a_gpu_nothing_is_timed_and_no_row_is_made() -> None:
    def play(job: Any) -> Any:
        return Trial(job.config, "ok", max_err=0.0, share=0.0)

    class CPU(FakeWorker):
        def ask(self, job: Any, seconds: float) -> Any:
            if isinstance(job, jobs.Prepare):
                self._prepared = job.subject
                return facts(device="cpu", target=None, ceilings=None)
            return super().ask(job, seconds)

    sweep = tune(SUBJECT, worker=CPU(play))
    assert sweep.timed == []
    with pytest.raises(ConfigError, match="nothing was timed"):
        tuned_row(sweep)


def test_a_search_never_tries_twice_and_begins_with_the_default() -> None:
    for method in ("exhaustive", "random", "auto"):
        search, seen = make_search(method, CONFIGS, 3), []
        while (config := search.next()) is not None:
            seen.append(config_key(config))
            search.tell(Trial(config, "ok", us=us(1.0)))
        assert seen[0] == config_key(CONFIGS[0])
        assert sorted(seen) == sorted(map(config_key, CONFIGS))
    with pytest.raises(ConfigError, match="no such search"):
        make_search("lucky", CONFIGS, 0)


@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is not None, reason="optuna is here: lifted without it"
)
def test_a_guided_search_without_its_library_says_how_to_get_it() -> None:
    with pytest.raises(MissingExtra, match=r"optuna.*llm-workbench\[tune\]"):
        make_search("guided", CONFIGS, 0)


@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs optuna: pip install optuna"
)
def test_a_guided_search_finds_a_slope_sooner_than_chance() -> None:
    names = ("A", "B", "C", "D")
    sizes = range(6)
    space = [
        dict(zip(names, (a, b, c, d), strict=True))
        for a in sizes for b in sizes for c in sizes for d in sizes
    ]  # fmt: skip

    def found(method: str, seed: int) -> float:
        search, best = make_search(method, space[::-1], seed), float("inf")
        for _ in range(80):
            config = search.next()
            assert config is not None
            value = 1.0 + sum(config.values())
            search.tell(Trial(config, "ok", us=us(value)))
            best = min(best, value)
        return best

    guided = sum(found("guided", seed) for seed in range(3))
    assert guided < sum(found("random", seed) for seed in range(3))


def test_a_hopeless_candidate_is_not_timed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """`n` says how often it was; one that may win is timed until the median stands."""
    graphs: Any = dict.fromkeys(("this", "default"), SimpleNamespace(num_calls=1))

    def batch(took: float) -> Any:
        return lambda graphs, count: {"this": [took] * count, "default": [1.0] * count}

    for took, n in ((2.5, 5), (1.5, 105)):
        monkeypatch.setattr(timing, "_batch", batch(took))
        found = timing.time_together(graphs, 1.0, beside=("this", "default"))
        assert (found["this"]["p50"], found["this"]["n"]) == (took, n)
    monkeypatch.setattr(timing, "_batch", batch(2.5))
    assert timing.time_together(graphs, 1.0)["this"]["n"] == 105


@pytest.mark.parametrize(("calls", "n"), [(1, 105), (16, 25)])
def test_a_slow_call_is_timed_a_hundred_times_whatever_its_samples_hold(
    monkeypatch: pytest.MonkeyPatch, calls: int, n: int
) -> None:
    """The time is up at once, and the samples never settle."""
    graphs: Any = {"this": SimpleNamespace(num_calls=calls)}

    def batch(graphs: Any, count: int) -> Any:
        return {"this": [1.0 + place for place in range(count)]}

    monkeypatch.setattr(timing, "_batch", batch)
    assert timing.time_together(graphs, 0.0)["this"]["n"] == n


def test_the_error_of_a_median() -> None:
    assert relative_error([1.0] * 100) == 0
    assert relative_error([1.0, 2.0] * 50) > 0.2
    spread = [1.0 + k / 1e4 for k in range(100)]
    assert 0 < relative_error(spread) < 0.005
    assert relative_error(spread * 4) < relative_error(spread)


@pytest.mark.skipif(torch.cuda.is_available(), reason="lifted by a machine without a GPU")
def test_the_program_checks_and_compiles_without_a_gpu(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    worker: Worker,
    compiler: Worker,
) -> None:
    kept = {None: worker, False: compiler}  # its own would take seconds to start
    monkeypatch.setattr(program, "Worker", lambda interpret=None: nullcontext(kept[interpret]))
    options = ["silu_mul", "--case", "odd width", "--sweeps", str(tmp_path), "--trials"]
    assert program.main([*options, "2"]) == 0
    assert "2 of 6 tried" in capsys.readouterr().out
    assert program.main([*options, "3"]) == 0
    (path,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4
    assert all(line["us"] is None and line["resources"][0]["registers"] for line in lines[1:])
    path.write_text(path.read_text().replace('"triton": "', '"triton": "other '))
    assert program.main([*options, "3"]) == 1
    assert "not swept, " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="too large for Triton's interpreter"):
        program.main(["silu_mul", "--case", "llama-8b decode 1"])
    with pytest.raises(ConfigError, match="no such case"):
        program.main(["silu_mul", "--case", "none"])


@pytest.mark.gpu
def test_a_sweep_on_a_gpu_is_timed_and_the_table_written(tmp_path: Path) -> None:
    options = ["silu_mul", "--case", "llama-8b decode 1", "--budget", "20"]
    folders = ["--sweeps", str(tmp_path / "sweeps"), "--tuned", str(tmp_path)]
    assert program.main([*options, *folders]) == 0
    table = TunedTable.load(torch.cuda.get_device_name(), tmp_path)
    (row,) = table.rows.values()
    assert 0 < row.latency_us["p50"] <= row.latency_us["p90"]
    sweep = load_sweep(next((tmp_path / "sweeps").iterdir()))
    for trial in sweep.trials.values():
        if trial.us is not None and trial.us["n"] < 100:
            assert trial.us["p50"] > 1.5 * (trial.default_us or 0), "few samples are of slow ones"


def test_names_of_the_finals_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "FINALISTS", 2)
    sweep = tune(SUBJECT, worker=FakeWorker(timed))
    assert len(sweep.finals["candidates"]) == 2
    assert sweep.finals.keys() == {"best", "candidates", "default", "library"}
    assert isinstance(sweep, Sweep)
