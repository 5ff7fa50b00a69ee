"""`LLM`: the familiar face. Load a model, generate from prompts, read the texts.

A thin layer over `build` and `Engine`, which stay in reach as `llm.engine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Tokens
from collections.abc import Set as AbstractSet
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm.auto import tqdm

from workbench.async_engine import StreamDelta
from workbench.async_engine.inline import stream_inline
from workbench.build import build
from workbench.config import EngineConfig
from workbench.describe import Described
from workbench.engine import Engine
from workbench.errors import ConfigError, RequestError
from workbench.events import warn
from workbench.keywords import known_arguments, unknown_keyword
from workbench.lora import LoRAManager
from workbench.request import Prompt, RequestOutput
from workbench.sampling_params import IN_PARAMS, SamplingParams

if TYPE_CHECKING:
    from workbench.models.tokenizer import Tokenizer


Messages = Tokens[Mapping[str, Any]]


class LLM(Described):
    """A model with an engine around it.

    model: the name of an embedded model (`tinypy`), a checkpoint folder, or a hub id. Further
    keywords are the fields of `EngineConfig`. Use it as a context manager, or call `close()`, to
    free its memory.
    """

    def __init__(self, model: str | Path = "tinypy", **settings: Any) -> None:
        """Raise `ConfigError` for a bad setting, `CheckpointError` for a bad model."""
        names = [field.name for field in fields(EngineConfig)]
        for name, value in settings.items():
            if name not in names:
                raise unknown_keyword(ConfigError, f"LLM.{name}", value, names)
        self.config = EngineConfig(model=str(model), **settings)
        self.engine: Engine = build(self.config)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; `EngineClosed` after `close()`."""
        return self.engine.tokenizer

    @property
    def loras(self) -> LoRAManager:
        """The adapters: `llm.loras.load("sql", folder)`, while requests run too."""
        return self.engine.loras

    @known_arguments(RequestError, IN_PARAMS)
    def generate(
        self,
        prompts: Prompt | Tokens[Prompt],
        params: SamplingParams | list[SamplingParams] | None = None,
        *,
        lora: str | list[str | None] | None = None,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Generate for every prompt, all in flight together; return outputs in the prompts' order.

        prompts: one, or a list of them: texts, lists of token ids, embeddings [tokens, hidden], or
        lists of ids and embeddings. params: one for all, or one each. lora: the adapters they go
        through, `"sql"` or `"sql:0.5"`, one for all or one each; None is the base. An invalid one
        raises `RequestError` before any runs. An interrupt discards the batch. What fails only one
        request, such as its logits processor, ends that one with `finish_reason="error"`, and is
        warned of.
        """
        many = as_prompts(prompts)
        with tqdm(total=len(many), disable=not progress, unit="request") as bar:
            outs = self.engine.generate(many, params, lora=lora, on_finish=lambda _: bar.update())
        _warn_of_errors(outs)
        return outs

    @known_arguments(RequestError, IN_PARAMS)
    def chat(
        self,
        messages: Messages | Tokens[Messages],
        params: SamplingParams | list[SamplingParams] | None = None,
        *,
        lora: str | list[str | None] | None = None,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Generate the answer in a conversation, or one in each of several.

        messages: `[{"role": "user", "content": "…"}, …]`, or a list of such lists, written as a
        prompt by the tokenizer's chat template. The rest is as for `generate`. Raises
        `RequestError` where there is no template, or it refuses the messages.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            fix = "Pass token ids to `generate`."
            raise RequestError("messages", messages, "the engine has no tokenizer", fix)
        if not isinstance(messages, list | tuple) or not messages:
            fix = 'Give [{"role": "user", "content": "…"}].'
            raise RequestError("messages", messages, "is no list of messages", fix)
        many = [messages] if isinstance(messages[0], Mapping) else messages
        prompts = [tokenizer.chat(one) for one in many]
        return self.generate(prompts, params, lora=lora, progress=progress)

    @known_arguments(RequestError, IN_PARAMS)
    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, lora: str | None = None
    ) -> Iterator[StreamDelta]:
        """Generate for one prompt, yielding what each step adds: `print(delta.text, end="")`.

        The last delta's `output` is the whole. Nothing is queued before the first delta is asked
        for; leaving the loop aborts the request. Raises `RequestError` for what could not run.
        """
        return stream_inline(self.engine, prompt, params, lora=lora)

    def close(self) -> None:
        """Give the memory back."""
        self.engine.close()

    def __enter__(self) -> LLM:
        """Use as a context manager."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def describe(self) -> dict[str, Any]:
        """Return the engine's facts."""
        return {"name": self.config.model, **self.engine.describe()}


def _warn_of_errors(outputs: list[RequestOutput]) -> None:
    """Say that requests ended with an error: their text alone would not show it."""
    failed = [(o.request_id, c.error) for o in outputs for c in o.outputs if c.error is not None]
    if failed:
        request_id, error = failed[0]
        many = len({name for name, _ in failed})
        warn(
            f"{many} of {len(outputs)} requests ended with an error. {request_id}: {error} "
            "(see `output.outputs[0].error`)",
            stacklevel=5,
        )


def as_prompts(prompts: Prompt | Tokens[Prompt]) -> list[Prompt]:
    """Return a list of prompts: a bare text, embeddings or a list with token ids counts as one."""
    if isinstance(prompts, str | Tensor):
        return [prompts]
    if isinstance(prompts, Mapping | AbstractSet) or not isinstance(prompts, Iterable):
        raise RequestError("prompts", prompts, "is not a list of prompts", "Put it into a list.")
    items = list(prompts)
    if not items:
        raise RequestError("prompts", prompts, "is empty", "Give at least one prompt.")
    if any(isinstance(item, int) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]
