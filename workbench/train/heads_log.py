"""What a head's training says of itself: rows of loss, agreement and acceptance.

Written by the loop of `heads`; read by a notebook's callback, the progress bar and the state file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.speculation.heads import Paths, TreeShape
from workbench.train.heads_acceptance import Acceptance, measure_acceptance
from workbench.train.heads_data import continuations
from workbench.train.heads_tasks import Task
from workbench.train.schedule import Progress

Row = dict[str, Any]


class Run(Protocol):
    """What is told of a run."""

    model: DecoderLM
    task: Task
    optimizers: list[torch.optim.Optimizer]
    progress: Progress
    step: int
    log: list[Row]


@dataclass(slots=True)
class Evaluation:
    """What acceptance is measured on: prompts of token ids and the target's greedy text."""

    prompts: list[list[int]]
    texts: list[list[int]]
    depth: int = 4
    tree: Paths | TreeShape | None = None

    @classmethod
    def of(
        cls, model: DecoderLM, prompts: Sequence[str | Sequence[int]], max_tokens: int = 64
    ) -> Evaluation:
        """Return one of prompts, texts or ids, with what the model says to them."""
        ids = [_ids(prompt, model) for prompt in prompts]
        return cls(ids, continuations(model, ids, max_tokens))


class RunLog:
    """What a run says of itself: rows of its log, and when the next is due."""

    def __init__(
        self,
        run: Run,
        evaluation: Evaluation | None,
        callback: Callable[[Row], None] | None,
        log_every: float,
        measure_every: float,
    ) -> None:
        self.run, self.evaluation, self.callback = run, evaluation, callback
        self.log_every, self.measure_every = log_every, measure_every
        self.losses: list[torch.Tensor] = []
        self.agreed: list[torch.Tensor] = []
        self.logged = self.measured = time.perf_counter()

    def begin(self, bar: Any) -> None:
        """Show how far the run has come; of a fresh one, the first row."""
        bar.update(int(100 * self.run.progress.fraction))
        if self.run.step == 0:
            self.tell(bar)

    def add(self, loss: torch.Tensor, agreed: torch.Tensor) -> None:
        """Take in a step's figures; on a GPU, wait until it is at most one step behind."""
        self.losses.append(loss)
        self.agreed.append(agreed)
        if len(self.losses) > 1:
            self.losses[-2].item()

    def tell_if_due(self, bar: Any) -> None:
        """Add a row if it is time, or if the run has ended."""
        if self.run.progress.done or time.perf_counter() - self.logged > self.log_every:
            self.tell(bar)

    def tell(self, bar: Any) -> None:
        """Add a row to the log, with acceptance where that is due."""
        run, now = self.run, time.perf_counter()
        row: Row = {"step": run.step, "tokens": run.progress.tokens}
        row["seconds"] = round(run.progress.seconds, 2)
        if self.losses:
            loss = float(torch.stack(self.losses).mean())
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {run.step}: lower the rate")
            row["loss"] = round(loss, 4)
            row["agreed"] = [round(x, 4) for x in torch.stack(self.agreed).mean(0).tolist()]
            row["rate"] = run.optimizers[0].param_groups[0]["lr"]
        begun_or_done = run.step == 0 or run.progress.done
        if self.evaluation and (begun_or_done or now - self.measured > self.measure_every):
            row["acceptance"] = round(self._measure(self.evaluation).length, 4)
            self.measured = time.perf_counter()
        self.losses, self.agreed, self.logged = [], [], time.perf_counter()
        run.log.append(row)
        shown = {key: row[key] for key in ("loss", "acceptance") if key in row}
        bar.set_postfix(shown)
        bar.update(int(100 * run.progress.fraction) - bar.n)
        if self.callback is not None:
            self.callback(row)

    def _measure(self, on: Evaluation) -> Acceptance:
        head = self.run.task.module
        return measure_acceptance(
            head, self.run.model, on.prompts, depth=on.depth, texts=on.texts, tree=on.tree
        )


def _ids(prompt: str | Sequence[int], model: DecoderLM) -> list[int]:
    if not isinstance(prompt, str):
        return list(prompt)
    if model.tokenizer is None:
        fix = "Give prompts as token ids."
        raise ConfigError("prompts", prompt, "the model has no tokenizer", fix)
    return list(model.tokenizer.encode(prompt))
