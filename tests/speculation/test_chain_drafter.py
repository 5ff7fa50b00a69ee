"""Chains drafted in passes of one shape are those that the head drafts step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from workbench.bench.speculation_gpu import random_head
from workbench.build import build
from workbench.config import EngineConfig, ModelConfig
from workbench.draft import Draft
from workbench.models import DecoderLM, LlamaForCausalLM
from workbench.sampling_params import SamplingParams
from workbench.speculation import ProposalContext, SpeculationConfig
from workbench.speculation.eagle import EagleProposer
from workbench.speculation.heads.eagle import EagleHead
from workbench.speculation.heads.eagle3 import Eagle3Head


class Both:
    """Asks a proposer step by step and one in fixed passes, and compares what they say."""

    name = "both"

    def __init__(self, head: Any, length: int) -> None:
        self.needs = head.needs
        self.stepwise = EagleProposer(head, length=length, backend="reference", fixed=False)
        self.fixed = EagleProposer(head, length=length, backend="reference", fixed=True)
        self.compared = 0

    def bind(self, model: Any, cache: Any) -> None:
        self.stepwise.bind(model, cache)
        self.fixed.bind(model, cache)

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        a, b = self.stepwise.propose(context), self.fixed.propose(context)
        for one, other in zip(a, b, strict=True):
            if one is None or other is None:
                assert one is None
                assert other is None
                continue
            assert one.token_ids == other.token_ids
            assert one.is_chain
            assert other.is_chain
            torch.testing.assert_close(one.probabilities, other.probabilities, rtol=1e-4, atol=0)
            self.compared += 1
        return b


def make_head(kind: str, model: DecoderLM) -> Any:
    if kind == "eagle3":
        return random_head(model)
    head = EagleHead(model, replace(model.config, num_layers=1)).to(model.device)
    head.init_weights(std=0.3)
    return head.requires_grad_(False)


@pytest.mark.parametrize("kind", ["eagle3", "eagle"])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fixed_passes_draft_what_steps_do(kind: str, length: int, device: str) -> None:
    """Rows come and go, prompts are longer and shorter than a pass, runs have all lengths."""
    config = ModelConfig("LlamaForCausalLM", 300, 32, 24, 6, 2, 1, 16, context=512)
    model = LlamaForCausalLM(config).to(device)
    model.init_weights(std=0.3)
    proposer = Both(make_head(kind, model.requires_grad_(False)), length)
    assert isinstance(proposer.fixed.head, Eagle3Head | EagleHead)
    settings = EngineConfig(
        device=device, num_blocks=200, block_size=4, prefix_reuse=False, max_batch_tokens=40, seed=0
    )
    speculation = SpeculationConfig(synthetic_acceptance=0.7)
    settings = replace(settings, max_sequences=4, proposer=proposer, speculation=speculation)
    with build(settings, model=model) as engine:
        prompts = [[(7 * i + j) % 300 for j in range(2 + 9 * i)] for i in range(6)]
        params = [SamplingParams(max_tokens=12 + 30 * (i % 3), ignore_eos=True) for i in range(6)]
        outputs = engine.generate(prompts, params)
    assert proposer.compared > 60
    assert sum(output.metrics.num_accepted for output in outputs) > 50
    assert proposer.fixed.chains is not None
    assert proposer.stepwise.chains is None
