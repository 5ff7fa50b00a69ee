"""What one tries first with an engine and its parts works, or says what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import MakeEngine, drawn, greedy
from tiny import TEXTS

import workbench as wb
from workbench.errors import ConfigError, EngineClosed, RequestError, UnknownRequest
from workbench.ops import get_backend
from workbench.ops.sdpa import SDPABackend

P = wb.SamplingParams


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> Iterator[wb.LLM]:
    """An LLM over a tiny random model."""
    with wb.LLM(checkpoint("llama"), num_blocks=64, dtype="float32") as made:
        yield made


# --- streams ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        greedy(20),
        greedy(8, echo=True, logprobs=1),
        drawn(3, 12, n=2),
        P(max_tokens=6, beam_width=2, n=2),
        drawn(3, 6, n=1, best_of=2),
    ],
)
def test_a_stream_adds_up_to_what_generate_returns(llm: wb.LLM, params: P) -> None:
    (whole,) = llm.generate(TEXTS[0], params, progress=False)
    deltas = list(llm.stream(TEXTS[0], params))
    for output in whole.outputs:
        own = [delta for delta in deltas if delta.index == output.index]
        assert "".join(delta.text for delta in own) == output.text
        assert [token for delta in own for token in delta.token_ids] == output.token_ids
        assert [delta.finish_reason for delta in own if delta.finish_reason] == ["length"]
    assert deltas[-1].output is not None
    assert deltas[-1].output.outputs == whole.outputs
    assert llm.engine.requests == {}


def test_a_stream_comes_in_pieces_and_leaving_it_aborts(llm: wb.LLM) -> None:
    stream = llm.stream(TEXTS[0], greedy(30))
    assert llm.engine.requests == {}, "nothing is queued before it is asked for"
    first, second = next(stream), next(stream)
    assert (len(first.token_ids), len(second.token_ids)) == (1, 1)
    assert len(llm.engine.requests) == 1
    stream.close()  # type: ignore[attr-defined]
    assert llm.engine.requests == {}
    assert llm.engine.cache.blocks.num_used == 0


def test_a_stream_of_a_bad_prompt_raises(llm: wb.LLM) -> None:
    with pytest.raises(RequestError, match="is empty"):
        next(llm.stream(""))


# --- what goes wrong in one request ----------------------------------------------------------


def test_a_request_that_failed_is_warned_of(llm: wb.LLM) -> None:
    def bad(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        raise KeyError("oops")

    both = [greedy(2), greedy(2, logits_processors=[bad])]
    with pytest.warns(UserWarning, match=r"1 of 2 requests ended with an error.*KeyError: 'oops'"):
        fine, failed = llm.generate(TEXTS[:2], both, progress=False)
    assert (fine.outputs[0].error, failed.outputs[0].finish_reason) == (None, "error")


@pytest.mark.parametrize("prompts", [{"prompt": "a"}, {"a", "b"}, 5])
def test_what_is_no_list_of_prompts_is_refused(llm: wb.LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match="is not a list of prompts"):
        llm.generate(prompts, progress=False)


def test_texts_within_a_prompt_are_told_where_to_go(llm: wb.LLM) -> None:
    with pytest.raises(RequestError, match="several texts go to `generate`"):
        llm.engine.add(["a", "b"])  # type: ignore[list-item]


def test_after_close_everything_says_so(checkpoint: Callable[[str], Path]) -> None:
    llm = wb.LLM(checkpoint("llama"), num_blocks=8)
    llm.close()
    for use in (lambda: llm.tokenizer, lambda: llm.generate("x"), lambda: next(llm.stream("x"))):
        with pytest.raises(EngineClosed):
            use()
    assert repr(llm.loras) == "LoRAManager(closed=True)"


# --- speculation is swapped as it is chosen --------------------------------------------------


def test_a_proposer_is_swapped_by_name_and_none_ends_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.swap(proposer="ngram")
    assert engine.speculator.describe()["proposer"] == "ngram"
    engine.swap(speculation=wb.speculation.SpeculationConfig(max_depth=2))
    assert engine.speculator.describe()["proposer"] == "ngram", "what is left out stays"
    engine.swap(proposer=None)
    assert engine.speculator.proposer is None
    with pytest.raises(ConfigError, match="ngram, suffix, lookahead"):
        engine.swap(proposer="ngrams")


# --- parts -----------------------------------------------------------------------------------


class Counting(SDPABackend):
    """A backend of a user's own."""

    name = "counting"
    calls = 0

    def attention(self, *args: Any, **settings: Any) -> torch.Tensor:
        self.calls += 1
        return super().attention(*args, **settings)


def test_a_backend_of_ones_own_is_swapped_in(llm: wb.LLM) -> None:
    (before,) = llm.generate(TEXTS[0], greedy(5), progress=False)
    mine, old = Counting(torch.device("cpu")), llm.engine.runner.backend
    llm.engine.swap(backend=mine)
    (after,) = llm.generate(TEXTS[0], greedy(5), progress=False)
    llm.engine.swap(backend=old)
    assert mine.calls > 0
    assert after.outputs[0].token_ids == before.outputs[0].token_ids
    with pytest.raises(ConfigError, match="no such backend"):
        llm.engine.swap(backend=object())  # type: ignore[arg-type]


