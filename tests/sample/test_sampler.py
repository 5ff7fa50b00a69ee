"""The sampler: the right law, the same tokens in any company, nothing spent on greedy batches."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling import chi_square_p, law, sequence
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.request import Sequence
from workbench.sample import Sampler
from workbench.sample.greedy import argmax
from workbench.sample.params import NARROW

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.5, "min_p": 0.2},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
]
PARAMS = st.fixed_dictionaries(
    {"temperature": st.just(0.0) | st.floats(0.05, 4.0)},
    optional={
        "top_k": st.integers(1, 2000),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.floats(0.0, 1.0),
    },
)


class Operations(TorchDispatchMode):
    """Lists every torch operation that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.read: list[int] = []  # numbers in the largest argument, for each that reduces or maps

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; to be guarded against it would import the compiler: seconds."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        if args and isinstance(args[0], torch.Tensor) and "gather" not in str(func):
            self.read += [args[0].numel()] if args[0].numel() > 100 else []
        return func(*args, **(kwargs or {}))


def of(params: dict[str, Any]) -> tuple[float, int | None, float, float]:
    """Return what `law` takes."""
    return (
        params.get("temperature", 1.0),
        params.get("top_k"),
        params.get("top_p", 1.0),
        params.get("min_p", 0.0),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-24, 24).map(lambda i: i / 4), min_size=2, max_size=8), PARAMS)
def test_probabilities_equal_the_definition(row: list[float], params: dict[str, Any]) -> None:
    found = Sampler().probabilities(torch.tensor([row]), [sequence(**params)])[0]
    if params["temperature"] == 0.0:
        expected = [float(i == row.index(max(row))) for i in range(len(row))]
    else:
        expected, margin = law(row, *of(params))
        assume(margin > 1e-5)
    assert found.tolist() == pytest.approx(expected, rel=0, abs=2e-6)


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_twenty_thousand_draws_follow_the_law(params: dict[str, Any]) -> None:
    row = [1.0, -0.5, 2.25, 0.0, 2.0, -3.0, 1.75, 0.5, -9.0]
    sequences = [sequence(seed, index, **params) for seed in range(400) for index in range(50)]
    tokens = Sampler()(torch.tensor([row]).expand(20_000, -1), sequences).token_ids
    counts = torch.bincount(torch.tensor(tokens), minlength=len(row))
    expected, _ = law(row, *of(params))
    assert chi_square_p(counts, 20_000 * torch.tensor(expected)) > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=8), st.sampled_from([40, 1500]), st.data())
def test_same_tokens_alone_in_a_batch_and_in_any_order(
    batch: list[dict[str, Any]], vocab_size: int, data: st.DataObject
) -> None:
    flat = data.draw(st.sampled_from([0.0, 0.01, 2.0]), "spread")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "logits"))
    # bfloat16 makes equal logits common.
    logits = flat * torch.randn(len(batch), vocab_size, generator=generator).bfloat16()
    sequences = [sequence(7 + i, num_output=i % 3, **params) for i, params in enumerate(batch)]
    together = Sampler()(logits, sequences).token_ids
    alone = [Sampler()(logits[i : i + 1], [s]).token_ids[0] for i, s in enumerate(sequences)]
    order = data.draw(st.permutations(range(len(batch))))
    permuted = Sampler()(logits[order], [sequences[i] for i in order]).token_ids
    assert together == alone
    assert permuted == [alone[i] for i in order]


def test_a_narrow_and_a_full_ranking_draw_alike() -> None:
    """A nucleus wider than `NARROW` in one row makes its neighbours sort everything: no matter."""
    vocab_size = 3 * NARROW
    peaked, level = 4 * torch.randn(16, vocab_size), torch.zeros(1, vocab_size)
    sequences = [sequence(i, top_p=0.9) for i in range(17)]
    narrow = Sampler()(peaked, sequences[:16]).token_ids
    with Operations() as operations:
        wide = Sampler()(torch.cat([peaked, level]), sequences).token_ids
    assert wide[:16] == narrow
    assert any(name.startswith("aten.sort") for name in operations.names)
    with Operations() as operations:
        Sampler()(peaked, sequences[:16])
    assert not any(name.startswith("aten.sort") for name in operations.names)


