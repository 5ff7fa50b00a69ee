"""One forward pass: what the runner makes of a plan, besides logits and with embeddings in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.config import ModelConfig, SchedulerConfig
from workbench.engine import Engine
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.run import Runner
from workbench.run.reports import points_of
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler


@pytest.fixture(scope="module")
def model() -> DecoderLM:
    """A model of random weights, without a tokenizer."""
    model = LlamaForCausalLM(ModelConfig("LlamaForCausalLM", 50, 16, 24, 2, 2, 1, 8, context=64))
    model.init_weights(std=0.3)
    return model.requires_grad_(False)


@pytest.fixture
def engine(model: DecoderLM) -> Engine:
    """An engine that runs at most 6 tokens a step."""
    cache = KVCache.for_model(model, num_blocks=32, block_size=4)
    scheduler = Scheduler(cache, SchedulerConfig(max_batch_tokens=6, max_sequences=4))
    return Engine(model, cache, scheduler, Runner(model, cache, "reference"))


def asking(**settings: object) -> SamplingParams:
    """Return greedy parameters for three tokens."""
    return SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, **settings)  # type: ignore[arg-type]


def plans(engine: Engine) -> list[StepPlan]:
    """Run everything; return the plans."""
    return [record.plan for record in engine.run()]


def test_a_pass_in_which_no_row_samples_makes_no_logits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(engine.model, "logits", called.append)
    engine.add(list(range(1, 20)), asking())
    plan = engine.scheduler.schedule()
    output = engine.runner.run(plan)
    assert (output.logits, output.reports, called) == (None, {}, [])


def test_reports_hold_each_position_once(engine: Engine) -> None:
    engine.add(list(range(1, 11)), asking(prompt_logprobs=1, activations="layers.0"))
    engine.add([3, 4], asking())
    engine.add([5, 6, 7], asking(hidden_states=True))
    told: dict[int, list[tuple[int, dict[str, int]]]] = {0: [], 1: [], 2: []}
    run = engine.runner.run

    def watched(plan: StepPlan) -> object:
        output = run(plan)
        again = run(plan)  # a pass that is run twice before it is committed says the same
        for row, report in output.reports.items():
            rows = {point: len(part) for point, part in report.activations.items()}
            told[plan.sequences[row].sequence_id].append((len(report.prompt_logprobs), rows))
            assert report.prompt_logprobs == again.reports[row].prompt_logprobs
        assert set(points_of(plan)) <= {"layers.0", ""}
        return output

    engine.runner.run = watched  # type: ignore[method-assign,assignment]
    engine.run()
    assert told[1] == []
    assert sum(scored for scored, _ in told[0]) == 9
    assert sum(rows["layers.0"] for _, rows in told[0]) == 12
    assert sum(rows[""] for _, rows in told[2]) == 5
    assert {scored for scored, _ in told[2]} == {0}


def test_only_rows_that_need_them_bring_embeddings(engine: Engine) -> None:
    rows = torch.arange(48.0).view(3, 16)
    engine.add([1, 2], asking())
    engine.add([7, rows[:2], 8, 9, rows[2:], 4], asking())
    found: list[tuple[list[int], Tensor] | None] = []
    build = engine.runner.inputs.build

    def watched(*args: object) -> object:
        inputs = build(*args)  # type: ignore[arg-type]
        embeds = inputs.ctx.embeds
        found.append(None if embeds is None else (embeds.positions.tolist(), embeds.rows))
        return inputs

    engine.runner.inputs.build = watched  # type: ignore[method-assign,assignment]
    steps = plans(engine)
    assert [(plan.starts, plan.num_new) for plan in steps[:2]] == [
        ([0, 0], [2, 4]),
        ([2, 4], [1, 3]),
    ]
    first, second, *others = found
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == ([3, 4], [2])
    assert torch.equal(first[1], rows[:2])
    assert torch.equal(second[1], rows[2:])
    assert set(others) == {None}


def test_the_embedding_layer(model: DecoderLM) -> None:
    ids = torch.tensor([3, 0, 5])
    table = model.embedding.weight
    assert torch.equal(model.embedding(ids), table[ids])
