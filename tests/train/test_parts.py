"""Schedule, windows, evaluation windows, optimizer and the forward pass, each alone."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from workbench.train.batches import Windows
from workbench.train.evaluate import HeldOutFile, file_windows, held_out_scores
from workbench.train.model import cast_parameters, new_model, tinypy_config, window_logits
from workbench.train.optimizer import MasterWeights
from workbench.train.schedule import Progress, fraction_per_second, learning_rate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    config = tinypy_config(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1,
        intermediate_size=64, context=32,
    )  # fmt: skip
    return new_model(config, seed=0).eval()


def test_the_schedule_warms_up_peaks_and_ends_at_zero():
    rates = [learning_rate(f / 1000, peak=1.0, warmup=0.05) for f in range(1001)]
    assert rates[0] > 0
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 50
    assert rates[-1] == pytest.approx(0.0)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.03


def test_progress_ends_with_the_budget_over_several_calls():
    progress = Progress()
    for call_seconds in (40, 40):
        for _ in range(call_seconds):
            progress.advance_seconds(1.0, fraction_per_second(progress, 100.0, math.inf))
    assert progress.fraction == pytest.approx(0.8)
    before = progress.fraction
    for left in range(10, 0, -1):  # the last call is shorter than what is left
        progress.advance_seconds(1.0, fraction_per_second(progress, 100.0, left))
        assert 0 < progress.fraction - before < 0.03
        before = progress.fraction
    assert progress.done


def test_an_epoch_visits_every_window_once():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = Windows(tokens, context=10, seed=0, device=CPU)
    inputs, targets = windows.batch(0, windows.per_epoch)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert len(set(inputs[:, 0].tolist())) == windows.per_epoch
    again, _ = Windows(tokens, 10, 0, CPU).batch(windows.per_epoch // 2, 20)
    assert torch.equal(again, inputs[windows.per_epoch // 2 :][:20])
    later, _ = windows.batch(windows.per_epoch, windows.per_epoch)
    assert not torch.equal(later, inputs)


@pytest.mark.parametrize("length", [2, 31, 32, 33, 48, 49, 100, 1000])
def test_every_token_is_counted_once_with_context(length):
    windows = file_windows(length, context=32)
    counted = [t for w in windows for t in range(w.first_counted, w.end)]
    assert counted == list(range(1, length))
    assert all(w.end - w.start <= 32 for w in windows)
    assert all(w.first_counted - w.start >= 16 for w in windows if w.start)


def test_scores_are_total_nats_over_total_bytes(model):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 64, (n,), generator=generator).tolist() for n in (20, 70)]
    files = [HeldOutFile("stdlib", 50, ids[0]), HeldOutFile("packages", 200, ids[1])]
    scores = held_out_scores(model, files, context=32, batch=2)
    with torch.no_grad():
        logits = model(torch.tensor([ids[0]])).logits[0, :-1]
    nats = float(nn.functional.cross_entropy(logits, torch.tensor(ids[0][1:]), reduction="sum"))
    assert scores["stdlib"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / 50, rel=1e-4)
    assert scores["overall"]["tokens"] == 19 + 69
    total = scores["stdlib"]["loss"] * 19 + scores["packages"]["loss"] * 69
    assert scores["overall"]["loss"] == pytest.approx(total / 88)


def test_the_forward_is_the_models_own(model):
    ids = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(window_logits(model, ids), model(ids).logits)


def test_rotary_frequencies_stay_in_float32():
    model = new_model(tinypy_config(64, 32, 1, 2, 1, 64, 32), seed=0)
    cast_parameters(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_shipped_size():
    with torch.device("meta"):
        parameters = list(torch.nn.ModuleList([_full()]).parameters())
    count = sum(parameter.numel() for parameter in parameters)
    assert 16e6 < count < 24e6
    assert 2 * count < 47.5e6, "48 MB on disk with the tokenizer"


def _full():
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(tinypy_config())


def test_accumulated_gradients_equal_the_whole_batchs():
    model = new_model(tinypy_config(64, 32, 1, 2, 1, 64, 32), seed=0)
    weights = MasterWeights(model, "muon")
    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(2))
    model(ids, labels=ids).loss.backward()
    weights.accumulate(1.0)
    whole = [master.grad.clone() for master in weights.masters]
    for master in weights.masters:
        master.grad = None
    for row in ids.split(1):
        model(row, labels=row).loss.backward()
        weights.accumulate(0.25)
    for one, master in zip(whole, weights.masters, strict=True):
        torch.testing.assert_close(one, master.grad, rtol=1e-4, atol=1e-6)


def test_a_state_of_another_shape_is_refused():
    small = MasterWeights(new_model(tinypy_config(64, 32, 1, 2, 1, 64, 32), seed=0), "adamw")
    other = MasterWeights(new_model(tinypy_config(64, 32, 2, 2, 1, 64, 32), seed=0), "adamw")
    with pytest.raises(ValueError, match="another shape"):
        small.load_state_dict(other.state_dict())