def test_the_next_output_index_draws_anew_and_the_same_one_again() -> None:
    logits, sampler = torch.zeros(1, 1000), Sampler()
    running = sequence(seed=3)
    tokens = []
    for _ in range(20):
        tokens += sampler(logits, [running]).token_ids
        running.token_ids.append(tokens[-1])
    assert len(set(tokens)) > 15
    resumed = [Sampler()(logits, [sequence(3, num_output=i)]).token_ids[0] for i in range(20)]
    assert resumed == tokens


def test_an_all_greedy_batch_is_one_argmax() -> None:
    """The rest looks at one number a row: whether that argmax was a choice at all."""
    logits, sampler = torch.randn(32, 100), Sampler()
    sequences = [sequence(i, temperature=0.0) for i in range(32)]
    for _ in range(2):  # building the cache, and using it
        with Operations() as operations:
            sampled = sampler(logits, sequences)
        # numpy's, on a CPU: torch only hands the memory over and takes the tokens back.
        assert operations.names[:2] == ["aten.detach.default", "aten.lift_fresh.default"]
        assert operations.read == [32 * 100], "no other reads the logits, but for a number a row"
    assert sampled.token_ids == logits.argmax(1).tolist()
    assert sampled.logprobs is None


def test_steady_decoding_reads_no_parameters_again(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, sampler = torch.randn(4, 50), Sampler()
    sequences = [sequence(i, top_k=5) for i in range(4)]
    sampler(logits, sequences)
    made = sampler._tensors
    sampler(logits, list(sequences))
    assert sampler._tensors is made
    # Another request with an old one's id and place is another request.
    sequences[1] = sequence(1, temperature=0.0)
    assert sampler(logits, sequences).token_ids[1] == int(logits[1].argmax())
    assert sampler(logits[:3], sequences[:3]).token_ids[1] == int(logits[1].argmax())


def test_sorting_only_where_a_row_needs_it() -> None:
    logits = torch.randn(3, 50)
    for params, banned in (({}, ("sort", "topk")), ({"top_k": 5}, ("sort",))):
        sequences = [sequence(0, min_p=0.1, **params), sequence(1, temperature=0.0), sequence(2)]
        with Operations() as operations:
            Sampler()(logits, sequences)
        assert not [n for n in operations.names if n.split(".")[1] in banned]


def test_greedy_rows_of_a_mixed_batch_take_the_argmax() -> None:
    logits = torch.randn(40, 30)
    kinds = [{"temperature": 0.0}, {}, {"top_k": 4}, {"top_p": 0.5}]
    sequences = [sequence(i, **kinds[i % 4]) for i in range(40)]
    tokens = Sampler()(logits, sequences).token_ids
    assert tokens[::4] == logits.argmax(1).tolist()[::4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_other_dtypes_follow_their_own_values(dtype: torch.dtype, params: dict[str, Any]) -> None:
    logits = torch.randn(50, 200).to(dtype)
    sequences = [sequence(i, **params) for i in range(50)]
    assert Sampler()(logits, sequences) == Sampler()(logits.float(), sequences)


@pytest.mark.parametrize("params", [*SETTINGS, {"top_k": 40}, {"top_p": 0.999999}], ids=str)
def test_impossible_tokens_are_never_drawn(params: dict[str, Any]) -> None:
    logits = torch.randn(300, 50)
    allowed = torch.zeros(50, dtype=torch.bool).index_fill_(0, torch.tensor([3, 17, 49]), True)
    logits[:, ~allowed] = -torch.inf
    sequences = [sequence(i, **params) for i in range(300)]
    assert set(Sampler()(logits, sequences).token_ids) <= {3, 17, 49}


@pytest.mark.parametrize("params", [{"temperature": 0.0}, *SETTINGS], ids=str)
@pytest.mark.parametrize("poison", [torch.nan, -torch.nan, torch.inf, None], ids=str)
def test_rows_without_a_distribution_are_told(params: dict[str, Any], poison: Any) -> None:
    well = torch.randn(4, 30)
    logits = well.clone()
    if poison is None:
        logits[2] = -torch.inf
    else:
        logits[2, 11] = poison
    sequences = [sequence(i, logprobs=i % 2, **params) for i in range(4)]
    sampled = Sampler()(logits, sequences)
    assert list(sampled.errors) == [2]
    assert sampled.errors[2].startswith("logits: the model's are NaN or +inf")
    found = Sampler().probabilities(logits, sequences)
    assert bool(found[2].isnan().all())
    expected = Sampler()(well, sequences)
    rest = [0, 1, 3]
    assert sampled.logprobs is not None
    assert expected.logprobs is not None
    assert [sampled.token_ids[i] for i in rest] == [expected.token_ids[i] for i in rest]
    assert [sampled.logprobs[i] for i in rest] == [expected.logprobs[i] for i in rest]
    assert sampled.logprobs[2] is None
    assert bool(torch.equal(found[rest], Sampler().probabilities(well, sequences)[rest]))


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = torch.randn(4, 20)
    wanted: list[dict[str, Any]] = [
        {"logprobs": 3, "temperature": 0.3, "top_k": 2},
        {},
        {"logprobs": 0, "temperature": 0.0},
        {"logprobs": 20, "top_p": 0.5},
    ]
    sequences = [sequence(i, **params) for i, params in enumerate(wanted)]
    sampled = Sampler()(logits, sequences)
    assert sampled.logprobs is not None
    assert sampled.logprobs[1] is None
    exact = torch.log_softmax(logits.double(), dim=1)
    for row, params in enumerate(wanted):
        entry = sampled.logprobs[row]
        if entry is None:
            continue
        assert entry.token_id == sampled.token_ids[row]
        assert entry.logprob == pytest.approx(float(exact[row, entry.token_id]), abs=1e-5)
        values, ids = exact[row].topk(params["logprobs"])
        assert [token for token, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_logprobs_do_not_change_tokens() -> None:
    logits = torch.randn(20, 20)
    plain = [sequence(i, top_p=0.8) for i in range(20)]
    asking = [sequence(i, top_p=0.8, logprobs=1) for i in range(20)]
    assert Sampler()(logits, plain).token_ids == Sampler()(logits, asking).token_ids


def test_shows_itself() -> None:
    sampler = Sampler()
    sampler(torch.randn(2, 5), [sequence(), sequence(temperature=0.0)])
    assert "1 greedy, 1 sampled" in repr(sampler)


@pytest.mark.gpu
@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_the_gpu_draws_the_same_tokens_in_any_company(params: dict[str, Any]) -> None:
    logits = (2 * torch.randn(256, 32_000)).bfloat16()
    sequences: list[Sequence] = [sequence(i, **params) for i in range(256)]
    here, there = Sampler()(logits, sequences), Sampler()(logits.cuda(), sequences)
    # exp differs in its last bit between the two, so a draw may fall next to a boundary.
    assert sum(a != b for a, b in zip(here.token_ids, there.token_ids, strict=True)) <= 1
    order = random.Random(0).sample(range(256), 37)
    part = Sampler()(logits[order].cuda(), [sequences[i] for i in order]).token_ids
    assert part == [there.token_ids[i] for i in order]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_argmax_is_torchs(dtype: torch.dtype) -> None:
    logits = torch.randn(9, 500, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[1], logits[2], logits[3, 7], logits[4, 9] = 0, -torch.inf, torch.nan, torch.inf
    logits[5, 3] = logits[5, 400] = 60  # the first of equals
    tokens = argmax(logits)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, logits.argmax(dim=-1))
