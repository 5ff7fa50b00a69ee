"""`train_lora`: train a LoRA adapter with PEFT on a checkable task, from a notebook or a program.

    run = train_lora("sql", "runs/sql", seconds=60)       # a folder that PEFT and the engine read
    engine.loras.load("sql", "runs/sql")

The loss counts the answer's tokens alone. The base is transformers' model in float32, frozen; on a
GPU it multiplies in bfloat16. LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from workbench.data.tasks import get_task, task_examples
from workbench.errors import ConfigError
from workbench.models.resolve import resolve_model
from workbench.models.tokenizer import Tokenizer
from workbench.train.lora_data import IGNORED, EncodedExamples, encode_examples
from workbench.train.model import window_hidden
from workbench.train.schedule import Progress, learning_rate

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """How an adapter is trained: `alpha / rank` scales it, `examples` are what it may see."""

    rank: int = 8
    alpha: float = 16.0
    target_modules: str | tuple[str, ...] = "all-linear"
    batch: int = 64
    lr: float = 2e-3
    examples: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `ConfigError` for sizes that are not positive."""
        for name in ("rank", "alpha", "batch", "lr", "examples"):
            _require_positive(name, getattr(self, name))


@dataclass(slots=True)
class LoRARun:
    """A finished training: the adapter's folder, its settings, and the log of its loss."""

    task: str
    folder: Path
    settings: LoRASettings
    device: str
    num_parameters: int
    steps: int = 0
    log: list[Row] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """The logged losses: nats a token of the answers, mean since the row before."""
        return [row["loss"] for row in self.log]


def train_lora(
    task: str,
    folder: str | Path,
    *,
    model: str | Path = "tinypy",
    seconds: float | None = None,
    steps: int | None = None,
    settings: LoRASettings | None = None,
    callback: Callable[[Row], None] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> LoRARun:
    """Train an adapter for a task, and write it to `folder` as PEFT does, in bfloat16.

    seconds, steps: the budget, one of the two. callback: is given each row of the log (step,
    seconds, loss, rate), some twice a second. Raises `ConfigError` for a bad setting or budget,
    `InvalidValue` for an unknown task.
    """
    get_task(task)
    if (seconds is None) == (steps is None):
        raise ConfigError("seconds", seconds, f"with {steps=}", "Give one of the two.")
    if seconds is not None:
        _require_positive("seconds", seconds)
    else:
        _require_positive("steps", steps or 0)
    settings = settings or LoRASettings()
    place = torch.device(_device(device))
    source = resolve_model(model)
    tokenizer = Tokenizer.from_folder(source)
    data = encode_examples(task_examples(task, settings.examples, settings.seed), tokenizer)
    peft_model = _with_adapter(source, settings, place)
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else _cpu_name()
    run = LoRARun(task, Path(folder), settings, name, sum(p.numel() for p in trained))
    loop = _Loop(peft_model, trained, data, run, seconds, steps, callback)
    with tqdm(total=100, disable=not progress, desc=f"lora {task}", unit="%") as bar:
        loop.go(bar)
    _save(peft_model, run.folder, str(model))
    return run


def answer_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy in nats over the labelled positions.

    model: a `LlamaForCausalLM`, with or without adapters in it; ids, labels: [rows, tokens]. The
    head runs at the labelled positions alone.
    """
    hidden = window_hidden(model, ids)
    wanted = labels != IGNORED
    logits = model.lm_head(hidden[wanted]).float()
    return torch.nn.functional.cross_entropy(logits, labels[wanted])


class _Loop:
    """Steps of AdamW under a warm-up and a cosine, until the budget is used up."""

    def __init__(
        self,
        model: Any,
        trained: list[torch.nn.Parameter],
        data: EncodedExamples,
        run: LoRARun,
        seconds: float | None,
        steps: int | None,
        callback: Callable[[Row], None] | None,
    ) -> None:
        self.llama, self.trained, self.data, self.run = model.base_model.model, trained, data, run
        self.seconds, self.steps, self.callback = seconds, steps, callback
        self.device = trained[0].device
        self.optimizer = torch.optim.AdamW(trained, run.settings.lr, weight_decay=0.0)
        self.progress = Progress()

    def go(self, bar: Any) -> None:
        """Train; a row of the log about twice a second, and one at the end."""
        begin = logged = time.perf_counter()
        losses: list[Tensor] = []
        while not self.progress.done:
            losses.append(self._step())
            if len(losses) > 1:
                losses[-2].item()  # the device is at most one step behind the clock
            now = time.perf_counter()
            self._advance(now - begin)
            if self.progress.done or now - logged > 0.5:
                self._tell(losses, bar)
                losses, logged = [], now

    def _step(self) -> Tensor:
        settings, run = self.run.settings, self.run
        rate = learning_rate(self.progress.fraction, settings.lr, warmup=0.04)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ids, labels = self.data.batch(run.steps, settings.batch, settings.seed, self.device)
        narrow = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            loss = answer_loss(self.llama, ids, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        run.steps += 1
        return loss.detach()

    def _advance(self, elapsed: float) -> None:
        if self.steps is not None:
            self.progress.advance_tokens(1, self.steps)
            self.progress.tokens += 1
            self.progress.seconds = elapsed
            return
        assert self.seconds is not None
        self.progress.fraction = min(1.0, elapsed / self.seconds)
        self.progress.seconds = elapsed

    def _tell(self, losses: list[Tensor], bar: Any) -> None:
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.run.steps}: lower the rate")
        rate = self.optimizer.param_groups[0]["lr"]
        row = {
            "step": self.run.steps,
            "seconds": round(self.progress.seconds, 2),
            "loss": round(loss, 5),
            "rate": rate,
        }
        self.run.log.append(row)
        bar.set_postfix(loss=f"{loss:.4f}", step=self.run.steps)
        bar.update(int(100 * self.progress.fraction) - bar.n)
        if self.callback is not None:
            self.callback(row)


def _with_adapter(source: Path, settings: LoRASettings, device: torch.device) -> Any:
    """Return PEFT's model: the checkpoint's with a fresh adapter, which alone is trained."""
    torch.manual_seed(settings.seed)
    base = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
    )
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # PEFT asks transformers by a name that goes out of use
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base.to(device), config).train()


def _save(model: Any, folder: Path, base: str) -> None:
    """Have PEFT write the adapter in bfloat16, and name the base as a user would."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a card


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(name, value, "must be above 0", "Raise it.")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _cpu_name() -> str:
    return platform.processor() or "a CPU"
