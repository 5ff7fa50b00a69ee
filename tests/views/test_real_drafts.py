"""Drafts of a real proposer: what the views say of them is what the engine put out."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from workbench.trace import Trace
from workbench.views import BatchTimeline, SpeculationTree, TokenView
from workbench.views.drafts import drafts_of

PROMPTS = [
    "for i in range(10):\n    print(i)\nfor i in range(10):\n    print(i)\nfor i in",
    "x = [1, 2, 3]\ny = [1, 2, 3]\nz = [1,",
    "class A:\n    pass\n\nclass B:\n    pass\n\nclass",
]


def test_accepted_drafts_are_the_tokens_that_came_out() -> None:
    speculation: Any = pytest.importorskip(
        "workbench.speculation", reason="the package has no proposer yet: lifted by adding one"
    )
    proposer = speculation.NGram(max_draft=5)
    llm = wb.LLM("tinypy", proposer=proposer, max_batch_tokens=64, max_sequences=4)
    with Trace.record(llm.engine) as trace:
        params = wb.SamplingParams(max_tokens=30, temperature=0)
        names = [llm.engine.add(prompt, params) for prompt in PROMPTS]
        llm.engine.run()
    tree, tokens = SpeculationTree(trace), TokenView(trace)
    drafts = list(drafts_of(tree.run))
    assert sum(len(draft.path) for draft in drafts) > 10
    for draft in drafts:
        log = trace.sequences[draft.lane.sequence_id]
        made = [token.token_id for token in log.tokens if token.step == draft.step]
        # a request may end within a draft
        assert made == [*(draft.token_ids[node] for node in draft.path), draft.bonus][: len(made)]
    for name in names:
        table, output = tokens.tokens(name), llm.engine.output(name)
        assert list(table["token_id"]) == [
            *output.prompt_token_ids,
            *output.outputs[0].token_ids,
        ]
        assert set(table["maker"]) >= {"prompt", "sampled"}
    rows = BatchTimeline(trace).rows(drafts[0].step)
    assert rows.loc[0, ["work", "drafted", "accepted"]].tolist() == [
        "verify",
        len(drafts[0].token_ids),
        len(drafts[0].path),
    ]
    llm.engine.close()
