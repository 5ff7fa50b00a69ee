"""Completions of bare prompts, and whether what came out is Python.

Called when a model is exported. The cut is a pure function of text, so that anyone can repeat the
judgement on any completion.
"""

from __future__ import annotations

import ast
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from workbench.data.cleaning import Rejected, parse

PROMPTS = (
    "def fibonacci(n):\n",
    "class Stack:\n",
    "import json\n\n\ndef load_config(path):\n",
    "class Point:\n    def __init__(self, x, y):\n",
    "class Counter:\n    def __init__(self):\n        self.counts = {}\n\n",
)


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, what the model wrote after it, and the longest valid program at its head."""

    prompt: str
    text: str
    program: str
    valid: bool
    finished: bool


def cut_at_last_statement(text: str) -> str:
    """The longest prefix of whole lines that is valid Python; empty if there is none.

    A completion of fixed length ends in the middle of something; this drops the unfinished tail. It
    cuts at line ends only, and never inside a bracket or string, since that would not parse.
    """
    lines = text.split("\n")
    for end in range(len(lines), 0, -1):
        candidate = "\n".join(lines[:end])
        if not candidate.strip():
            break
        try:
            parse(candidate)
        except Rejected:
            continue
        return candidate.rstrip() + "\n"
    return ""


def judge(prompt: str, text: str, finished: bool) -> Completion:
    """Cut `prompt + text`; valid means the program goes beyond the prompt's own lines."""
    program = cut_at_last_statement(prompt + text)
    valid = len(program.rstrip()) > len(prompt.rstrip()) and bool(ast.parse(program).body)
    return Completion(prompt, text, program, valid, finished)


@torch.no_grad()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: tuple[str, ...] = PROMPTS,
    max_tokens: int = 160,
) -> list[dict[str, Any]]:
    """Greedy completions, one prompt at a time, as plain rows."""
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
        produced = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
        )[0, ids.shape[1] :].tolist()
        finished = tokenizer.eos_token_id in produced
        text = tokenizer.decode(produced, skip_special_tokens=True)
        rows.append(asdict(judge(prompt, str(text), finished)))
    return rows
