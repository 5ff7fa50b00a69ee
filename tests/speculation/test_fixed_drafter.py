"""What is drafted in passes of one shape is what the head drafts step by step."""

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
from workbench.ops import get_backend
from workbench.sampling_params import SamplingParams
from workbench.speculation import ProposalContext, SpeculationConfig
from workbench.speculation.eagle import EagleProposer
from workbench.speculation.fixed_drafter import FixedDrafter, New
from workbench.speculation.heads import TreeShape, commit, draft_tree, new_cache
from workbench.speculation.heads.eagle import EagleHead
from workbench.speculation.heads.eagle3 import Eagle3Head

SHAPES = [TreeShape(1, 1, 1), TreeShape(4, 4, 1), TreeShape(9, 4, 3), TreeShape(5, 1, 6)]


class Both:
    """Asks a proposer step by step and one in fixed passes, and compares what they say."""

    name = "both"

    def __init__(self, head: Any, shape: TreeShape) -> None:
        self.needs = head.needs
        self.stepwise = EagleProposer(head, shape=shape, backend="reference", fixed=False)
        backend = "triton" if head.target.model.device.type == "cuda" else "reference"
        self.fixed = EagleProposer(head, shape=shape, backend=backend, fixed=True)
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
            assert one.parents == other.parents
            torch.testing.assert_close(one.probabilities, other.probabilities, rtol=4e-4, atol=0)
            self.compared += 1
        return b


def make_head(kind: str, model: DecoderLM) -> Any:
    if kind == "eagle3":
        return random_head(model)
    head = EagleHead(model, replace(model.config, num_layers=1)).to(model.device)
    head.init_weights(std=0.1)  # more, and rounding grows as it goes on
    return head.requires_grad_(False)


@pytest.mark.parametrize("kind", ["eagle3", "eagle"])
@pytest.mark.parametrize(
    "shape",
    [TreeShape(1, 1, 1), TreeShape(4, 4, 1), TreeShape(9, 4, 3), TreeShape(5, 1, 6)],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fixed_passes_draft_what_steps_do(kind: str, shape: TreeShape, device: str) -> None:
    """Rows come and go, prompts are longer and shorter than a pass, runs have all lengths."""
    config = ModelConfig("LlamaForCausalLM", 300, 32, 24, 6, 2, 1, 16, context=512)
    model = LlamaForCausalLM(config).to(device)
    model.init_weights(std=0.3)
    proposer = Both(make_head(kind, model.requires_grad_(False)), shape)
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
    assert not any(output.outputs[0].error for output in outputs)
    assert proposer.compared > 60
    assert sum(output.metrics.num_accepted for output in outputs) > 50
    assert proposer.fixed.drafter is not None
    assert proposer.stepwise.drafter is None


@pytest.mark.parametrize("shape", [TreeShape(3, 3, 1), TreeShape(9, 4, 3)], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_draft_what_masks_do(shape: TreeShape, device: str) -> None:
    """Rows end within a block, at its end and at its beginning; tails cross into the next one."""
    config = ModelConfig("LlamaForCausalLM", 100, 32, 24, 1, 2, 1, 16, context=512)
    model = LlamaForCausalLM(config).to(device)
    model.init_weights(std=0.3)
    head = make_head("eagle", model.requires_grad_(False))
    backend, reference = (get_backend(name, model.device) for name in ("triton", "reference"))
    drafter = FixedDrafter(head, shape, backend, graphs=device == "cuda")
    old, new = [5, 14, 29, 15], [1, 2, 3, 1]
    cache, other = new_cache(head, 4), new_cache(head, 4)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 100, (sum(old) + sum(new),), generator=generator).to(device)
    states = torch.randn(len(tokens), 32, generator=generator).to(device)
    first, rest = slice(0, sum(old)), slice(sum(old), None)
    rows = range(4)
    for each in (cache, other):
        commit(head, each, rows, tokens[first], states[first], old, reference)
    out = commit(head, other, rows, tokens[rest], states[rest], new, reference)
    expected = draft_tree(head, other, rows, out, shape, reference)
    given = New(rows, new, tokens[rest].tolist(), states[rest], [shape.depth] * 4)
    for repeated in range(2):  # the second time over what the first left behind
        found = drafter.draft(cache, given, scratch=4)
        assert torch.equal(found.token_ids, expected.token_ids.cpu())
        assert torch.equal(found.parents, expected.parents.expand_as(expected.token_ids).cpu())
        torch.testing.assert_close(found.scores.float(), expected.scores.cpu(), rtol=1e-3, atol=0)
        assert cache.lens[:4] == other.lens[:4]
        for row in rows if repeated == 0 else ():
            cache.lens[row] -= new[row]
