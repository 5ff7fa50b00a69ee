"""Users' processors: what they are given, and that nothing they do reaches another row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sampling import sequence
from torch import Tensor

from workbench.errors import ConfigError, ProcessorFailed
from workbench.sample import Sampler

VOCAB = 12


def raising(token_ids: list[int], logits: Tensor) -> Tensor:
    raise ValueError("no idea")


def silent(token_ids: list[int], logits: Tensor) -> Any:
    logits.zero_()  # in place, and nothing returned


def poisoning(token_ids: list[int], logits: Tensor) -> Tensor:
    logits[3] = torch.nan
    return logits


class Unnamed:
    def __call__(self, token_ids: list[int], logits: Tensor) -> Any:
        return logits.tolist()

    def __str__(self) -> str:
        raise ValueError("shy")


BAD: list[tuple[Any, str]] = [
    (raising, "logits_processors[0] (raising): raised ValueError: no idea"),
    (silent, "logits_processors[0] (silent): returned NoneType, not a tensor"),
    (poisoning, "logits_processors[0] (poisoning): returned NaN"),
    (Unnamed(), "logits_processors[0] (Unnamed): returned list, not a tensor"),
    (lambda t, x: x[None], "returned shape (1, 12) for logits of (12,)"),
    (lambda t, x: x[:5], "returned shape (5,) for logits of (12,)"),
    (lambda t, x: x.double(), "returned dtype torch.float64 for logits of torch.float32"),
    (lambda t, x: x.to("meta"), "returned device meta for logits of cpu"),
    (lambda t, x: x.to_sparse(), "returned layout torch.sparse_coo for logits of torch.strided"),
    (
        lambda t, x: x / 0 * torch.inf,
        "logits_processors, presence_penalty: made logits NaN or +inf",
    ),
    (lambda t, x: x - torch.inf, "logits_processors, presence_penalty: forbid every token"),
    (lambda: None, "raised TypeError"),
    (lambda t, x: x.backward(), "raised RuntimeError"),
    (lambda t, x: t.clear() or x[t[0]], "raised IndexError: list index out of range"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_processor_ends_its_row_alone(
    bad: Callable[..., Any], message: str, temperature: float
) -> None:
    logits = torch.randn(3, VOCAB).abs() + 1
    common: dict[str, Any] = {"temperature": temperature, "logprobs": 1, "presence_penalty": 0.5}
    sequences = [sequence(i, output=[4, 4], **common) for i in range(3)]
    well = Sampler()(logits, sequences)
    sequences[1] = sequence(1, output=[4, 4], logits_processors=[bad], **common)
    sampled = Sampler()(logits, sequences)
    assert list(sampled.errors) == [1]
    assert message in sampled.errors[1]
    assert sampled.token_ids[::2] == well.token_ids[::2]
    assert well.logprobs is not None
    assert sampled.logprobs is not None
    assert sampled.logprobs[::2] == well.logprobs[::2]
    assert sampled.logprobs[1] is None
    assert sequences[1].token_ids == [1, 4, 4]
    assert bool(Sampler().probabilities(logits, sequences)[1].isnan().all())


def test_an_interrupt_is_no_failure_of_the_row() -> None:
    def stopping(token_ids: list[int], logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sampler()(torch.randn(1, VOCAB), [sequence(logits_processors=[stopping])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_a_processor_is_given(dtype: torch.dtype) -> None:
    given: list[tuple[list[int], Tensor]] = []

    def note(token_ids: list[int], logits: Tensor) -> Tensor:
        given.append((token_ids, logits))
        return logits.clone()

    logits = torch.randn(2, VOCAB).to(dtype)
    running = sequence(prompt=[3, 4], output=[5], logits_processors=[note], temperature=0.0)
    Sampler()(logits, [sequence(), running])
    [(token_ids, row)] = given
    assert token_ids == [3, 4, 5]
    assert token_ids is not running.token_ids
    assert row.dtype == torch.float32
    assert torch.equal(row, logits[1].float())


def test_processors_run_in_order_before_the_penalties() -> None:
    def double(token_ids: list[int], logits: Tensor) -> Tensor:
        return logits.mul_(2)

    def add_one(token_ids: list[int], logits: Tensor) -> Tensor:
        return logits + 1

    logits = torch.zeros(1, 3)
    running = sequence(
        prompt=[2],
        output=[0],
        logits_processors=[add_one, double, add_one],
        repetition_penalty=3.0,
        presence_penalty=0.5,
    )
    expected = torch.softmax(torch.tensor([0.5, 3.0, 1.0]).double(), 0)
    found = Sampler().probabilities(logits, [running])[0]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert torch.equal(logits, torch.zeros(1, 3))


def test_a_processor_may_keep_and_return_one_tensor() -> None:
    """What it does to that tensor later, or in another row, changes nothing any more."""
    kept = torch.zeros(VOCAB, requires_grad=True)

    def same(token_ids: list[int], logits: Tensor) -> Tensor:
        with torch.no_grad():
            kept.zero_()
            kept[len(token_ids)] = 9.0
        return kept

    sequences = [
        sequence(output=[0] * n, logits_processors=[lambda t, x: same(t, x).clone()])
        for n in (1, 2, 3)
    ]
    found = Sampler().probabilities(torch.randn(3, VOCAB), sequences)
    assert found.argmax(1).tolist() == [2, 3, 4]
    assert not found.requires_grad
    again = Sampler().probabilities(
        torch.randn(1, VOCAB), [sequence(logits_processors=[same, same])]
    )
    assert again.argmax(1).tolist() == [1]


def test_who_brought_nan_in_is_told() -> None:
    processors = [lambda t, x: x + 1, poisoning, raising]
    logits = torch.randn(2, VOCAB)
    errors = Sampler()(logits, [sequence(logits_processors=processors), sequence()]).errors
    assert errors == {0: "logits_processors[1] (poisoning): returned NaN"}, "the first fault"
    errors = Sampler()(logits[:1], [sequence(logits_processors=processors[:2])]).errors
    assert errors == {0: "logits_processors[1] (poisoning): returned NaN"}
    logits[0, 5] = torch.nan
    errors = Sampler()(logits[:1], [sequence(logits_processors=processors[:1])]).errors
    assert errors[0].startswith("logits: the model's are NaN")
    mending = [lambda t, x: x.nan_to_num(-1.0)]
    assert Sampler()(logits[:1], [sequence(logits_processors=mending)]).errors == {}


# --- processors of the whole batch --------------------------------------------------------------


def test_a_batch_processor_sees_every_row_first() -> None:
    given: list[tuple[Tensor, list[Any]]] = []

    def note(logits: Tensor, sequences: list[Any]) -> Tensor:
        given.append((logits.clone(), list(sequences)))
        sequences.clear()
        return logits.index_fill_(1, torch.tensor([0]), 50.0)

    logits = torch.randn(2, VOCAB).bfloat16()
    sequences = [sequence(temperature=0.0), sequence(logit_bias={3: 80.0})]
    sampler = Sampler([note, lambda x, s: x[:, torch.arange(VOCAB)].T.contiguous().T])
    before = logits.clone()
    assert sampler(logits, sequences).token_ids == [0, 3]
    assert sampler.probabilities(logits, sequences)[0, 0] == 1.0
    assert torch.equal(given[0][0], logits.float())
    assert given[0][1] == sequences
    assert torch.equal(logits, before)
    assert "note" in repr(sampler)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x, s: 1 / 0, "<lambda>: raised ZeroDivisionError: division by zero"),
        (lambda x, s: None, "<lambda>: returned NoneType, not a tensor"),
        (lambda x, s: x[:1], r"<lambda>: returned shape \(1, 12\) for logits of \(2, 12\)"),
        (lambda x, s: x.half(), "<lambda>: returned dtype torch.float16"),
    ],
    ids=["raises", "none", "shape", "dtype"],
)
def test_a_bad_batch_processor_fails_the_step(bad: Callable[..., Any], message: str) -> None:
    with pytest.raises(ProcessorFailed, match=message):
        Sampler([lambda x, s: x, bad])(torch.randn(2, VOCAB), [sequence(), sequence()])


def test_rows_that_a_batch_processor_spoils_end() -> None:
    def spoil(logits: Tensor, sequences: list[Any]) -> Tensor:
        logits[1] = -torch.inf
        return logits

    errors = Sampler([spoil])(torch.randn(2, VOCAB), [sequence(), sequence(min_tokens=1)]).errors
    assert errors == {1: "spoil, min_tokens: forbid every token"}


def test_what_is_no_processor_is_refused() -> None:
    with pytest.raises(ConfigError, match="processors=3: is not callable"):
        Sampler([3])
