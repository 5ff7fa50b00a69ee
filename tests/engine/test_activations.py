"""Hidden states and activations of a request: transformers' own, and the same whatever is on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import MakeEngine, drawn, greedy
from hf import hidden_states, outputs_of, reference
from tiny import random_prompts
from torch import Tensor

from workbench.activations import Activations
from workbench.engine import Engine
from workbench.errors import RequestError
from workbench.events import Preempted
from workbench.layers import probe
from workbench.models import load_model
from workbench.request import CompletionOutput
from workbench.results import SampledTokens
from workbench.trace import Trace

Folder = Callable[[str], Path]
PROMPTS = random_prompts(5, seed=130, longest=30)
# A point of ours and the module under `model` of transformers that computes the same.
SAME = {
    "embedding": "embed_tokens",
    "layers.0": "layers.0",
    "layers.0.attention": "layers.0.self_attn",
    "layers.1.attention_norm": "layers.1.input_layernorm",
    "layers.1.attention.o_proj": "layers.1.self_attn.o_proj",
    "layers.1.mlp_norm": "layers.1.post_attention_layernorm",
    "layers.1.mlp": "layers.1.mlp",
    "layers.1": "layers.1",
    "norm": "norm",
}
POINTS = ("layers.0", "layers.1.attention", "embedding")


def close(given: Tensor | None, expected: Tensor) -> None:
    """Fail unless a tensor is on the CPU and equal up to float32's rounding."""
    assert given is not None
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=2e-4)


@pytest.fixture
def alone_with(make_engine: MakeEngine) -> Callable[[list[int]], dict[str, Tensor]]:
    """Return the oracle: all of `POINTS` and "" of a token list, in one bare forward pass."""

    def run(ids: list[int]) -> dict[str, Tensor]:
        engine = make_engine(backend="reference", prefix_reuse=False)
        engine.add(ids, greedy(1))
        with probe(engine.model, (*POINTS, "")) as seen:
            engine.step()
        return dict(seen)

    return run


def check(
    output: CompletionOutput, prompt: list[int], oracle: Callable[[list[int]], dict[str, Tensor]]
) -> None:
    """Fail unless an output holds the hidden states and activations of its own tokens."""
    expected = oracle([*prompt, *output.token_ids[:-1]])
    close(output.hidden_states, expected[""])
    assert output.activations is not None
    assert tuple(output.activations) == POINTS
    for point, rows in output.activations.items():
        close(rows, expected[point])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("budget", [7, 512])
def test_they_are_those_of_transformers(
    make_engine: MakeEngine, checkpoint: Folder, backend: str, device: str, family: str, budget: int
) -> None:
    hf = reference(checkpoint(family), device)
    settings = {"max_batch_tokens": budget, "max_sequences": min(budget, 5)}
    engine = make_engine(family, backend=backend, device=device, **settings)
    asking = greedy(6, hidden_states=True, activations=list(SAME))
    params = [asking, greedy(6), asking, greedy(6, activations=["norm"]), asking]
    for prompt, own, output in zip(PROMPTS, params, engine.generate(PROMPTS, params), strict=True):
        [completion] = output.outputs
        ids = [*prompt, *completion.token_ids[:-1]]
        assert (completion.hidden_states is not None) == own.hidden_states
        assert (completion.activations is not None) == bool(own.activations)
        if own.hidden_states:
            close(completion.hidden_states, hidden_states(hf, ids))
        expected = outputs_of(hf, ids, [SAME[point] for point in own.activations])
        for point, rows in (completion.activations or {}).items():
            close(rows, expected[SAME[point]])


def test_batches_chunks_and_branches(
    make_engine: MakeEngine, alone_with: Callable[[list[int]], dict[str, Tensor]]
) -> None:
    keep: dict[str, Any] = {"hidden_states": True, "activations": POINTS}
    for settings in ({}, {"max_batch_tokens": 5, "max_sequences": 4}, {"max_sequences": 2}):
        engine = make_engine(block_size=4, **settings)
        params = [drawn(i, 6, n=1 + i % 3, **keep) for i in range(5)]
        for prompt, output in zip(PROMPTS, engine.generate(PROMPTS, params), strict=True):
            for completion in output.outputs:
                check(completion, prompt, alone_with)


@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_preemption(
    make_engine: MakeEngine,
    alone_with: Callable[[list[int]], dict[str, Tensor]],
    prefix_reuse: bool,
) -> None:
    engine = make_engine(
        num_blocks=14, block_size=4, max_batch_tokens=9, max_sequences=5, prefix_reuse=prefix_reuse
    )
    with Trace.record(engine) as trace:
        outputs = engine.generate(
            PROMPTS, greedy(24, hidden_states=True, activations=POINTS, prompt_logprobs=0)
        )
    lost = [event.num_computed for event in trace.of(Preempted)]
    assert sum(1 for count in lost if count) >= 3, "blocks were to run out"
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        check(output.outputs[0], prompt, alone_with)