def test_wrong_parts_are_named(llm: wb.LLM) -> None:
    model, cache = llm.engine.model, llm.engine.cache
    cases: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: wb.build("tinypy"), "config", "LLM"),  # type: ignore[arg-type]
        (lambda: wb.build(model="tinypy"), "model", "load_model"),  # type: ignore[arg-type]
        (lambda: wb.AsyncEngine(llm), "engine", "engine"),  # type: ignore[arg-type]
        (lambda: wb.KVCache.for_model("tinypy"), "model", "load_model"),  # type: ignore[arg-type]
        (lambda: wb.KVCache.for_model(model, num_block=3), "num_block", "num_blocks"),  # type: ignore[call-arg]
        (lambda: wb.plan_memory("tinypy", llm.config), "model", "load_model"),  # type: ignore[arg-type]
        (lambda: wb.Scheduler(model), "cache", "KVCache"),  # type: ignore[arg-type]
        (lambda: wb.Scheduler(cache, {}), "config", "SchedulerConfig"),  # type: ignore[arg-type]
        (lambda: wb.Scheduler(cache).add("x"), "sequence", "engine.add"),  # type: ignore[arg-type]
        (lambda: llm.engine.swap(polcy="fcfs"), "polcy", "policy"),  # type: ignore[call-arg]
        (lambda: llm.engine.run(max_steps=-1), "max_steps", "at least 1"),
    ]
    for call, field, fix in cases:
        with pytest.raises(ConfigError) as raised:
            call()
        assert raised.value.field.endswith(field)
        assert fix in str(raised.value)


def test_a_sampler_is_tried_on_parameters_alone() -> None:
    sampler = wb.Sampler()
    logits = torch.tensor([[0.0, 5.0, 1.0], [0.0, 5.0, 1.0]])
    sampled = sampler(
        logits, [P(temperature=0), P(logit_bias={1: -9.0}, temperature=0, logprobs=2)]
    )
    assert sampled.token_ids == [1, 2]
    assert sampled.logprobs is not None
    seeded = [sampler(logits[:1], [P(seed=7, temperature=5)]).token_ids for _ in range(3)]
    assert seeded[0] == seeded[1] == seeded[2]
    for wrong, match in (([P()], "one for each row"), ([5, 6], "not a SamplingParams")):
        with pytest.raises(RequestError, match=match):
            sampler(logits, wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="needs an engine"):
        sampler(logits[:1], [P(beam_width=2)])


def test_blocks_are_driven_by_hand() -> None:
    blocks = wb.BlockManager(num_blocks=16, block_size=4)
    blocks.open(0)
    blocks.grow(0, 0, 10)
    assert blocks.num_used == 3
    with pytest.raises(KeyError, match=r"sequence_id=7: has no block table.*Open: 0"):
        blocks.grow(7, 0, 4)
    blocks.free(0)
    with pytest.raises(KeyError, match="Open: none"):
        blocks.free(0)
    blocks.check()


def test_what_cannot_listen_is_not_subscribed() -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        wb.EventBus().subscribe(5)  # type: ignore[arg-type]


def test_get_backend_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match="reference, sdpa, native"):
        get_backend("sdap")


# --- conversations ---------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer:"


def test_a_conversation_is_the_prompt_that_the_template_makes(
    llm: wb.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llm.tokenizer is not None
    talk = [{"role": "user", "content": "hi"}]
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat(talk, progress=False)
    monkeypatch.setattr(llm.tokenizer.hf, "chat_template", TEMPLATE)
    (one,) = llm.chat(talk, greedy(4), progress=False)
    assert llm.tokenizer.decode(one.prompt_token_ids) == "user: hi\nanswer:"
    both = llm.chat([talk, talk * 2], greedy(4), progress=False)
    assert both[0].outputs == one.outputs
    assert len(both[1].prompt_token_ids) > len(one.prompt_token_ids)
    for wrong in ("hi", [], 5):
        with pytest.raises(RequestError, match="is no list of messages"):
            llm.chat(wrong)  # type: ignore[arg-type]


# --- time ------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_model_is_refused(
    llm: wb.LLM, checkpoint: Callable[[str], Path]
) -> None:
    state = llm.engine.checkpoint()
    llm.engine.restore(state)
    with (
        wb.LLM(checkpoint("mixtral"), num_blocks=8) as other,
        pytest.raises(RequestError, match="is of another model"),
    ):
        other.engine.restore(state)


def test_what_cannot_be_an_id_is_an_unknown_request(llm: wb.LLM) -> None:
    for wrong in (["r0"], 5, None):
        with pytest.raises(UnknownRequest, match="not a request of this engine"):
            llm.engine.abort(wrong)  # type: ignore[arg-type]
