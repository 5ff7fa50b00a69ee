"""The peer on a CPU: transformers' `generate`, given the same token ids and lengths.

Unequal requests go through it as it is used in practice: one batch padded on the left, run until
the longest output is done; only the tokens asked for count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from workbench.bench.workloads import Job


class HuggingFace:
    """A checkpoint in transformers, ready to run jobs greedily."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.pad = self.model.config.pad_token_id or 0

    @torch.inference_mode()
    def run(self, jobs: list[Job], **settings: Any) -> list[list[int]]:
        """Return each job's new token ids. settings: more for `generate`."""
        longest = max(len(job.prompt) for job in jobs)
        ids = torch.full((len(jobs), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):
            ids[row, longest - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[row, longest - len(job.prompt) :] = 1
        steps = max(job.num_output for job in jobs)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=self.pad,
            **settings,
        )
        new = out[:, longest:].tolist()
        return [row[: job.num_output] for row, job in zip(new, jobs, strict=True)]