def test_forks(
    make_engine: MakeEngine, alone_with: Callable[[list[int]], dict[str, Tensor]]
) -> None:
    prompt = list(range(1, 24))
    for steps in (1, 2, 6):
        engine = make_engine(max_batch_tokens=10, max_sequences=2)
        name = engine.add(prompt, greedy(8, hidden_states=True, activations=POINTS))
        engine.run(steps)
        keep: dict[str, Any] = {"hidden_states": True, "activations": POINTS}
        twins = [name, engine.fork(name), engine.fork(name, drawn(3, 10, **keep))]
        part = engine.fork(name, greedy(9, activations=POINTS[1]))
        with pytest.raises(RequestError, match=r"activations='layers\.1': the forked request has"):
            engine.fork(name, greedy(9, activations=["layers.0", "layers.1"]))
        engine.run()
        for twin in twins:
            check(engine.output(twin).outputs[0], prompt, alone_with)
        [output] = engine.output(part).outputs
        assert output.hidden_states is None
        assert output.activations is not None
        expected = alone_with([*prompt, *output.token_ids[:-1]])
        assert list(output.activations) == [POINTS[1]]
        close(output.activations[POINTS[1]], expected[POINTS[1]])


def test_a_fork_cannot_ask_for_what_nobody_kept(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add([1, 2, 3], greedy(8))
    engine.run(2)
    with pytest.raises(RequestError, match="hidden_states=True: the forked request has not kept"):
        engine.fork(name, greedy(8, hidden_states=True))
    engine.abort(name)


def test_unfinished_and_aborted(
    make_engine: MakeEngine, alone_with: Callable[[list[int]], dict[str, Tensor]]
) -> None:
    engine = make_engine(max_batch_tokens=8, max_sequences=1)
    prompt = list(range(1, 21))
    name = engine.add(prompt, greedy(9, hidden_states=True, activations=["layers.0"]))
    [output] = engine.output(name).outputs
    assert output.hidden_states is None
    assert output.activations == {}
    engine.run(2)
    [output] = engine.output(name).outputs
    assert output.hidden_states is not None
    assert output.hidden_states.shape == (16, 64)
    early = output.hidden_states.clone()
    output.hidden_states.zero_()  # the user's copy
    engine.run(3)
    aborted = engine.abort(name).outputs[0]
    expected = alone_with([*prompt, *aborted.token_ids[:-1]])
    close(aborted.hidden_states, expected[""])
    close(early, expected[""][:16])


def test_a_request_that_ends_with_an_error(make_engine: MakeEngine) -> None:
    """The token that was to follow never came, so the last one computed has no place."""
    engine = make_engine()
    name = engine.add(PROMPTS[1], greedy(9, hidden_states=True))
    engine.run(3)
    engine.sampler = lambda logits, rows: SampledTokens([0], errors={0: "mine"})  # type: ignore[assignment]
    engine.step()
    [output] = engine.output(name).outputs
    assert (output.finish_reason, output.error, len(output.token_ids)) == ("error", "mine", 3)
    assert output.hidden_states is not None
    assert len(output.hidden_states) == len(PROMPTS[1]) + 2


def test_they_are_ordinary_tensors_to_train_on(make_engine: MakeEngine) -> None:
    params = greedy(3, hidden_states=True, activations=["layers.0"])
    [output] = make_engine().generate([PROMPTS[1]], params)[0].outputs
    linear = torch.nn.Linear(64, 2)
    assert output.activations is not None
    assert output.hidden_states is not None
    for rows in (output.hidden_states, output.activations["layers.0"]):
        linear(rows).sum().backward()
    assert linear.weight.grad is not None


def test_the_models_dtype_is_kept(make_engine: MakeEngine, checkpoint: Folder) -> None:
    engine = make_engine(load_model(checkpoint("llama"), device="cpu", dtype="bfloat16"))
    [output] = engine.generate([[1, 2]], greedy(2, hidden_states=True))[0].outputs
    assert output.hidden_states is not None
    assert output.hidden_states.dtype is torch.bfloat16


def test_unknown_points(make_engine: MakeEngine) -> None:
    engine = make_engine()
    cases = {
        "layers.0.atention": r"Did you mean \['layers\.0\.attention'",
        "layers.2": r"Did you mean \['layers\.",
        "layers": "no point of the model with a row for each token",
        "head": "no point of the model",
        "rope": "no point of the model",
        "": "no point of the model",
    }
    for point, message in cases.items():
        with pytest.raises(RequestError, match=message) as caught:
            engine.add([1], greedy(activations=["layers.0", point]))
        assert caught.value.value == point
    for bad in (5, [5], [None]):
        with pytest.raises(RequestError, match="activations="):
            greedy(activations=bad)
    with pytest.raises(RequestError, match="hidden_states=1: is no bool"):
        greedy(hidden_states=1)
    assert greedy(activations="norm").activations == ("norm",)
    assert engine.requests == {}


def test_every_known_point_works(make_engine: MakeEngine) -> None:
    engine = make_engine("qwen2", max_batch_tokens=6, max_sequences=2)
    points = engine.model.activation_points
    assert {*SAME, "layers.0.attention.qkv_proj", "layers.1.mlp.gate_up_proj"} <= set(points)
    [output] = engine.generate([list(range(1, 14))], greedy(4, activations=points))[0].outputs
    assert output.activations is not None
    assert {point: len(rows) for point, rows in output.activations.items()} == dict.fromkeys(
        points, 16
    )


def test_outputs_show_shapes_and_no_values(make_engine: MakeEngine) -> None:
    params = greedy(3, hidden_states=True, activations=["layers.0"], prompt_logprobs=1)
    [output] = make_engine().generate([[5, 6, 7]], params)
    html, facts = output._repr_html_(), output.describe()
    assert facts["hidden states 0"] == "[5, 64] float32"
    assert facts["activations 0"] == "layers.0 [5, 64] float32"
    assert facts["prompt logprobs"] == "3 tokens"
    assert "[5, 64] float32" in html
    assert "[5, 64] float32" in output.outputs[0]._repr_html_()
    for shown in (html, repr(output), output.outputs[0]._repr_html_()):
        assert "tensor" not in shown
        assert "TokenLogprobs" not in shown
    assert output == output.__class__(**{f: getattr(output, f) for f in output.__slots__})


# --- the same points from outside -----------------------------------------------------------------


def test_probing_a_live_engine(make_engine: MakeEngine, backend: str, device: str) -> None:
    """A notebook's probe sees the packed batch of each step, and the engine never knows."""
    prompts, parts = PROMPTS[:3], {"backend": backend, "device": device}
    expected = [o.outputs[0] for o in make_engine(**parts).generate(prompts, greedy(5))]
    engine = make_engine(**parts)
    names = [engine.add(prompt, greedy(5)) for prompt in prompts]
    with probe(engine.model, ["layers.1", "layers.0.attention.qkv_proj", "head"]) as seen:
        plan = engine.step().plan
        assert len(seen["layers.1"]) == len(seen["layers.0.attention.qkv_proj"]) == plan.num_tokens
        assert len(seen["head"]) == 3
        assert not seen["layers.1"].is_inference()
        engine.step()
        assert len(seen["layers.1"]) == 3
    assert not any(module._forward_hooks for module in engine.model.modules())
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == [
        o.token_ids for o in expected
    ]


def test_steering_a_live_engine(make_engine: MakeEngine) -> None:
    """What a probe puts in is what the request keeps and what its tokens come from."""
    prompt, direction = PROMPTS[1], 4 * torch.randn(64)
    engine, free = make_engine(), make_engine()
    params = greedy(8, activations=["layers.0"])
    name = engine.add(prompt, params)
    with probe(engine.model, {"layers.0": lambda stream: stream + direction}) as seen:
        engine.step()
    [steered] = engine.output(name).outputs
    assert steered.activations is not None
    close(steered.activations["layers.0"], seen["layers.0"] + direction)
    engine.run()
    [plain] = free.generate([prompt], params)[0].outputs
    assert engine.output(name).outputs[0].token_ids != plain.token_ids


def test_a_failing_probe_leaves_the_engine_whole(make_engine: MakeEngine) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("mine")

    def run(engine: Engine, steps: int) -> list[int]:
        name = engine.add(PROMPTS[1], greedy(6, hidden_states=True))
        engine.run(steps)
        if steps:
            with probe(engine.model, {"layers.1": fail}), pytest.raises(RuntimeError, match="mine"):
                engine.step()
        engine.run()
        return engine.output(name).outputs[0].token_ids

    expected = run(make_engine(), 0)
    assert run(make_engine(), 3) == expected


# --- the record itself ----------------------------------------------------------------------------


def test_a_record_copies_and_goes_through_plain_tensors() -> None:
    record = Activations(["a", ""])
    assert record.tensor("a") is None
    assert record.copy().points == ("a", "")
    for count in (3, 1, 2):
        start = record.num_positions
        rows = torch.arange(start, start + count).float()[:, None]
        record.extend({"a": rows, "": -rows})
    twin, part = record.copy(), record.first(4, ["a"])
    restored = Activations.from_state(record.state())
    record.extend({"a": torch.full((1, 1), 6.0), "": torch.full((1, 1), -6.0)})
    for other, length in ((twin, 6), (restored, 6), (record, 7)):
        assert other.num_positions == length
        assert torch.equal(other.tensor("a").flatten(), torch.arange(length).float())
        assert torch.equal(other.tensor("").flatten(), -torch.arange(length).float())
    assert part.points == ("a",)
    assert part.tensor("a").flatten().tolist() == [0, 1, 2, 3]
    empty = Activations.from_state(Activations(["a"]).state())
    assert (empty.points, empty.num_positions) == (("a",), 0)
    assert record.tensor("a", 2).untyped_storage().nbytes() <= 7 * 4
