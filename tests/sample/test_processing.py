"""What changes logits before a choice: each setting by its definition, together, and in company."""

from __future__ import annotations

import math
import random
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import chi_square_p, law, processed, sequence
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from workbench.request import Sequence
from workbench.sample import Processing, Sampler

VOCAB = 9
EACH: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "encouraged": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.75},
    "rewards": {"presence_penalty": -1.0, "frequency_penalty": -0.5},
    "bias": {"logit_bias": {3: 2.5, 0: -1.0, 7: -math.inf}},
    "bad words": {"bad_words": [[6], [4, 2], [1, 4, 8], [5, 5]]},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "min tokens": {"min_tokens": 10, "stop_token_ids": (0, 4)},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {2: 1.0},
        "bad_words": [[6], [1, 4, 8]],
        "no_repeat_ngram_size": 3,
        "min_tokens": 10,
    },
}
TOKENS = st.integers(0, VOCAB - 1)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.25, 2.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 0.5]),
        "frequency_penalty": st.sampled_from([-0.25, 0.0, 0.75]),
        "logit_bias": st.dictionaries(TOKENS, st.sampled_from([-math.inf, -2.0, 0.5]), max_size=3),
        "bad_words": st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=4),
        "no_repeat_ngram_size": st.integers(1, 4),
        "min_tokens": st.integers(0, 12),
    },
)


