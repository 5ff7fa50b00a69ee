"""Streamed texts only ever grow, and add up to the final one."""

from __future__ import annotations

import pytest
from drive import MakeEngine, greedy, tokens_of
from tiny import TEXTS, random_prompts

from workbench.engine import Engine


def deltas(engine: Engine, name: str) -> list[str]:
    """Stream a request and return what each output adds; fail where text is taken back."""
    pieces, shown = [], ""
    for output in engine.stream(name):
        text = output.outputs[0].text
        assert text.startswith(shown), (shown, text)
        pieces.append(text[len(shown) :])
        shown = text
    return pieces


@pytest.mark.parametrize("seed", range(4))
def test_deltas_add_up(make_engine: MakeEngine, seed: int) -> None:
    engine = make_engine()
    for prompt in [*random_prompts(3, seed=seed), TEXTS[3]]:
        pieces = deltas(engine, engine.add(prompt, greedy(40)))
        final = engine.generate([prompt], greedy(40))[0].outputs[0].text
        assert "".join(pieces) == final
        assert len([piece for piece in pieces if piece]) > 5


def test_what_may_belong_to_a_stop_string_is_held_back(make_engine: MakeEngine) -> None:
    prompt = random_prompts(4, seed=72)[1]
    engine = make_engine()
    text = engine.generate([prompt], greedy(60))[0].outputs[0].text
    for start in range(4, len(text) - 8, 5):
        stop = text[start : start + 8]
        for include in (False, True):
            name = engine.add(prompt, greedy(60, stop=[stop, "never"], include_stop_str=include))
            pieces = deltas(engine, name)
            assert "".join(pieces) == engine.output(name).outputs[0].text


def test_no_half_character_is_shown(make_engine: MakeEngine) -> None:
    """Force the model to say a text whose characters are spread over several tokens."""
    engine = make_engine()
    assert engine.tokenizer is not None
    said = "naïve – 🙂🙃 日本 ok"
    ids = engine.tokenizer.encode(said)
    assert len(ids) > len(said)
    engine.swap(sampler=lambda logits, sequences: _say(ids, sequences))
    for stop in ((), ("never",)):
        shown = []
        name = engine.add([5], greedy(len(ids), stop=stop))
        for output in engine.stream(name):
            shown.append(output.outputs[0].text)
            assert "\ufffd" not in shown[-1]
            assert said.startswith(shown[-1])
        assert shown[-1] == said
        assert len(shown) == len(ids), "an output for every token"


def _say(ids, sequences):
    from workbench.results import SampledTokens

    return SampledTokens([ids[sequence.num_output_tokens] for sequence in sequences])


def test_a_stream_runs_the_others_too(make_engine: MakeEngine) -> None:
    prompts = random_prompts(3, seed=75)
    expected = tokens_of(make_engine(), prompts, greedy(12))
    engine = make_engine()
    names = [engine.add(prompt, greedy(12)) for prompt in prompts]
    counts = [len(output.outputs[0].token_ids) for output in engine.stream(names[1])]
    assert counts == list(range(1, 13))
    assert list(engine.stream(names[1])) == [], "it has ended"
    engine.run()
    assert [engine.output(name).outputs[0].token_ids for name in names] == expected


def test_an_abandoned_stream_leaves_the_request_queued(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add([1, 2, 3], greedy(9))
    for output in engine.stream(name):
        assert len(output.outputs[0].token_ids) == 1
        break
    assert engine.has_work
    assert [len(o.outputs[0].token_ids) for o in engine.stream(name)] == list(range(2, 10))


def test_a_stream_ends_when_its_request_is_aborted(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.add([1, 2, 3], greedy(50))
    stream = engine.stream(name)
    next(stream)
    next(stream)
    engine.abort(name)
    assert list(stream) == []
    assert engine.output(name).outputs[0].finish_reason == "abort"
