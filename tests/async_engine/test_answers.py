"""What comes out is what `engine.generate` gives, whole or in deltas, in a task or a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from drive import drawn, greedy
from tiny import TEXTS, random_prompts

from workbench.async_engine import StreamDelta
from workbench.errors import RequestError
from workbench.request import RequestOutput, TokenLogprobs
from workbench.sampling_params import SamplingParams

PROMPTS: list[Any] = [*random_prompts(5, seed=210), TEXTS[0], TEXTS[3]]
PARAMS = [greedy(30), drawn(1, 24), greedy(1), drawn(2, 30, logprobs=2), greedy(9), greedy(20)]
PARAMS += [greedy(30, logprobs=0)]


def require_same(output: RequestOutput, expected: RequestOutput) -> None:
    assert output.finished
    assert output.prompt == expected.prompt
    assert output.prompt_token_ids == expected.prompt_token_ids
    for completion, other in zip(output.outputs, expected.outputs, strict=True):
        assert replace(completion, logprobs=None) == replace(other, logprobs=None)
        require_close(completion.logprobs, other.logprobs)


def require_close(some: list[TokenLogprobs] | None, others: list[TokenLogprobs] | None) -> None:
    """Log-probabilities of one batch and another differ in their last digits."""
    assert (some is None) == (others is None)
    for one, other in zip(some or (), others or (), strict=True):
        assert one.token_id == other.token_id
        assert len(one.top) == len(other.top)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def require_adds_up(deltas: Iterable[StreamDelta], expected: RequestOutput) -> None:
    """Deltas of each output join to the whole of it, its end comes last, and all is there."""
    deltas = list(deltas)
    assert deltas[-1].output is not None
    require_same(deltas[-1].output, expected)
    for completion in deltas[-1].output.outputs:
        own = [delta for delta in deltas if delta.index == completion.index]
        assert "".join(delta.text for delta in own) == completion.text
        assert [t for delta in own for t in delta.token_ids] == completion.token_ids
        assert [delta.finish_reason for delta in own if delta.finish_reason] == [
            completion.finish_reason
        ]
        if completion.logprobs is None:
            assert all(delta.logprobs is None for delta in own)
        else:
            assert [e for delta in own for e in delta.logprobs or ()] == completion.logprobs
    assert [delta.output is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert {delta.request_id for delta in deltas} == {deltas[-1].output.request_id}


async def collect(stream: Any) -> list[StreamDelta]:
    return [delta async for delta in stream]


def test_streams_equal_generate(serve, make_engine) -> None:
    expected = make_engine().generate(PROMPTS, PARAMS)
    aengine = serve()

    async def main() -> list[list[StreamDelta]]:
        streams = [aengine.stream(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
        return await asyncio.gather(*map(collect, streams))

    for deltas, whole in zip(asyncio.run(main()), expected, strict=True):
        require_adds_up(deltas, whole)


def test_replies_equal_generate_in_tasks_and_threads(serve, make_engine) -> None:
    expected = make_engine().generate(PROMPTS, PARAMS)
    aengine = serve()

    async def main() -> list[RequestOutput]:
        pairs = zip(PROMPTS, PARAMS, strict=True)
        return await asyncio.gather(*(aengine.generate(p, own) for p, own in pairs))

    for got in (
        asyncio.run(main()),
        [aengine.generate(p, own).result(60) for p, own in zip(PROMPTS, PARAMS, strict=True)],
    ):
        for output, whole in zip(got, expected, strict=True):
            require_same(output, whole)


def test_a_thread_iterates_and_finds_the_output_at_the_end(serve, make_engine) -> None:
    expected = make_engine().generate(PROMPTS, PARAMS)
    aengine = serve()
    for prompt, own, whole in zip(PROMPTS, PARAMS, expected, strict=True):
        with aengine.stream(prompt, own) as stream:
            require_adds_up(stream, whole)
        assert stream.output is not None
        require_same(stream.output, whole)
        assert list(stream) == [], "it has ended"


def test_a_slow_reader_gets_everything_in_few_deltas(serve, make_engine) -> None:
    (expected,) = make_engine().generate([PROMPTS[0]], drawn(3, 60, logprobs=1))
    aengine = serve()
    stream = aengine.stream(PROMPTS[0], drawn(3, 60, logprobs=1))
    first = next(stream)
    aengine.drain().result(60)  # everything is made while nobody reads
    rest = list(stream)
    require_adds_up([first, *rest], expected)
    assert len(rest) <= 2


@pytest.mark.parametrize("settings", [{"n": 3}, {"n": 2, "best_of": 4}, {"n": 2, "logprobs": 1}])
def test_several_outputs_per_request(serve, make_engine, settings: dict[str, Any]) -> None:
    params = drawn(11, 20, **settings)
    (expected,) = make_engine().generate([PROMPTS[1]], params)
    aengine = serve()
    deltas = asyncio.run(collect_of(aengine, PROMPTS[1], params))
    require_adds_up(deltas, expected)
    assert {delta.index for delta in deltas} == set(range(settings["n"]))
    if settings.get("best_of"):
        assert len(deltas) == 2, "they are ranked at the end, so nothing is said before"


async def collect_of(aengine: Any, *arguments: Any, **options: Any) -> list[StreamDelta]:
    return await collect(aengine.stream(*arguments, **options))


def test_beams_come_at_the_end(serve, make_engine) -> None:
    params = SamplingParams(max_tokens=12, beam_width=3, n=2, temperature=0, ignore_eos=True)
    (expected,) = make_engine().generate([PROMPTS[1]], params)
    deltas = list(serve().stream(PROMPTS[1], params))
    require_adds_up(deltas, expected)
    assert len(deltas) == 2


def test_text_that_a_stop_string_may_take_back_is_held(serve, make_engine) -> None:
    engine = make_engine()
    (whole,) = engine.generate([PROMPTS[2]], greedy(60))
    text = whole.outputs[0].text
    aengine = serve()
    for start in range(4, len(text) - 8, 9):
        for include in (False, True):
            stop = [text[start : start + 8], "never"]
            params = greedy(60, stop=stop, include_stop_str=include)
            (expected,) = engine.generate([PROMPTS[2]], params)
            require_adds_up(aengine.stream(PROMPTS[2], params), expected)


def test_echo_begins_with_the_prompt(serve, make_engine) -> None:
    soft = make_engine().model.embedding(torch.tensor([5, 6, 7])).detach()
    for prompt in (TEXTS[1], PROMPTS[0], [8, soft, 9]):
        (expected,) = make_engine().generate([prompt], greedy(8, echo=True))
        deltas = list(serve().stream(prompt, greedy(8, echo=True)))
        require_adds_up(deltas, expected)


def test_no_half_character(serve, make_engine) -> None:
    """Make the model say a text whose characters are spread over several tokens."""
    from workbench.results import SampledTokens

    engine = make_engine()
    said = "naïve – 🙂🙃 日本 ok"
    ids = engine.tokenizer.encode(said)
    assert len(ids) > len(said)
    engine.swap(sampler=lambda _, rows: SampledTokens([ids[s.num_output_tokens] for s in rows]))
    deltas = list(serve(engine).stream([5], greedy(len(ids))))
    assert "".join(delta.text for delta in deltas) == said
    assert all("\ufffd" not in delta.text for delta in deltas)
    assert sum(len(delta.token_ids) for delta in deltas) == len(ids)


def test_bad_requests_reach_who_made_them_and_nobody_else(serve) -> None:
    aengine = serve()
    good = aengine.generate(PROMPTS[0], greedy(20))
    with pytest.raises(RequestError, match="is empty"):
        next(aengine.stream(""))
    with pytest.raises(RequestError, match="outside the vocabulary"):
        aengine.generate([1, 10**6]).result(60)
    with pytest.raises(RequestError, match="timeout=-1"):
        asyncio.run(collect_of(aengine, [1], greedy(3), timeout=-1))
    aengine.pause().result(60)
    taken = aengine.stream([1, 2], greedy(30), request_id="mine")
    with pytest.raises(RequestError, match="already in use"):
        aengine.generate([1, 2], request_id="mine").result(60)
    aengine.resume()
    assert next(taken).request_id == "mine" == taken.request_id
    taken.close()
    assert good.result(60).outputs[0].finish_reason == "length"


def test_many_loops_and_threads_share_one_engine(serve, make_engine) -> None:
    expected = make_engine().generate(PROMPTS, PARAMS)
    aengine, got, errors = serve(), {}, []

    def run_loop(number: int) -> None:
        async def main() -> None:
            streams = [aengine.stream(p, own) for p, own in zip(PROMPTS, PARAMS, strict=True)]
            got[number] = await asyncio.gather(*map(collect, streams))

        try:
            asyncio.run(main())
        except BaseException as error:
            errors.append(error)
            raise

    def run_plain(number: int) -> None:
        pairs = zip(PROMPTS, PARAMS, strict=True)
        got[number] = [list(aengine.stream(p, own)) for p, own in pairs]

    targets = [run_loop, run_loop, run_plain, run_plain]
    threads = [threading.Thread(target=t, args=(i,)) for i, t in enumerate(targets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert errors == []
    assert len(got) == 4
    for lists in got.values():
        for deltas, whole in zip(lists, expected, strict=True):
            require_adds_up(deltas, whole)


def test_two_readers_of_one_stream_are_told(serve) -> None:
    aengine = serve()

    async def main() -> None:
        await aengine.pause()
        stream = aengine.stream(PROMPTS[0], greedy(9))
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being read"):
            await anext(stream)
        await aengine.resume()
        assert (await first).token_ids
        stream.close()

    asyncio.run(main())
