"""Train a draft head beside any `DecoderLM`: from a notebook, or by `workbench train medusa` etc.

    head, log = train_head(model, "eagle3", texts, minutes=2, prompts=prompts)

A run is as long as its budget, resumes from `out/state.pt`, and shows its loss and acceptance as it
goes. The target is frozen and runs as in the engine; nothing is shipped from here by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.atomic_files import atomic_write
from workbench.config import require_positive
from workbench.errors import ConfigError
from workbench.interrupts import shielded
from workbench.models import DecoderLM
from workbench.speculation.heads import Eagle3Head, MedusaHead
from workbench.train.heads_acceptance import Drafter
from workbench.train.heads_capture import Captured, capture, training_backend
from workbench.train.heads_data import Texts, TextWindows, token_stream
from workbench.train.heads_log import Evaluation, Row, RunLog
from workbench.train.heads_tasks import Task, new_task
from workbench.train.optimizer import OptimizerName, new_optimizers
from workbench.train.schedule import Progress, learning_rate

_SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """What a run is made of; it must stay the same when a run is resumed.

    batch x length tokens a step, of which `own_share` are of the model's own rows where there are
    any. rate: peak learning rate, after a linear warm-up over that part of the budget, then a
    cosine to 0. The defaults are for small models; Medusa's paper has 1e-3, EAGLE-3's 5e-5 for
    heads of 8 B models. optimizer: `muon` takes the matrices that are no table of tokens.
    autocast: multiply in bfloat16; weights and their updates stay in float32. distinct: so many
    batches over and over, whose states the target makes once and which are kept (None: every batch
    is new): where the target's pass is what costs, as on a CPU.
    """

    batch: int = 16
    length: int = 256
    rate: float = 1e-3
    warmup: float = 0.02
    weight_decay: float = 0.01
    max_grad_norm: float = 0.5
    optimizer: OptimizerName = "adamw"
    autocast: bool = False
    own_share: float = 0.5
    seed: int = 0
    distinct: int | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for sizes that are none."""
        if self.distinct is not None:
            require_positive("HeadSettings.distinct", self.distinct)
        for name in ("batch", "length"):
            require_positive(f"HeadSettings.{name}", getattr(self, name))
        if not 0 < self.rate < 1:
            raise ConfigError(
                "HeadSettings.rate", self.rate, "must be between 0 and 1", "Lower it."
            )


