"""A step that fails in the middle can be stepped again, and leaves no trace in the tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from drive import Alone, MakeEngine, drawn, greedy
from interpreter import kernel_device
from tiny import random_prompts

from workbench import events
from workbench.engine import Engine
from workbench.errors import ConfigError, KernelFailed
from workbench.kernels.launch import Plan
from workbench.ops import TritonBackend
from workbench.trace import Trace

PROMPTS = random_prompts(6, seed=110, longest=30)
PARAMS = [greedy(20), drawn(1, 20), greedy(12), drawn(2, 16), greedy(20), greedy(9)]


class Fault(Exception):
    """What a part of the engine raises here."""


class FailingAt:
    """Calls through to a function, and raises instead (or afterwards) on some calls."""

    def __init__(self, inner: Any, error: type[BaseException], *, after: bool) -> None:
        self.inner, self.error, self.after = inner, error, after
        self.source, self.raised = random.Random(5), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fails = self.source.random() < 0.4
        self.raised += fails
        if fails and not self.after:
            raise self.error
        result = self.inner(*args, **kwargs)
        if fails:
            raise self.error
        return result


def run_through(engine: Engine, error: type[BaseException]) -> list[list[int]]:
    names = [engine.add(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
    for _ in range(2000):
        if not engine.has_work:
            break
        try:
            engine.step()
        except error:
            engine.cache.check()
    return [engine.output(name).outputs[0].token_ids for name in names]


@pytest.mark.parametrize("part", ["runner", "sampler", "model", "attention", "host"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt])
def test_a_failing_part(
    make_engine: MakeEngine,
    alone: Alone,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    after: bool,
    error: type[BaseException],
) -> None:
    expected = alone(PROMPTS, PARAMS)
    swaps = {"preemption": "swap", "host_blocks": 40} if part == "host" else {}
    engine = make_engine(num_blocks=18, block_size=4, max_batch_tokens=16, max_sequences=5, **swaps)
    target, name = {
        "host": (engine.cache, "run_transfers"),
        "runner": (engine.runner, "run"),
        "sampler": (engine, "sampler"),
        "model": (engine.model, "forward"),
        "attention": (engine.runner.backend, "attention"),  # in the middle of the layers
    }[part]
    failing = FailingAt(getattr(target, name), error, after=after)
    monkeypatch.setattr(target, name, failing)
    assert run_through(engine, error) == expected
    assert failing.raised > 20
    assert sum(s.metrics.num_preemptions for s in engine.requests.values()) > 0


def test_generate_discards_its_batch_and_nothing_else(
    make_engine: MakeEngine, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(PROMPTS, [greedy(40), *PARAMS[1:]])
    engine = make_engine(max_batch_tokens=16)
    earlier = engine.add(PROMPTS[0], greedy(40))
    engine.run(2)
    for error in (Fault, KeyboardInterrupt):
        for steps in range(4):
            calls = iter(range(steps))
            run = engine.runner.run

            def stop(plan, calls=calls, run=run, error=error):
                if next(calls, None) is None:
                    raise error
                return run(plan)

            with monkeypatch.context() as patch:
                patch.setattr(engine.runner, "run", stop)
                with pytest.raises(error):
                    engine.generate(PROMPTS[1:], PARAMS[1:])
            assert list(engine.requests) == [earlier]
            engine.cache.check()
            assert len(engine.cache.blocks.tables) == 1
    outputs = engine.generate(PROMPTS[1:], PARAMS[1:])
    assert [output.outputs[0].token_ids for output in outputs] == expected[1:]
    engine.run()
    assert engine.output(earlier).outputs[0].token_ids == expected[0]


def test_an_error_in_on_finish_ends_the_batch(make_engine: MakeEngine) -> None:
    engine = make_engine()

    def complain(sequence: Any) -> None:
        raise Fault(sequence.request.request_id)

    with pytest.raises(Fault):
        engine.generate(PROMPTS, PARAMS, on_finish=complain)
    assert engine.requests == {}


@pytest.mark.parametrize("kind", [drawn, lambda seed, n: greedy(n)], ids=["drawn", "greedy"])
def test_logits_that_are_no_numbers(make_engine: MakeEngine, alone: Alone, kind: Any) -> None:
    """The request ends with the error; the others go on as if nothing had happened."""
    params = [kind(i, 14) for i in range(4)]
    expected = alone(PROMPTS[:4], params)
    engine = make_engine(block_size=4)
    names = [engine.add(p, own) for p, own in zip(PROMPTS[:4], params, strict=True)]
    engine.run(3)
    ill = engine.requests[names[2]].sequences[0]
    engine.cache.tensor[:, :, engine.cache.blocks.tables[2].block_ids] = torch.nan
    made = ill.output_token_ids
    with Trace.record(engine) as trace:
        record = engine.step()
        assert [s.request.request_id for s in record.finished] == [names[2]]
        assert names[2] not in [token.request_id for token in record.tokens]
        engine.run()
    output = engine.output(names[2]).outputs[0]
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.error.startswith("logits: the model's are NaN or +inf")
    [failure] = trace.of(events.RequestFailed)
    assert (failure.request_id, failure.message) == (names[2], output.error)
    got = [engine.output(name).outputs[0].token_ids for name in names]
    assert got[2] == made == expected[2][: len(made)]
    assert got[:2] + got[3:] == expected[:2] + expected[3:]
    again = engine.generate([PROMPTS[4]], greedy(20))[0].outputs[0].token_ids
    assert again == alone([PROMPTS[4]], greedy(20))[0], "its blocks carry nothing over"


def test_a_kernel_that_raises_is_named_and_the_engine_goes_on(
    make_engine: MakeEngine, alone: Alone
) -> None:
    """Its batch ends with the error; the engine goes on without it, is closed, and built anew."""
    device: Any = kernel_device()
    device = device if isinstance(device, str) else "cuda"
    prompts, params = [[5, 9, 2], [7, 1]], [greedy(2), greedy(2)]
    expected = alone(prompts, params, device=device)
    engine = make_engine(backend="triton", device=device)
    backend = engine.runner.backend
    assert isinstance(backend, TritonBackend)
    good = backend.kernels["silu_mul"]

    def broken(**inputs: Any) -> Plan:
        def launch() -> None:
            raise Fault("out of shared memory")

        return Plan((launch,), good.plan(**inputs).outputs)  # type: ignore[arg-type]

    engine.swap(kernel=replace(good, plan=broken))
    said = r"kernel silu_mul\(gate_up float32\[5, 192\]\): Fault: out of shared memory"
    with pytest.raises(KernelFailed, match=said) as caught:
        engine.generate(prompts, params)
    assert isinstance(caught.value.__cause__, Fault)
    assert engine.requests == {}
    engine.cache.check()
    assert len(engine.cache.blocks.tables) == 0
    for other in ({"kernel": "silu_mul"}, {"backend": "sdpa"}):
        engine.swap(**other)
        outputs = engine.generate(prompts, params)
        assert [output.outputs[0].token_ids for output in outputs] == expected
    engine.close()
    again = make_engine(backend="triton", device=device)
    outputs = again.generate(prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == expected


def test_shapes_that_no_kernel_takes_are_refused_when_it_is_built(make_engine: MakeEngine) -> None:
    device: Any = kernel_device()
    device = device if isinstance(device, str) else "cuda"
    with pytest.raises(ConfigError, match=r"paged_decode\.block_size=2048.*or backend=\"sdpa\""):
        make_engine(backend="triton", device=device, block_size=2048, num_blocks=2)
    engine = make_engine(device=device, block_size=2048, num_blocks=2)
    with pytest.raises(ConfigError, match=r"paged_decode\.block_size=2048"):
        engine.swap(backend="triton")
    assert engine.runner.backend.name == "sdpa"
