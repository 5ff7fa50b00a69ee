"""A user's mistake gets a typed error with field, value and fix, and harms nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive import Alone, MakeEngine, greedy, tokens_of
from tiny import CONTEXT, VOCAB, random_prompts

import workbench as wb
from workbench.config import EngineConfig
from workbench.errors import CheckpointError, ConfigError, InvalidValue, RequestError
from workbench.sampling_params import SamplingParams

PROMPTS = random_prompts(3, seed=100)
P = SamplingParams


# What is passed to `add`, the field that the error names, and what its message must say.
BAD_REQUESTS: dict[str, tuple[Callable[[wb.Engine], Any], str, str]] = {
    "empty text": (lambda e: e.add(""), "prompt", "is empty"),
    "no ids": (lambda e: e.add([]), "prompt", "is empty"),
    "half a character": (lambda e: e.add("a\ud800"), "prompt", "text that UTF-8 can hold"),
    "no prompt": (lambda e: e.add(None), "prompt", "is neither text nor a list of token ids"),
    "a number": (lambda e: e.add(5), "prompt", "is neither text nor a list of token ids"),
    "bytes": (lambda e: e.add(b"abc"), "prompt", "is neither text nor a list of token ids"),
    "a set": (lambda e: e.add({1, 2}), "prompt", "is neither text nor a list of token ids"),
    "id too large": (lambda e: e.add([1, VOCAB]), "prompt", f"vocabulary of {VOCAB}"),
    "id negative": (lambda e: e.add([-1]), "prompt", "token 0 is outside the vocabulary"),
    "id a float": (lambda e: e.add([1, 2.0]), "prompt", "token 1 is not an int"),
    "id a bool": (lambda e: e.add([True]), "prompt", "token 0 is not an int"),
    "id a text": (lambda e: e.add(["a"]), "prompt", "token 0 is not an int"),
    "beyond the context": (
        lambda e: e.add([1] * CONTEXT),
        "prompt",
        f"context is {CONTEXT} and one token must be left",
    ),
    "beyond the cache": (
        lambda e: e.add([1] * 100, greedy(100)),
        "prompt",
        "needs 13 blocks and the whole cache has 8 (128 tokens)",
    ),
    "one token beyond the cache": (lambda e: e.add([1] * 100, greedy(30)), "prompt", "needs 9"),
    "params a dict": (lambda e: e.add([1], {"max_tokens": 3}), "params", "is not a SamplingParams"),
    "params a class": (lambda e: e.add([1], SamplingParams), "params", "is not a SamplingParams"),
    "logprobs": (lambda e: e.add([1], P(logprobs=VOCAB + 1)), "logprobs", f"only {VOCAB} tokens"),
    "id taken": (lambda e: e.add([1], request_id="mine"), "request_id", "already in use"),
    "id no text": (lambda e: e.add([1], request_id=[7]), "request_id", "must be text"),
    "priority": (lambda e: e.add([1], priority="high"), "priority", "whole number"),
    "namespace": (lambda e: e.add([1], namespace=None), "namespace", "must be text"),
    "namespace no utf-8": (lambda e: e.add([1], namespace="\ud800"), "namespace", "must be text"),
    "stream twice": (lambda e: e.generate([[1]], [greedy(), greedy()]), "params", "for 1 prompts"),
    "params a tuple": (
        lambda e: e.generate([[1]], (greedy(),)),
        "params",
        "is not a SamplingParams",
    ),
    "one text as prompts": (lambda e: e.generate("text"), "prompts", "is not a list of prompts"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_refused(make_engine: MakeEngine, alone: Alone, case: str) -> None:
    act, field, message = BAD_REQUESTS[case]
    expected = alone(PROMPTS, greedy(10))
    engine = make_engine(num_blocks=8, max_batch_tokens=32)
    names = [engine.add(PROMPTS[0], greedy(10), request_id="mine")]
    engine.run(2)
    names.append(engine.add(PROMPTS[1], greedy(10)))
    before = (engine.scheduler.num_unfinished, engine.cache.blocks.num_free, set(engine.requests))
    for _ in range(2):  # the second try is told the same
        with pytest.raises(RequestError) as caught:
            act(engine)
        assert caught.value.field == field
        assert message in str(caught.value)
        assert caught.value.fix
        assert caught.value.fix in str(caught.value)
        assert "\n" not in str(caught.value)
    after = (engine.scheduler.num_unfinished, engine.cache.blocks.num_free, set(engine.requests))
    assert after == before, "something was queued or allocated"
    engine.run(1)
    names.append(engine.add(PROMPTS[2], greedy(10)))
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


def test_the_largest_that_fits_is_taken(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=8)
    outputs = engine.generate([[1] * 100, [1] * 128], [greedy(29), greedy(1)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [29, 1]


def test_a_prompt_that_may_not_be_split(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=16, chunked_prefill=False)
    with pytest.raises(RequestError, match=r"17 tokens.*chunked_prefill off.*Turn chunked_prefill"):
        engine.add([1] * 17)
    assert len(tokens_of(engine, [[1] * 16], greedy(3))[0]) == 3


BAD_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens=0: must be a whole number of at least 1"),
    "max_tokens negative": ({"max_tokens": -4}, "max_tokens=-4"),
    "max_tokens a float": ({"max_tokens": 4.0}, "max_tokens=4.0"),
    "max_tokens None": ({"max_tokens": None}, "max_tokens=None"),
    "max_tokens True": ({"max_tokens": True}, "max_tokens=True"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature=nan: must lie in [0, inf]"),
    "temperature negative": ({"temperature": -0.1}, "temperature=-0.1"),
    "temperature infinite": ({"temperature": float("inf")}, "temperature=inf"),
    "temperature a text": ({"temperature": "hot"}, "temperature='hot'"),
    "top_p 0": ({"top_p": 0.0}, "top_p=0.0: must lie in (0, 1]"),
    "top_p above 1": ({"top_p": 1.01}, "top_p=1.01"),
    "top_p NaN": ({"top_p": float("nan")}, "top_p=nan"),
    "top_k 0": ({"top_k": 0}, "top_k=0"),
    "top_k negative": ({"top_k": -1}, "top_k=-1"),
    "min_p above 1": ({"min_p": 1.5}, "min_p=1.5"),
    "min_p negative": ({"min_p": -0.5}, "min_p=-0.5"),
    "seed negative": ({"seed": -1}, "seed=-1"),
    "seed a text": ({"seed": "a"}, "seed='a'"),
    "logprobs negative": ({"logprobs": -1}, "logprobs=-1"),
    "stop empty": ({"stop": ["a", ""]}, "stop=('a', ''): an empty string would stop at once"),
    "stop an int": ({"stop": 3}, "stop=3"),
    "stop ids text": ({"stop_token_ids": ["a"]}, "stop_token_ids=['a']"),
    "a near keyword": ({"temprature": 0}, "temprature=0: no such setting. Did you mean `temp"),
    "a far keyword": ({"zzz": 0}, "zzz=0: no such setting. Known: max_tokens"),
}


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_bad_parameters(case: str) -> None:
    settings, message = BAD_PARAMS[case]
    with pytest.raises(RequestError) as caught:
        SamplingParams(**settings)
    assert message in str(caught.value)
    assert caught.value.fix


def test_one_bad_prompt_keeps_the_whole_batch_out(make_engine: MakeEngine) -> None:
    engine = make_engine()
    running = engine.add(PROMPTS[0], greedy(10))
    engine.run(2)
    for position in range(3):
        prompts: list[list[int]] = [[1], [2], [3]]
        prompts[position] = []
        with pytest.raises(RequestError, match="is empty"):
            engine.generate(prompts, greedy(4))
        assert list(engine.requests) == [running]
        assert engine.scheduler.num_unfinished == 1
    engine.run()
    assert len(engine.output(running).outputs[0].token_ids) == 10


def test_a_name_that_a_user_took_is_not_given_again(make_engine: MakeEngine) -> None:
    engine = make_engine()
    taken = [engine.add([1], greedy(2), request_id=name) for name in ("r1", "r2", "r4")]
    given = [engine.add([2], greedy(2)) for _ in range(4)]
    assert len({*taken, *given}) == 7
    engine.run()


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown keyword": ({"max_sequence": 4}, "LLM.max_sequence=4: no such setting. Did you"),
    "an unknown policy": ({"policy": "fairest"}, "policy='fairest': no such policy. Known: fcfs"),
    "an unknown backend": ({"backend": "fast"}, "backend='fast': no such backend. Known: auto"),
    "an unknown device": ({"device": "abacus"}, "device='abacus'"),
    "an unknown dtype": ({"dtype": "float7"}, "dtype='float7'"),
    "no blocks": ({"num_blocks": 0}, "num_blocks=0: must be a whole number of at least 1"),
    "blocks negative": ({"num_blocks": -1}, "num_blocks=-1"),
    "blocks a float": ({"num_blocks": 4.0}, "num_blocks=4.0"),
    "block size 0": ({"block_size": 0}, "block_size=0: must be a whole number of at least 1"),
    "no sequences": ({"max_sequences": 0}, "max_sequences=0: must be a whole number"),
    "no tokens": ({"max_batch_tokens": 0}, "max_batch_tokens=0: must be a whole number"),
    "budget below sequences": (
        {"max_sequences": 9, "max_batch_tokens": 8},
        "max_sequences=9: more than max_batch_tokens=8",
    ),
    "seed a text": ({"seed": "a"}, "seed='a': must be a whole number"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(
    checkpoint: Callable[[str], Path], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, message = BAD_SETTINGS[case]

    def allocate(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the cache was allocated")

    monkeypatch.setattr("torch.zeros", allocate)
    with pytest.raises(ConfigError) as caught:
        wb.LLM(checkpoint("llama"), **settings)
    assert message in str(caught.value)
    assert caught.value.fix
    assert isinstance(caught.value, InvalidValue)


def test_a_settings_keyword_by_hand() -> None:
    with pytest.raises(ConfigError, match="Did you mean `num_blocks`"):
        EngineConfig(num_block=4)
    with pytest.raises(ConfigError, match="Did you mean `policy`"):
        wb.SchedulerConfig(polices="fcfs")


def test_bad_models(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"model='.*nowhere'.*Give a checkpoint folder"):
        wb.LLM(tmp_path / "nowhere")
    folder = tmp_path / "truncated"
    folder.mkdir()
    for path in checkpoint("llama").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors \(\d+ bytes\) is damaged"):
        wb.LLM(folder)
    config = json.loads((folder / "config.json").read_text())
    for changes, error, message in (
        ({"architectures": ["ParrotForCausalLM"]}, ConfigError, "ParrotForCausalLM"),
        ({"intermediate_size": 100}, CheckpointError, r"mlp\.\w+_proj\.weight"),
    ):
        weights.write_bytes((checkpoint("llama") / weights.name).read_bytes())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(error, match=message):
            wb.LLM(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        wb.LLM(folder)


def test_bad_prompts_of_the_familiar_face(checkpoint: Callable[[str], Path]) -> None:
    with wb.LLM(checkpoint("llama"), device="cpu", num_blocks=64) as llm:
        for prompts in ([], "", [""], [[]], None, 5, [["a"]], ["text", None]):
            with pytest.raises(RequestError):
                llm.generate(prompts, greedy(2), progress=False)
            assert llm.engine.requests == {}
        assert len(llm.generate([5, 6], greedy(2), progress=False)) == 1
        assert len(llm.generate(([5, 6], "a b"), greedy(2), progress=False)) == 2


def test_parts_that_do_not_belong_together(
    make_engine: MakeEngine, model_of: Callable[..., wb.DecoderLM]
) -> None:
    one, two = make_engine(), make_engine()
    model, sampler = one.model, one.sampler
    with pytest.raises(ConfigError, match=r"scheduler=.*made for another cache"):
        wb.Engine(model, one.cache, two.scheduler, one.runner, sampler)
    with pytest.raises(ConfigError, match=r"runner=.*made for another cache"):
        wb.Engine(model, one.cache, one.scheduler, two.runner, sampler)
    with pytest.raises(ConfigError, match=r"runner=.*made for another model"):
        wb.Engine(model_of("qwen2"), one.cache, one.scheduler, one.runner, sampler)
    wider = wb.KVCache(num_layers=5, num_kv_heads=2, head_dim=16, num_blocks=4)
    with pytest.raises(ConfigError, match=r"the model needs \(2, None, 2, 16\)"):
        wb.Runner(model, wider)
    assert tokens_of(one, [PROMPTS[0]], greedy(3)) == tokens_of(two, [PROMPTS[0]], greedy(3))
