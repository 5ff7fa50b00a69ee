"""Prompts of embeddings: they generate what the tokens they stand for would, whatever is on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import Alone, MakeEngine, drawn, greedy, tokens_of
from hf import generate_from, reference
from tiny import VOCAB, random_prompts
from torch import Tensor

from workbench.embeds import PromptEmbeds
from workbench.engine import Engine
from workbench.errors import RequestError
from workbench.events import Preempted
from workbench.llm import LLM
from workbench.models import load_model
from workbench.trace import Trace

Folder = Callable[[str], Path]
PROMPTS = random_prompts(6, seed=140, longest=30)
HIDDEN = 64


def rows_of(engine: Engine, ids: list[int]) -> Tensor:
    """Return the rows of the embedding table for token ids, [tokens, hidden]."""
    return engine.model.embedding(torch.tensor(ids, device=engine.model.device)).detach()


def strange(count: int, seed: int) -> Tensor:
    """Return embeddings that belong to no token."""
    return 0.05 * torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def mixed(engine: Engine, ids: list[int]) -> list[int | Tensor]:
    """Return a prompt whose every third stretch of tokens is given as embeddings."""
    parts: list[int | Tensor] = []
    for start in range(0, len(ids), 4):
        stretch = ids[start : start + 4]
        if start // 4 % 3 == 0:
            parts.append(rows_of(engine, stretch))
        else:
            parts += stretch
    return parts


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("budget", [1, 7, 512])
def test_they_generate_as_the_ids_they_embed(
    make_engine: MakeEngine, alone: Alone, backend: str, device: str, family: str, budget: int
) -> None:
    parts = {"model": family, "backend": backend, "device": device}
    params = [greedy(12), drawn(1, 12)] * 3
    expected = alone(PROMPTS, params, **parts)
    settings = {"max_batch_tokens": budget, "max_sequences": min(budget, 6)}
    engine = make_engine(**parts, **settings)
    whole = [rows_of(engine, prompt) for prompt in PROMPTS]
    assert tokens_of(engine, whole, params) == expected
    assert tokens_of(engine, [mixed(engine, prompt) for prompt in PROMPTS], params) == expected
    both = [p if i % 2 else whole[i] for i, p in enumerate(PROMPTS)]
    assert tokens_of(engine, both, params) == expected


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_embeddings_of_no_token_generate_as_in_transformers(
    make_engine: MakeEngine, checkpoint: Folder, backend: str, device: str, family: str
) -> None:
    hf = reference(checkpoint(family), device)
    prompts = [strange(n, n) for n in (1, 5, 21)]
    engine = make_engine(family, backend=backend, device=device, max_batch_tokens=8)
    got = tokens_of(engine, prompts, greedy(20))
    assert got == [generate_from(hf, prompt, 20) for prompt in prompts]


def test_preemption_and_branches(make_engine: MakeEngine) -> None:
    prompts = [strange(n, n) for n in (9, 22, 17)]
    params = [greedy(30), drawn(5, 24, n=3), drawn(9, 30)]
    roomy = make_engine(prefix_reuse=False).generate(prompts, params)
    engine = make_engine(num_blocks=16, block_size=4, max_batch_tokens=9, max_sequences=5)
    with Trace.record(engine) as trace:
        tight = engine.generate(prompts, params)
    assert sum(1 for event in trace.of(Preempted) if event.num_computed) >= 3
    for one, other in zip(roomy, tight, strict=True):
        assert [o.token_ids for o in one.outputs] == [o.token_ids for o in other.outputs]


def test_forks_go_on_from_embeddings(make_engine: MakeEngine) -> None:
    for steps in (1, 2, 7):
        engine = make_engine(max_batch_tokens=10, max_sequences=2)
        prompt = strange(24, 3)
        [expected] = tokens_of(engine, [prompt], greedy(12))
        engine.cache.blocks.clear_cached()
        name = engine.add(prompt, greedy(12))
        engine.run(steps)
        twin = engine.fork(name)
        engine.run()
        assert engine.output(name).outputs[0].token_ids == expected
        assert engine.output(twin).outputs[0].token_ids == expected


def test_reuse_tells_embeddings_apart(make_engine: MakeEngine) -> None:
    """Equal ones share their blocks; any other row, place or token does not."""
    engine = make_engine(block_size=4)
    one, other = strange(18, 1), strange(18, 2)
    nearly = one.clone()
    nearly[0, 0] += 1e-3
    prompts: list[Any] = [
        one,
        other,
        nearly,
        [0] * 18,
        [*[7] * 4, one],
        [one[:9], 7, one[9:]],
        [one[:9], 8, one[9:]],
        [one, *[7] * 4],
    ]
    expected = [tokens_of(make_engine(prefix_reuse=False), [p], greedy(8))[0] for p in prompts]
    assert len({tuple(row) for row in expected}) > 4
    # The last two begin like an earlier one, with the same embeddings in the same places.
    shared = [0, 0, 0, 0, 0, 0, 9, 18]
    for prompt, row, num_cached in zip(prompts, expected, shared, strict=True):
        [output] = engine.generate([prompt], greedy(8))
        assert output.metrics.num_cached_tokens == num_cached
        assert output.outputs[0].token_ids == row
    for prompt, row in zip(prompts, expected, strict=True):
        [output] = engine.generate([prompt], greedy(8))
        assert output.metrics.num_cached_tokens >= 16, "the same one was computed before"
        assert output.outputs[0].token_ids == row


def test_the_users_tensor_may_change_afterwards(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=8, max_sequences=1)
    prompt = strange(20, 5)
    [expected] = tokens_of(make_engine(), [prompt.clone()], greedy(6))
    name = engine.add(prompt.requires_grad_(), greedy(6))
    with torch.no_grad():
        prompt.zero_()
    engine.run()
    assert engine.output(name).outputs[0].token_ids == expected


def test_reports_of_embedded_prompts(make_engine: MakeEngine) -> None:
    """Tokens are scored, embeddings are not; the point `embedding` shows what went in."""
    engine, ids = make_engine(max_batch_tokens=7, max_sequences=2), PROMPTS[2][:22]
    points = {"activations": ["embedding"], "hidden_states": True, "prompt_logprobs": 2}
    [plain] = engine.generate([ids], greedy(5, **points))
    [output] = engine.generate([mixed(engine, ids)], greedy(5, **points))
    embedded = {i for i in range(len(ids)) if i // 4 % 3 == 0}
    assert output.prompt_logprobs is not None
    for i, (given, expected) in enumerate(
        zip(output.prompt_logprobs, plain.prompt_logprobs or [], strict=True)
    ):
        assert (given is None) == (i in embedded)
        if given is not None:
            assert given.token_id == ids[i]
            assert given.logprob == pytest.approx(expected.logprob, abs=2e-4)
    one, other = output.outputs[0], plain.outputs[0]
    assert torch.equal(one.activations["embedding"], other.activations["embedding"])
    torch.testing.assert_close(one.hidden_states, other.hidden_states, rtol=1e-4, atol=2e-4)
    assert output.prompt_token_ids == [0 if i in embedded else t for i, t in enumerate(ids)]


def test_text_around_embeddings(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.tokenizer is not None
    text, rows = "def naïve(n):\n", strange(3, 4)
    ids = engine.tokenizer.encode(text)
    [echoed] = engine.generate([[*ids, rows]], greedy(20, echo=True))
    [plain] = engine.generate([[*ids, rows]], greedy(20))
    assert echoed.outputs[0].text == text + plain.outputs[0].text
    stop = plain.outputs[0].text[6:9]
    [stopped] = engine.generate([[*ids, rows]], greedy(20, stop=stop))
    assert stopped.outputs[0].finish_reason == "stop"
    assert plain.outputs[0].text.startswith(stopped.outputs[0].text)
    assert plain.prompt is None


def test_truncated_prompts(make_engine: MakeEngine) -> None:
    engine, rows = make_engine(), strange(10, 6)
    prompt: list[int | Tensor] = [5, 6, rows, 7, 8, 9]
    cases: dict[int, Any] = {15: prompt, 99: prompt, 9: [rows[4:], 7, 8, 9], 3: [7, 8, 9]}
    for keep, same in cases.items():
        got = tokens_of(engine, [prompt], greedy(9, truncate_prompt_tokens=keep))
        assert got == tokens_of(make_engine(), [same], greedy(9))


def test_the_familiar_face(checkpoint: Folder) -> None:
    with LLM(checkpoint("llama"), num_blocks=40, dtype="float32") as llm:
        rows = rows_of(llm.engine, [5, 6, 7])

        def run(prompts: Any) -> list[list[int]]:
            outputs = llm.generate(prompts, greedy(6), progress=False)
            return [output.outputs[0].token_ids for output in outputs]

        [expected] = run([5, 6, 7])
        assert run(rows) == run([rows]) == run([[rows]]) == [expected]
        assert run([5, rows[1:]]) == run([[5, rows[1:]]]) == [expected], "with an id it is one"
        assert run([rows, rows]) == [expected] * 2
        assert run(["def", rows, [5, 6, 7]])[1:] == [expected] * 2
        with pytest.raises(RequestError, match="not a list of prompts"):
            llm.engine.generate(rows)


def test_other_dtypes_are_converted(make_engine: MakeEngine, checkpoint: Folder) -> None:
    engine = make_engine()
    wide = strange(9, 8).double()
    assert tokens_of(engine, [wide], greedy(5)) == tokens_of(engine, [wide.float()], greedy(5))
    half = make_engine(load_model(checkpoint("llama"), device="cpu", dtype="float16"))
    name = half.add(wide, greedy(3))
    embeds = half.requests[name].request.embeds
    assert embeds is not None
    assert embeds.rows.dtype is torch.float16
    half.run()
    with pytest.raises(RequestError, match="infinity, or does in the model's float16"):
        half.add(1e6 * torch.ones(2, HIDDEN))


GOOD = torch.zeros(2, HIDDEN)
BAD: dict[str, tuple[Any, str]] = {
    "ids as a tensor": (torch.tensor([1, 2, 3]), r"pass `ids.tolist\(\)`"),
    "one row": (torch.zeros(HIDDEN), r"\[tokens, 64\]"),
    "a batch": (torch.zeros(1, 3, HIDDEN), r"\[tokens, 64\]"),
    "no row": (torch.zeros(0, HIDDEN), r"\[tokens, 64\]"),
    "another width": (torch.zeros(3, HIDDEN + 1), r"float32 \[3, 65\] on cpu"),
    "complex": (torch.zeros(3, HIDDEN, dtype=torch.complex64), "not of floats"),
    "not a number": (torch.full((2, HIDDEN), torch.nan), "NaN or infinity"),
    "infinite": (torch.full((2, HIDDEN), -torch.inf), "NaN or infinity"),
    "nowhere": (torch.zeros(2, HIDDEN, device="meta"), "no numbers to copy"),
    "sparse": (torch.zeros(2, HIDDEN).to_sparse(), "no numbers to copy"),
    "one bad segment": ([5, GOOD, torch.zeros(3)], r"\[tokens, 64\]"),
    "a text inside": ([GOOD, "a"], "token 2 is not an int"),
    "a bad id after": ([GOOD, VOCAB], f"token 2 is outside the vocabulary of {VOCAB}"),
    "a list of rows": ([[0.0] * HIDDEN], "token 0 is not an int"),
    "too many": (torch.zeros(256, HIDDEN), "context is 256"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_embeddings(make_engine: MakeEngine, name: str) -> None:
    engine = make_engine()
    prompt, message = BAD[name]
    with pytest.raises(RequestError, match=message) as caught:
        engine.add(prompt)
    assert caught.value.field == "prompt"
    assert engine.requests == {}


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 2}], ids=str
)
def test_choices_that_go_by_the_prompts_ids(make_engine: MakeEngine, settings: Any) -> None:
    [field] = settings
    with pytest.raises(RequestError, match=f"{field}=.*embeddings have none"):
        make_engine().add([1, GOOD], greedy(3, **settings))


def test_where_embeddings_lie() -> None:
    embeds = PromptEmbeds(torch.zeros(4, 2), (1, 2, 5, 9))
    assert [embeds.covers(i) for i in (0, 1, 3, 5, 9, 10)] == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert embeds.within(2, 9) == slice(1, 3)
    assert embeds.within(10, 20) == slice(4, 4)
    shifted = PromptEmbeds(embeds.rows, (1, 2, 5, 8))
    changed = PromptEmbeds(torch.ones(4, 2), embeds.positions)
    other = PromptEmbeds(embeds.rows.bfloat16(), embeds.positions)
    same = PromptEmbeds(torch.zeros(2, 4).t(), embeds.positions)
    assert len({e.digest() for e in (embeds, shifted, changed, other)}) == 4
    assert same.digest() == embeds.digest()
