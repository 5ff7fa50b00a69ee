"""The training loop: one run over as many calls as it takes.

Called by `workbench.train.base`. The loop owns step number, progress and log. It ends when the
budget or the call's own time is used up, and leaves a state from which the next call goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from workbench.atomic_files import atomic_write
from workbench.train.batches import Windows
from workbench.train.model import window_loss
from workbench.train.optimizer import MasterWeights
from workbench.train.schedule import Progress, fraction_per_second, learning_rate

LossFunction = Callable[[LlamaForCausalLM, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What a run is made of; all of it must stay the same when a run is resumed."""

    batch_windows: int
    micro_windows: int
    peak_rate: float
    warmup: float
    max_tokens: int | None


@dataclass(slots=True)
class CallLimits:
    """What bounds this call.

    `stop_at` is on the clock of `time.perf_counter`; `seconds_total` is the run's budget of
    stepping over all calls; with `finish` the rest of the schedule has to fit into this call.
    """

    stop_at: float
    seconds_total: float
    finish: bool = False
    log_seconds: float = 10.0
    eval_seconds: float = 60.0
    save_seconds: float = 180.0


@dataclass(slots=True)
class Run:
    """A run's state: model and masters, and how far it has come."""

    model: LlamaForCausalLM
    weights: MasterWeights
    windows: Windows
    settings: LoopSettings
    progress: Progress = field(default_factory=Progress)
    step: int = 0
    compiled: LossFunction = window_loss
    log: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        state = {
            "weights": self.weights.state_dict(),
            "progress": asdict(self.progress),
            "step": self.step,
            "log": self.log,
        }
        with atomic_write(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Go on from the state at `path`."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.weights.load_state_dict(state["weights"])
        self.progress = Progress(**state["progress"])
        self.step, self.log = state["step"], state["log"]


def train(
    run: Run, limits: CallLimits, held_out: tuple[torch.Tensor, torch.Tensor], state: Path
) -> None:
    """Step until the budget or the call's time is used up; save to `state` now and then."""
    settings = run.settings
    tokens_per_step = settings.batch_windows * run.windows.context
    last = logged = evaluated = saved = time.perf_counter()
    first_step = True
    losses: list[torch.Tensor] = []
    while not run.progress.done and time.perf_counter() < limits.stop_at:
        rate = learning_rate(run.progress.fraction, settings.peak_rate, settings.warmup)
        losses.append(_step(run, rate))
        if len(losses) > 1:
            losses[-2].item()  # the device is never more than one step behind the clock
        now = time.perf_counter()
        if first_step:  # it waits for the compiler, which is no training
            losses[-1].item()
            now = last = logged = time.perf_counter()
            tokens_logged = run.progress.tokens + tokens_per_step
            first_step = False
        if settings.max_tokens:
            run.progress.advance_tokens(tokens_per_step, settings.max_tokens)
            run.progress.seconds += now - last
        else:
            left = limits.stop_at - last if limits.finish else math.inf
            rate_of_progress = fraction_per_second(run.progress, limits.seconds_total, left)
            run.progress.advance_seconds(now - last, rate_of_progress)
        run.progress.tokens += tokens_per_step
        last = now
        if now - logged >= limits.log_seconds or run.progress.done:
            speed = (run.progress.tokens - tokens_logged) / max(1e-9, now - logged)
            row = _row(run, losses, rate, speed)
            losses.clear()
            if now - evaluated >= limits.eval_seconds or run.progress.done:
                row["held_out_loss"] = held_out_losses(run, held_out)
                evaluated = last = time.perf_counter()
            run.log.append(row)
            print(json.dumps(row), flush=True)
            logged, tokens_logged = time.perf_counter(), run.progress.tokens
        if now - saved >= limits.save_seconds:
            run.save(state)
            saved = last = logged = time.perf_counter()
            tokens_logged = run.progress.tokens
    run.save(state)


@torch.no_grad()
def held_out_losses(
    run: Run, held_out: tuple[torch.Tensor, torch.Tensor], batch: int = 16
) -> dict[str, float]:
    """Mean loss on held-out windows of the raw weights and of their moving average."""
    results = {}
    for name, weights in (("raw", run.weights.masters), ("ema", run.weights.averages)):
        run.weights.load_into_model(list(weights))
        losses = [
            float(window_loss(run.model, inputs, targets)) * len(inputs)
            for inputs, targets in zip(
                torch.split(held_out[0], batch), torch.split(held_out[1], batch), strict=True
            )
        ]
        results[name] = round(sum(losses) / len(held_out[0]), 5)
    run.weights.load_into_model(list(run.weights.masters))
    return results


def _step(run: Run, rate: float) -> torch.Tensor:
    """One optimizer step over the batch; returns its mean loss without waiting for it."""
    settings = run.settings
    first = run.step * settings.batch_windows
    total = torch.zeros((), device=run.windows.tokens.device)
    for done in range(0, settings.batch_windows, settings.micro_windows):
        count = min(settings.micro_windows, settings.batch_windows - done)
        inputs, targets = run.windows.batch(first + done, count)
        loss = run.compiled(run.model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        share = count / settings.batch_windows
        run.weights.accumulate(share)
        total += loss.detach().float() * share
    run.weights.step(rate, run.step)
    run.step += 1
    return total


def _row(run: Run, losses: list[torch.Tensor], rate: float, speed: float) -> dict[str, Any]:
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {run.step}: lower --lr")
    return {
        "step": run.step,
        "tokens": run.progress.tokens,
        "fraction": round(run.progress.fraction, 5),
        "loss": round(loss, 4),
        "lr": round(rate, 7),
        "tokens_per_second": round(speed),
        "seconds": round(run.progress.seconds, 1),
    }
