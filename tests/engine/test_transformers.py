"""Greedy tokens, end tokens and log-probabilities equal those of transformers, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from drive import MakeEngine, greedy
from tiny import TEXTS, random_prompts, with_eos

from workbench.models import load_model
from workbench.sampling_params import SamplingParams

FAMILIES = ["llama", "mistral", "mixtral", "qwen2", "qwen2-windows"]
Folder = Callable[[str], Path]


def reference(folder: Path, device: str) -> Any:
    """Return transformers' model of a folder in float32."""
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval().to(device)


@torch.inference_mode()
def hf_generate(hf: Any, prompt: list[int], max_tokens: int, eos: Any) -> list[int]:
    """Return the tokens that `generate` adds, with its KV cache."""
    ids = torch.tensor([prompt], device=hf.device)
    out = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(
    make_engine: MakeEngine, checkpoint: Folder, backend: str, device: str, family: str
) -> None:
    hf = reference(checkpoint(family), device)
    # Beyond Mistral's window of 8 from the start, from the first tokens on, and within a while.
    prompts = [*random_prompts(3, seed=30, longest=60), [7] * 8, [3, 4]]
    expected = [hf_generate(hf, prompt, 40, None) for prompt in prompts]
    engine = make_engine(family, backend=backend, device=device, max_batch_tokens=32)
    outputs = engine.generate(prompts, greedy(40))
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert len({token for row in expected for token in row}) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_texts(make_engine: MakeEngine, checkpoint: Folder, family: str) -> None:
    folder = checkpoint(family)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hf = reference(folder, "cpu")
    for text, output in zip(TEXTS, make_engine(family).generate(TEXTS, greedy(30)), strict=True):
        expected = hf_generate(hf, tokenizer(text)["input_ids"], 30, None)
        assert output.outputs[0].text == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_token(
    make_engine: MakeEngine, checkpoint: Folder, tmp_path: Path, family: str
) -> None:
    prompts = random_prompts(5, seed=31)
    hf = reference(checkpoint(family), "cpu")
    free = [hf_generate(hf, prompt, 40, None) for prompt in prompts]
    eos = free[0][17]  # a token that greedy decoding is known to come to
    expected = [hf_generate(hf, prompt, 40, eos) for prompt in prompts]
    assert len(expected[0]) <= 18
    model = load_model(
        with_eos(checkpoint(family), tmp_path / "m", eos), device="cpu", dtype="float32"
    )
    engine = make_engine(model)
    outputs = engine.generate(prompts, SamplingParams(max_tokens=40, temperature=0))
    assert [output.outputs[0].token_ids for output in outputs] == expected
    for output, row in zip(outputs, expected, strict=True):
        ended = row[-1] == eos
        assert output.outputs[0].finish_reason == ("stop" if ended else "length")
        assert output.outputs[0].stop_reason == (eos if ended else None)
    ignoring = engine.generate(prompts, greedy(40))
    assert [output.outputs[0].token_ids for output in ignoring] == free


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_a_full_forward(
    make_engine: MakeEngine, checkpoint: Folder, backend: str, device: str, family: str
) -> None:
    hf = reference(checkpoint(family), device)
    prompts = random_prompts(3, seed=32)
    params = [
        greedy(16, logprobs=4),
        SamplingParams(
            max_tokens=16, temperature=1.7, top_k=9, seed=1, logprobs=0, ignore_eos=True
        ),
        greedy(16),
    ]
    engine = make_engine(family, backend=backend, device=device, max_batch_tokens=24)
    outputs = engine.generate(prompts, params)
    for prompt, output, own in zip(prompts, outputs, params, strict=True):
        completion = output.outputs[0]
        if own.logprobs is None:
            assert completion.logprobs is None
            continue
        ids = torch.tensor([prompt + completion.token_ids], device=device)
        with torch.inference_mode():
            whole = hf(ids).logits[0].float().log_softmax(-1).cpu()
        assert completion.logprobs is not None
        assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
        for position, entry in enumerate(completion.logprobs, start=len(prompt) - 1):
            row = whole[position]
            assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=2e-4)
            values, tokens = row.topk(own.logprobs)
            assert [token for token, _ in entry.top] == tokens.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=2e-4)
        total = sum(entry.logprob for entry in completion.logprobs)
        assert completion.cumulative_logprob == pytest.approx(total)