@dataclass(slots=True)
class HeadRun:
    """A run's state."""

    model: DecoderLM
    task: Task
    windows: TextWindows
    settings: HeadSettings
    optimizers: list[torch.optim.Optimizer]
    progress: Progress = field(default_factory=Progress)
    step: int = 0
    log: list[Row] = field(default_factory=list)
    kept: dict[int, Captured] = field(default_factory=dict)  # of `distinct` batches, by number

    def batch(self) -> Captured:
        """Return what the target makes of the step's batch."""
        settings = self.settings
        number = self.step if settings.distinct is None else self.step % settings.distinct
        seen = self.kept.get(number)
        if seen is None:
            tokens = self.windows.batch(number, settings.batch)
            seen = capture(self.model, tokens, self.task.needs, training_backend(self.model))
            if settings.distinct is not None:
                self.kept[number] = seen
        return seen

    def begin_as(self, other: nn.Module) -> None:
        """Take over another head's weights; raise `ConfigError` for one of other shapes."""
        ours, theirs = self.task.module.state_dict(), other.state_dict()
        differing = ours.keys() ^ theirs.keys()
        differing |= {
            name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape
        }
        if differing:
            fix = "Give the options that it was trained with."
            raise ConfigError("begin_as", sorted(differing)[0], "differs in shape", fix)
        self.task.module.load_state_dict(theirs)

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        state = {
            "kind": self.task.kind,
            "settings": asdict(self.settings),
            "weights": self.task.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "step": self.step,
            "log": self.log,
        }
        with atomic_write(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Go on from the state at `path`; raise `ConfigError` for another run's."""
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        ours = {"kind": self.task.kind, "settings": asdict(self.settings)}
        shapes = {name: tuple(t.shape) for name, t in self.task.module.state_dict().items()}
        theirs = {name: tuple(t.shape) for name, t in state["weights"].items()}
        for name, mine in {**ours, "shapes": shapes}.items():
            if (theirs if name == "shapes" else state[name]) != mine:
                fix = "Give another `out`, or the settings it was begun with."
                raise ConfigError(f"{path}: {name}", mine, "is of another run", fix)
        self.task.module.load_state_dict(state["weights"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self.step, self.log = state["step"], state["log"]


def train_head(
    model: DecoderLM,
    kind: str,
    texts: Texts,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    out: str | Path | None = None,
    settings: HeadSettings | None = None,
    prompts: Sequence[str | Sequence[int]] | Evaluation | None = None,
    callback: Callable[[Row], None] | None = None,
    log_every: float = 5.0,
    measure_every: float = 30.0,
    progress: bool = True,
    own_rows: Tensor | None = None,
    begin_as: Drafter | None = None,
    **options: Any,
) -> tuple[MedusaHead | Eagle3Head | DecoderLM, list[Row]]:
    """Train a head of `kind` (medusa, eagle3, draft) for `model`; return it and its log.

    texts: strings, or a corpus's token ids. own_rows [rows, length] of what the model wrote itself
    (`heads_writing`) are mixed in. Budget: `steps`, or `minutes` in the loop over all calls. out: a
    folder to resume from and to save to, also when interrupted. prompts: what acceptance is
    measured on, at the start, every `measure_every` seconds, and at the end. callback: called with
    each row of the log, which comes every `log_every` seconds: step, loss, agreed (by head or
    pass), rate, and acceptance (tokens a pass) where it was measured. begin_as: a head of the same
    kind and shapes whose weights a fresh run begins with. options: of the kind, see `heads_tasks`.

    Raises `ConfigError`, or `FloatingPointError` if the loss is no number any more.
    """
    if (steps is None) == (minutes is None):
        raise ConfigError("steps", steps, "give either steps or minutes", "Give one of the two.")
    settings = settings or HeadSettings()
    run = new_run(model, kind, texts, settings, own_rows, **options)
    if begin_as is not None:
        run.begin_as(begin_as)
    state = None if out is None else Path(out) / "state.pt"
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
        if state.exists():
            run.load(state)
    log = RunLog(run, _evaluation(model, prompts), callback, log_every, measure_every)
    with tqdm(total=100, disable=not progress, unit="%", desc=f"{kind} head") as bar:
        _train(run, steps, minutes, log, bar, state)
    run.task.module.requires_grad_(False)
    return run.task.module.eval(), run.log


def new_run(
    model: DecoderLM,
    kind: str,
    texts: Texts,
    settings: HeadSettings,
    own_rows: Tensor | None = None,
    **options: Any,
) -> HeadRun:
    """Return a run at step 0."""
    task = new_task(kind, model, settings.seed, **options)
    task.module.requires_grad_(True)
    windows = TextWindows(
        token_stream(texts, model),
        settings.length,
        settings.seed,
        rows=own_rows,
        share=settings.own_share,
    )
    pairs = list(task.module.named_parameters())
    hidden = {name for name, _ in pairs if not name.startswith(("head", "embedding"))}
    optimizers = new_optimizers(pairs, hidden, settings.optimizer, settings.weight_decay)
    return HeadRun(model, task, windows, settings, optimizers)


def take_step(run: HeadRun) -> tuple[Tensor, Tensor]:
    """Run one optimizer step; return its loss and what agreed, without waiting for them."""
    settings = run.settings
    narrow = torch.autocast(run.model.device.type, torch.bfloat16, enabled=settings.autocast)
    with torch.enable_grad(), _fast_float32(), narrow:
        loss, agreed = run.task.loss(run.batch())
        loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.task.module.parameters(), settings.max_grad_norm)
    rate = learning_rate(run.progress.fraction, settings.rate, settings.warmup)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return loss.detach(), agreed


@contextmanager
def _fast_float32() -> Iterator[None]:
    """Let a GPU's tensor cores multiply float32, in which heads are trained, for this block."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _train(
    run: HeadRun,
    steps: int | None,
    minutes: float | None,
    log: RunLog,
    bar: Any,
    state: Path | None,
) -> None:
    """Step until the budget is used up; tell and save on the way, and when interrupted."""
    tokens = run.settings.batch * run.settings.length
    last = saved = time.perf_counter()
    between_steps = True
    try:
        log.begin(bar)
        while not run.progress.done:
            between_steps = False
            with shielded():  # an interrupt waits: a step is either whole or not begun
                log.add(*take_step(run))
                now = time.perf_counter()
                if steps is not None:
                    run.progress.advance_tokens(tokens, steps * tokens)
                    run.progress.seconds += now - last
                else:
                    assert minutes is not None
                    run.progress.advance_seconds(now - last, 1 / (60 * minutes))
                run.progress.tokens += tokens
                between_steps = True
            log.tell_if_due(bar)
            if state is not None and now - saved > _SAVE_SECONDS:
                run.save(state)
                saved = now
            last = now  # what telling and saving took counts as well
    finally:
        if state is not None and between_steps:
            run.save(state)


def _evaluation(
    model: DecoderLM, prompts: Sequence[str | Sequence[int]] | Evaluation | None
) -> Evaluation | None:
    if prompts is None or isinstance(prompts, Evaluation):
        return prompts
    return Evaluation.of(model, prompts)