def process(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Return what a fresh `Processing` makes of a batch."""
    processing = Processing()
    processing.arrange(sequences, logits.shape[1], logits.device)
    result, errors = processing(logits, sequences)
    assert errors == {}
    return result


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-12, 12).map(lambda i: i / 4), min_size=VOCAB, max_size=VOCAB),
    st.lists(TOKENS, min_size=1, max_size=12),
    st.lists(TOKENS, max_size=12),
    PARAMS,
)
def test_logits_equal_the_definition(
    row: list[float], prompt: list[int], output: list[int], params: dict[str, Any]
) -> None:
    running = sequence(prompt=prompt, output=output, stop_ids=(0, 4), **params)
    found = process(torch.tensor([row]), [running])[0]
    assert found.tolist() == pytest.approx(processed(row, running), abs=1e-6)


@pytest.mark.parametrize("params", EACH.values(), ids=EACH)
@pytest.mark.parametrize("drawing", [{}, {"temperature": 0.7, "top_k": 5, "min_p": 0.05}], ids=str)
def test_draws_follow_the_law(params: dict[str, Any], drawing: dict[str, Any]) -> None:
    row = [1.0, -0.5, 2.25, 0.0, 2.0, -3.0, 1.75, 0.5, -1.0]
    prompt, output = [3, 1, 4, 1, 5, 2, 2, 8], [2, 5, 5, 3, 1, 4]
    sequences = [
        sequence(seed, prompt=prompt, output=output, stop_ids=(0, 4), **params, **drawing)
        for seed in range(4_000)
    ]
    tokens = Sampler()(torch.tensor([row]).expand(4_000, -1), sequences).token_ids
    values = processed(row, sequences[0])
    assert values != row
    temperature, top_k = drawing.get("temperature", 1.0), drawing.get("top_k")
    expected, _ = law(values, temperature, top_k, 1.0, drawing.get("min_p", 0.0))
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB)
    assert chi_square_p(counts, 4_000 * torch.tensor(expected)) > 1e-4
    found = Sampler().probabilities(torch.tensor([row]), sequences[:1])[0]
    assert found.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("seed", range(40))
def test_equals_transformers(seed: int) -> None:
    """Bit for bit, on random histories over few tokens, where everything repeats."""
    source = random.Random(seed)
    vocab_size = source.choice([4, 12, 300])
    length = source.randint(8, 120)
    prompt_length = source.randint(4, length)
    tokens = [source.randrange(min(vocab_size, 12)) for _ in range(length)]
    words = [
        [source.randrange(min(vocab_size, 12)) for _ in range(source.randint(1, 3))]
        for _ in range(source.randint(1, 6))
    ]
    size, penalty = source.randint(1, 4), source.choice([0.7, 1.3, 3.1])
    min_tokens = source.choice([0, length - prompt_length, 100])
    running = sequence(
        prompt=tokens[:prompt_length],
        output=tokens[prompt_length:],
        stop_ids=(1,),
        repetition_penalty=penalty,
        no_repeat_ngram_size=size,
        bad_words=words,
        min_tokens=min_tokens,
    )
    oracle = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(penalty),
            NoBadWordsLogitsProcessor(words, eos_token_id=None),
            NoRepeatNGramLogitsProcessor(size),
        ]
    )
    if min_tokens:
        oracle.append(MinNewTokensLengthLogitsProcessor(prompt_length, min_tokens, 1))
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, vocab_size, generator=generator)
    expected = oracle(torch.tensor([tokens]), logits.clone())
    assert torch.equal(process(logits, [running]), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_a_row_is_processed_alike_in_any_company(
    batch: list[dict[str, Any]], source: random.Random
) -> None:
    """And by a `Processing` that has seen other batches, whatever became of their sequences."""
    kept, vocab_size = Processing(), 40
    sequences = [
        sequence(
            prompt=[source.randrange(9) for _ in range(source.randint(1, 30))],
            stop_ids=(0, 4),
            **params,
        )
        for params in batch
    ]
    for _ in range(12):
        source.shuffle(sequences)
        now = sequences[: source.randint(1, len(sequences))]
        logits = torch.randn(len(now), vocab_size).bfloat16()
        kept.arrange(now, vocab_size, logits.device)
        for _ in range(source.randint(1, 3)):
            together, _ = kept(logits, now)
            for i, running in enumerate(now):
                assert torch.equal(together[i].float(), process(logits[i : i + 1], [running])[0])
                _live_on(running, source)


def _live_on(running: Sequence, source: random.Random) -> None:
    """Add a token to a sequence; or several, or none, or cut it and go on differently."""
    tokens = running.token_ids
    fate = source.random()
    if fate < 0.2 and running.num_output_tokens:
        del tokens[-source.randint(1, running.num_output_tokens) :]
    elif fate < 0.3:
        running.token_ids = list(tokens)
    elif fate < 0.4 and running.num_output_tokens > 2:  # as long as before, but another
        tokens[-1] = (tokens[-1] + 1) % 9
    elif fate < 0.9:
        tokens += [source.randrange(9) for _ in range(source.choice([1, 1, 1, 2, 5]))]


@pytest.mark.parametrize("turned", [False, True], ids=["same batch", "another batch"])
@pytest.mark.parametrize("name", EACH)
def test_an_interrupt_anywhere_leaves_no_trace(name: str, turned: bool) -> None:
    """A step is cut short after ever more of its lines, for one batch or another; the next one, of
    the first batch, is right."""
    sequences = [
        sequence(prompt=[1, 2, 3, 1], output=[4, 5, 1, 2, 3], stop_ids=(0, 4), **params)
        for params in (EACH[name], EACH["all"], {})
    ]
    logits, sampler = torch.randn(3, VOCAB), Sampler()
    other = [sequences[1], sequence(prompt=[7], **EACH["all"])] if turned else sequences
    for cut in range(0, 1000, 3):
        for running in sequences:
            running.token_ids.append(cut % VOCAB)
        step = lambda: sampler.probabilities(logits[: len(other)], other)  # noqa: E731
        interrupted = _interrupt(step, cut)
        found = sampler.probabilities(logits, sequences)
        fresh = Sampler().probabilities(logits, sequences)
        assert torch.equal(found.nan_to_num(2.0), fresh.nan_to_num(2.0)), cut
        if not interrupted:
            break
    assert 60 < cut < 999


def _interrupt(call: Any, after: int) -> bool:
    """Run `call` and raise after so many lines of it; return whether it came to that."""
    left = after

    def count(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if "workbench" in frame.f_code.co_filename and event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return count

    sys.settrace(count)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_a_batch_without_settings_is_passed_through() -> None:
    logits = torch.randn(3, VOCAB)
    assert process(logits, [sequence(i, top_k=3) for i in range(3)]) is logits


def test_the_models_logits_are_never_written() -> None:
    logits = torch.randn(2, VOCAB)
    before = logits.clone()
    for params in EACH.values():
        sequences = [sequence(output=[1, 2], **params), sequence(temperature=0.0, **params)]
        Sampler()(logits, sequences)
    assert torch.equal(logits, before)


def test_steady_decoding_reads_no_parameter_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [sequence(i, output=[1, 2], **params) for i, params in enumerate(EACH.values())]
    logits, sampler = torch.randn(len(sequences), VOCAB), Sampler()
    sampler(logits, sequences)

    class Unread:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"{name} was read again")

    for running in sequences:
        running.token_ids.append(3)
        running.request = Unread()
    assert len(sampler(logits, sequences).token_ids) == len(sequences)


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = torch.randn(2, VOCAB)
    plain = [sequence(i, temperature=0.0, logprobs=3) for i in range(2)]
    biased = [sequence(i, temperature=0.0, logprobs=3, logit_bias={4: 50.0}) for i in range(2)]
    expected, sampled = Sampler()(logits, plain), Sampler()(logits, biased)
    assert sampled.token_ids == [4, 4]
    assert expected.logprobs is not None
    assert sampled.logprobs is not None
    own = torch.log_softmax(logits, 1)
    for row, (a, b) in enumerate(zip(expected.logprobs, sampled.logprobs, strict=True)):
        assert a is not None
        assert b is not None
        assert a.top == b.top
        assert b.logprob == pytest.approx(float(own[row, 4]), abs=1e-6)


def test_a_choosers_logprobs_are_processed() -> None:
    """As log-probabilities, and not normalised again: transformers' beam search adds those up."""

    class Beams:
        def take(self, running: Sequence, entry: Any) -> None:
            raise AssertionError("the sampler only reports")

    logits = torch.randn(4, VOCAB)
    settings: dict[str, Any] = {"logit_bias": {4: 5.0, 2: -math.inf}, "repetition_penalty": 2.0}
    sequences = [sequence(beam_width=2, prompt=[6, 1], **settings) for _ in range(3)]
    sequences.append(sequence(beam_width=2))
    sequences[0].chooser = sequences[2].chooser = sequences[3].chooser = Beams()
    sampled = Sampler()(logits, sequences)
    assert sampled.logprobs is not None
    own = torch.log_softmax(logits, 1)
    for row, entry in enumerate(sampled.logprobs):
        assert entry is not None
        expected = own[row]
        if row in (0, 2):
            expected = torch.tensor(processed(own[row].tolist(), sequences[row]))
        values, ids = expected.topk(4)
        assert [token for token, _ in entry.top] == ids.tolist()
        assert [p for _, p in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logit_bias": dict.fromkeys(range(VOCAB), -math.inf)}, "logit_bias: forbid every token"),
        (
            {"bad_words": [[i] for i in range(1, VOCAB)], "min_tokens": 5},
            "bad_words, min_tokens: forbid every token",
        ),
        ({"repetition_penalty": 2.0**-126}, "repetition_penalty: made logits NaN or"),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_settings_that_leave_nothing(
    params: dict[str, Any], message: str, temperature: float
) -> None:
    logits = torch.randn(3, VOCAB)
    logits[:, 1] = 40.0
    common: dict[str, Any] = {"temperature": temperature, "stop_ids": (0,)}
    sequences = [sequence(i, **common) for i in range(3)]
    expected = Sampler()(logits, sequences).token_ids
    sequences[1] = sequence(1, **common, **params)
    sampled = Sampler()(logits, sequences)
    assert list(sampled.errors) == [1]
    assert sampled.errors[1].startswith(message)
    assert sampled.token_ids[::2] == expected[::2]
    assert bool(Sampler().probabilities(logits, sequences)[1].isnan().all())


def test_logits_mended_by_a_mask_have_no_logprobs() -> None:
    """The choice is sound, but the model's own distribution, which was asked for, is not."""
    logits = torch.randn(3, VOCAB)
    logits[:, 5] = torch.nan
    params: dict[str, Any] = {"temperature": 0.0, "bad_words": [[5]]}
    sequences = [sequence(**params), sequence(logprobs=1, **params), sequence(temperature=0.0)]
    sampled = Sampler()(logits, sequences)
    assert sorted(sampled.errors) == [1, 2]
    assert sampled.errors[1].startswith("logprobs: ")
    others = [value for i, value in enumerate(logits[0].tolist()) if i != 5]
    assert logits[0, sampled.token_ids[0]] == max(others)
    assert sampled.logprobs is not None
    assert sampled.logprobs[1] is None


class Only:
    """A guide that allows these tokens."""

    def __init__(self, allowed: set[int]) -> None:
        self.allowed, self.accepted = allowed, []

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    def fill(self, row: Tensor) -> None:
        if not self.allowed:
            raise ValueError("no idea")
        row.zero_()
        for token_id in self.allowed:
            row[token_id // 32] |= 1 << (token_id % 32)

    def fork(self) -> Only:
        return Only(self.allowed)

    def rollback(self, num_tokens: int) -> None:
        del self.accepted[len(self.accepted) - num_tokens :]

    @property
    def finished(self) -> bool:
        return False


def test_guided_rows_are_masked_last() -> None:
    logits = torch.randn(4, 70)
    sequences = [sequence(i, temperature=0.0) for i in range(4)]
    expected = Sampler()(logits, sequences).token_ids
    sequences[1] = sequence(temperature=0.0, logit_bias={66: 30.0, 5: 90.0})
    sequences[1].guide = Only({3, 66})
    sequences[2].guide = Only(set())
    sampled = Sampler()(logits, sequences)
    assert sampled.token_ids == [expected[0], 66, sampled.token_ids[2], expected[3]]
    assert sampled.errors == {2: "guided_decoding: raised ValueError: no idea"}
    sequences[1] = sequence(temperature=0.0, bad_words=[[3], [66]])
    sequences[1].guide = Only({3, 66})
    errors = Sampler()(logits, sequences).errors
    assert errors[1] == "bad_words, guided_decoding: forbid every token"


@pytest.mark.gpu
def test_the_gpu_processes_alike() -> None:
    """Rows in changing company on the device, against each alone on the CPU."""
    source, kept, vocab_size = random.Random(3), Processing(), 3000
    sequences = [
        sequence(prompt=[source.randrange(9) for _ in range(60)], stop_ids=(0, 4), **params)
        for params in EACH.values()
    ]
    for _ in range(6):
        source.shuffle(sequences)
        now = sequences[: source.randint(4, len(sequences))]
        logits = torch.randn(len(now), vocab_size).bfloat16()
        kept.arrange(now, vocab_size, torch.device("cuda"))
        for _ in range(3):
            together, errors = kept(logits.cuda(), now)
            assert errors == {}
            for i, running in enumerate(now):
                alone = process(logits[i : i + 1], [running])[0].float()
                assert together[i].float().tolist() == pytest.approx(alone.tolist(), abs=1e-6)
                _live_on(running, source)


@pytest.mark.gpu
def test_the_gpu_ends_bad_rows_alone() -> None:
    logits = torch.randn(4, 500).cuda().bfloat16()
    logits[1, 7] = torch.nan
    sequences = [sequence(i, temperature=i % 2) for i in range(4)]
    sequences[2] = sequence(logits_processors=[lambda t, x: x.cpu()])
    sampled = Sampler()(logits, sequences)
    assert sampled.errors[1].startswith("logits: the model's are NaN")
    assert sampled.errors[2].endswith("returned device cpu for logits of cuda:0")
    assert sampled.token_ids[0] == int(logits[0].argmax())
