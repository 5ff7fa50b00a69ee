"""When a request ends, why, and what is left in its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from drive import MakeEngine, greedy
from tiny import CONTEXT, EOS, TEXTS, random_prompts, with_eos

from workbench.models import load_model
from workbench.request import CompletionOutput
from workbench.sampling_params import SamplingParams

PROMPT = random_prompts(4, seed=72)[1]


def complete(make_engine: MakeEngine, params: SamplingParams) -> CompletionOutput:
    return make_engine().generate([PROMPT], params)[0].outputs[0]


@pytest.mark.parametrize("max_tokens", [1, 2, 15, 16, 17, 33])
def test_max_tokens_is_exact(make_engine: MakeEngine, max_tokens: int) -> None:
    got = complete(make_engine, greedy(max_tokens))
    assert len(got.token_ids) == max_tokens
    assert (got.finish_reason, got.stop_reason) == ("length", None)


@pytest.mark.parametrize("num_prompt", [CONTEXT - 1, CONTEXT - 2, CONTEXT - 20])
def test_the_context_is_the_limit(make_engine: MakeEngine, num_prompt: int) -> None:
    prompt = [1 + i % 300 for i in range(num_prompt)]
    output = make_engine(num_blocks=CONTEXT // 16).generate([prompt], greedy(10_000))[0].outputs[0]
    assert len(output.token_ids) == CONTEXT - num_prompt
    assert output.finish_reason == "length"


def test_a_stop_id_ends_and_stays(make_engine: MakeEngine) -> None:
    free = complete(make_engine, greedy(30)).token_ids
    stop = free[12]
    got = complete(make_engine, greedy(30, stop_token_ids=[stop, 319]))
    assert got.token_ids == free[: free.index(stop) + 1]
    assert (got.finish_reason, got.stop_reason) == ("stop", stop)


def test_ignore_eos(
    make_engine: MakeEngine, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    free = complete(make_engine, greedy(30))
    eos = free.token_ids[9]
    model = load_model(
        with_eos(checkpoint("llama"), tmp_path / "m", eos), device="cpu", dtype="float32"
    )
    engine = make_engine(model)
    heeding = SamplingParams(max_tokens=30, temperature=0)
    ended, ignored = engine.generate([PROMPT] * 2, [heeding, greedy(30)])
    assert ended.outputs[0].token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
    assert (ended.outputs[0].finish_reason, ended.outputs[0].stop_reason) == ("stop", eos)
    assert ignored.outputs[0].token_ids == free.token_ids
    assert ignored.outputs[0].finish_reason == "length"
    assert EOS not in free.token_ids


def windows(make_engine: MakeEngine) -> tuple[str, list[tuple[str, int]]]:
    """Return a text, and stop strings in it that begin within a token and end within another."""
    engine = make_engine()
    assert engine.tokenizer is not None
    output = engine.generate([PROMPT], greedy(60))[0].outputs[0]
    text, pieces = output.text, [engine.tokenizer.decode([i]) for i in output.token_ids]
    assert any(len(piece) > 2 for piece in pieces), "no merged tokens in the output"
    found = []
    for length in (1, 2, 3, 5, 8):
        for start in range(0, len(text) - length, 6):
            stop = text[start : start + length]
            if "\ufffd" not in stop:
                found.append((stop, text.index(stop)))
    return text, found


def test_stop_strings_that_span_tokens(make_engine: MakeEngine) -> None:
    text, stops = windows(make_engine)
    assert len(stops) > 10
    engine = make_engine(max_sequences=64)
    for include in (False, True):
        params = [greedy(60, stop=stop, include_stop_str=include) for stop, _ in stops]
        outputs = engine.generate([PROMPT] * len(stops), params)
        for (stop, at), output in zip(stops, outputs, strict=True):
            got = output.outputs[0]
            assert got.text == text[: at + (len(stop) if include else 0)], stop
            assert (got.finish_reason, got.stop_reason) == ("stop", stop)
            assert len(got.token_ids) <= 60


def test_the_stop_string_that_is_complete_first_wins(make_engine: MakeEngine) -> None:
    text, stops = windows(make_engine)
    late, early = stops[-1][0], text[3:6]
    got = complete(make_engine, greedy(60, stop=[late, "never", early]))
    assert got.stop_reason == early
    assert got.text == text[: text.index(early)]


def test_a_stop_string_in_the_prompt_does_not_count(make_engine: MakeEngine) -> None:
    got = make_engine().generate([TEXTS[0]], greedy(8, stop="fibonacci(n)"))[0].outputs[0]
    assert len(got.token_ids) == 8


def test_a_stop_string_that_never_comes_changes_no_text(make_engine: MakeEngine) -> None:
    prompts = random_prompts(12, seed=73)
    for count in (1, 2, 3, 20):
        plain = make_engine().generate(prompts, greedy(count))
        watched = make_engine().generate(prompts, greedy(count, stop="\x00never\x00"))
        assert [o.outputs[0].text for o in plain] == [o.outputs[0].text for o in watched]


def test_stop_strings_need_a_tokenizer(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine.model, "tokenizer", None)
    assert engine.generate([PROMPT], greedy(5))[0].outputs[0].text == ""
    with pytest.raises(ValueError, match="no tokenizer"):
        engine.add(PROMPT, greedy(5, stop="x"))
    with pytest.raises(ValueError, match="no tokenizer"):
        engine.add("text", greedy(5))
