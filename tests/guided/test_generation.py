"""The embedded model under guides: what it writes always parses, and always can end."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from guiding import BOTH, accepts, compiled
from torch import Tensor

from workbench.batch import SampledTokens
from workbench.cache import KVCache
from workbench.config import SchedulerConfig
from workbench.engine import Engine
from workbench.guided import GrammarCompiler, Guide, mask_logits
from workbench.models import DecoderLM
from workbench.request import RequestOutput, Sequence
from workbench.run import Runner
from workbench.sample import Sampler
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler

PROMPT = "# An example of such a value, as a config file would have it:\n"
NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "when": {"type": ["integer", "null"]}},
            "required": ["ok", "when"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "size", "tags", "inner"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "maybe", "naïve", "日本"]


class GuidedSampler(Sampler):
    """As the engine's sampler will be: masks by guide, chooses, and accepts what was chosen."""

    def __init__(self, guides: dict[str, Guide]) -> None:
        super().__init__()
        self.guides = guides

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return a token for each row, guided where the request has a guide."""
        guides = [self.guides.get(sequence.request.request_id) for sequence in sequences]
        mask_logits(logits, guides)
        sampled = super().__call__(logits, sequences)
        for guide, token_id in zip(guides, sampled.token_ids, strict=True):
            if guide is not None:
                guide.accept(token_id)
        return sampled


def generate(
    model: DecoderLM, jobs: list[tuple[Guide | None, SamplingParams]]
) -> list[RequestOutput]:
    """Run all jobs in one batch."""
    cache = KVCache.for_model(model, num_blocks=256, block_size=16)
    scheduler = Scheduler(cache, SchedulerConfig(max_batch_tokens=256, max_sequences=32))
    guides: dict[str, Guide] = {}
    engine = Engine(model, cache, scheduler, Runner(model, cache), sampler=GuidedSampler(guides))
    ids = []
    for guide, params in jobs:
        ids.append(engine.add(PROMPT, params))
        if guide is not None:
            guides[ids[-1]] = guide
    engine.run()
    outputs = [engine.output(request_id) for request_id in ids]
    engine.close()
    return outputs


def both_ways(max_tokens: int) -> list[SamplingParams]:
    """Return greedy parameters and three that draw, one of them wildly."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "seed": 2, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 3.0, "seed": 3},
    ]
    return [SamplingParams(max_tokens=max_tokens, **setting) for setting in settings]


@pytest.mark.parametrize("backend", BOTH)
def test_output_meets_its_constraint(
    model: DecoderLM, compiler: GrammarCompiler, backend: str
) -> None:
    listing = 'root ::= item ("," item){1,3}\nitem ::= [0-9]{1,2} | "(" item ")"'
    grammars = {
        "json": compiled(compiler, backend, json=NESTED, max_whitespace=1),
        "regex": compiled(compiler, backend, regex=r"[a-zа-я]{2,8}(-[0-9]{1,3}){1,2}"),  # noqa: RUF001
        "choice": compiled(compiler, backend, choice=CHOICES),
        "grammar": compiled(compiler, backend, grammar=listing),
    }
    jobs: list[tuple[Guide | None, SamplingParams]] = [
        (grammar.start(), params) for grammar in grammars.values() for params in both_ways(120)
    ]
    jobs += [(None, SamplingParams(max_tokens=8, temperature=0))]
    outputs = generate(model, jobs)
    kinds = [kind for kind in grammars for _ in range(4)]
    for kind, output, (guide, _) in zip(kinds, outputs, jobs, strict=False):
        (completion,) = output.outputs
        text = completion.text
        if completion.finish_reason == "length":
            assert kind in ("json", "grammar")  # deep brackets may go on; all others are short
            continue
        assert completion.finish_reason == "stop"
        assert guide is not None
        assert guide.ended
        assert accepts(compiler, grammars[kind], text), text
        if kind == "json":
            jsonschema.Draft202012Validator(NESTED).validate(json.loads(text))
        elif kind == "regex":
            assert re.fullmatch(r"[a-zа-я]{2,8}(-[0-9]{1,3}){1,2}", text)  # noqa: RUF001
        elif kind == "choice":
            assert text in CHOICES
    ended = [o for o in outputs[:16] if o.outputs[0].finish_reason == "stop"]
    assert len(ended) >= 13
    # The unguided neighbour writes what it writes alone.
    (alone,) = generate(model, [jobs[-1]])
    assert alone.outputs[0].token_ids == outputs[-1].outputs[0].token_ids


def test_a_cut_is_a_length(model: DecoderLM, compiler: GrammarCompiler) -> None:
    guide = compiled(compiler, json=NESTED).start()
    (output,) = generate(model, [(guide, SamplingParams(max_tokens=5, temperature=0))])
    assert output.outputs[0].finish_reason == "length"
    assert guide.num_tokens == 5
    assert not guide.ended
    assert guide.allowed()  # it could go on


def test_an_end_is_reachable_from_wherever_it_was_cut(
    model: DecoderLM, compiler: GrammarCompiler
) -> None:
    guide = compiled(compiler, json=NESTED, max_whitespace=0).start()
    generate(model, [(guide, SamplingParams(max_tokens=20, temperature=2.0, seed=7))])
    tokens = compiler.vocabulary.tokens
    for _ in range(200):
        if guide.accepting:
            break
        # Whatever closes first, else the shortest way on.
        allowed = [i for i in guide.allowed() if tokens[i]]
        guide.accept(
            min(allowed, key=lambda i: (tokens[i] not in (b'"', b"}", b"]"), len(tokens[i])))
        )
    assert guide.accepting


def test_forks_of_a_guide_go_their_own_ways(model: DecoderLM, compiler: GrammarCompiler) -> None:
    start = compiled(compiler, choice=CHOICES).start()
    jobs: list[tuple[Guide | None, SamplingParams]] = [
        (start.fork(), SamplingParams(max_tokens=20, temperature=2.0, seed=seed))
        for seed in range(12)
    ]
    texts = {output.outputs[0].text for output in generate(model, jobs)}
    assert texts <= set(CHOICES)
    assert len(texts) > 1
    assert start.num_tokens == 0
