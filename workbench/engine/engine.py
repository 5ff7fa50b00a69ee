"""`Engine`: takes its parts, and steps them.

    schedule ─► plan ─► run ─► logits ─► sample ─► tokens ─► commit

Between two steps everything may be looked at, changed or swapped. The engine owns no tensors and
makes no decisions: it connects a scheduler, a runner and a sampler, and keeps the list of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Tokens
from itertools import count
from typing import Any

from workbench.batch import SampledTokens
from workbench.cache import KVCache
from workbench.describe import Described
from workbench.engine.admission import check_splittable, make_request, make_sequence
from workbench.engine.checks import check_parts, check_seed, pair
from workbench.engine.output import make_output
from workbench.engine.record import Laps, StepRecord
from workbench.errors import ConfigError, EngineClosed, RequestError, UnknownRequest
from workbench.errors import RequestFinished as AlreadyFinished
from workbench.events import EventBus, RequestAdded, StepDone
from workbench.interrupts import shielded
from workbench.models import DecoderLM
from workbench.ops import get_backend
from workbench.request import RequestOutput, SamplingParams, Sequence
from workbench.run import Runner
from workbench.sample import Sampler
from workbench.scheduler import Policy, Scheduler, get_policy


class Engine(Described):
    """An LLM engine made of parts that were made elsewhere (by hand, or by `workbench.build`).

    The parts are public attributes and share `bus`. `add` queues a request, `step` runs one
    iteration, `run` steps until nothing is left, `stream` and `generate` are loops over `step`.
    `seed`: base of the seeds of requests that bring none.
    """

    def __init__(
        self,
        model: DecoderLM,
        cache: KVCache,
        scheduler: Scheduler,
        runner: Runner,
        sampler: Sampler | None = None,
        *,
        seed: int | None = None,
        bus: EventBus | None = None,
    ) -> None:
        """Raise `ConfigError` if the parts were not made for each other."""
        check_parts(model, cache, scheduler, runner)
        check_seed(seed)
        self.model, self.cache, self.scheduler, self.runner = model, cache, scheduler, runner
        self.sampler = sampler or Sampler()
        self.tokenizer = model.tokenizer
        self.seed = seed
        self.bus = bus or EventBus()
        cache.blocks.bus = scheduler.bus = self.bus
        self.closed = False
        self._sequences: dict[str, Sequence] = {}
        self._num_added = 0

    # --- the step -----------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """Run one iteration and return its record; with nothing to do, an empty one.

        Whatever fails or interrupts it, no block leaks and the next `step()` does the work again.
        """
        self._require_between_steps("step")
        laps = Laps()
        plan = self.scheduler.schedule()
        laps.lap("schedule")
        logits = self.runner.run(plan) if plan else None
        laps.lap("run")
        rows = [plan.sequences[row] for row in plan.sampled]
        sampled = self.sampler(logits, rows) if logits is not None and rows else SampledTokens([])
        laps.lap("sample")
        new = [(s, t) for s, t in zip(rows, sampled.token_ids, strict=True) if not s.finished]
        with shielded():  # a step that is committed is also told
            finished = self.scheduler.commit(plan, sampled)
            laps.lap("commit")
            if self.bus:
                ids = tuple((sequence.sequence_id, token) for sequence, token in new)
                free = self.cache.blocks.num_free
                self.bus.emit(StepDone(plan.step, ids, laps.seconds, free))
        tokens = [(sequence.request.request_id, token) for sequence, token in new]
        return StepRecord(plan, tokens, finished, laps.seconds)

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return self.scheduler.num_unfinished > 0

    def run(self, max_steps: int | None = None) -> list[StepRecord]:
        """Step until nothing is left, or `max_steps` times; return the records."""
        self.require_open()
        records: list[StepRecord] = []
        while self.has_work and (max_steps is None or len(records) < max_steps):
            records.append(self.step())
        return records

    # --- requests -----------------------------------------------------------------------------

    def add(
        self,
        prompt: str | Tokens[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        namespace: str = "",
    ) -> str:
        """Queue a request and return its id.

        prompt: text, or token ids. priority: used by the `priority` policy. namespace: keeps prefix
        reuse apart from other namespaces. Raises `RequestError` for anything that could not run to
        its end; nothing is queued then.
        """
        self.require_open()
        if request_id is None:
            names = (f"r{number}" for number in count(self._num_added))
            request_id = next(name for name in names if name not in self._sequences)
        params = SamplingParams() if params is None else params
        request = make_request(
            request_id, prompt, params, priority, namespace, self.model, self.tokenizer
        )
        if request_id in self._sequences:
            raise RequestError("request_id", request_id, "already in use", "Choose another.")
        check_splittable(len(request.prompt_token_ids), self.scheduler.config)
        config = self.model.config
        sequence = make_sequence(
            request, self._num_added, config, self.cache, self.tokenizer, self.seed
        )
        with shielded():
            self._num_added += 1
            self._sequences[request_id] = sequence
            self.scheduler.add(sequence)
            if self.bus:
                ids = self.scheduler.step, request_id, sequence.sequence_id
                self.bus.emit(RequestAdded(*ids, sequence.num_prompt_tokens, params.max_tokens))
        return request_id

    def abort(self, request_id: str) -> RequestOutput:
        """End a request between steps, keeping what it made; return its output.

        Raises `UnknownRequest`, or `RequestFinished` if it has already ended.
        """
        self._require_between_steps("abort")
        sequence = self._sequence(request_id)
        if sequence.finished:
            raise AlreadyFinished(request_id, str(sequence.finish_reason))
        self.scheduler.finish(sequence, "abort")
        return self.output(request_id)

    def output(self, request_id: str) -> RequestOutput:
        """Return what a request has produced so far."""
        return make_output(self._sequence(request_id), self.tokenizer)

    def forget(self, request_id: str) -> RequestOutput:
        """Return a finished request's output and drop the engine's record of it.

        Raises `RequestError` if it is still running: abort it first.
        """
        output = self.output(request_id)
        if not output.finished:
            raise RequestError("request_id", request_id, "is still running", "Abort it first.")
        del self._sequences[request_id]
        return output

    @property
    def requests(self) -> dict[str, Sequence]:
        """Every request the engine knows, by id (a copy)."""
        return dict(self._sequences)

    def _sequence(self, request_id: str) -> Sequence:
        self.require_open()
        if request_id not in self._sequences:
            raise UnknownRequest(request_id, self._sequences)
        return self._sequences[request_id]

    # --- loops over step ----------------------------------------------------------------------

    def stream(self, request_id: str) -> Iterator[RequestOutput]:
        """Step the engine until this request ends, yielding its output after each of its tokens."""
        sequence = self._sequence(request_id)
        seen = sequence.num_output_tokens
        while not sequence.finished:
            self.step()
            if sequence.num_output_tokens > seen or sequence.finished:
                seen = sequence.num_output_tokens
                yield self.output(request_id)

    def generate(
        self,
        prompts: Iterable[str | Tokens[int]],
        params: SamplingParams | list[SamplingParams] | None = None,
        *,
        on_finish: Callable[[Sequence], Any] | None = None,
    ) -> list[RequestOutput]:
        """Run these prompts to their end, all in flight together, and return outputs in order.

        Either all are queued or none: a bad one raises before any runs. `on_finish` is called with
        each of these sequences as it ends.
        """
        self._require_between_steps("generate")
        request_ids: list[str] = []
        try:
            for prompt, own in pair(prompts, params):
                with shielded():  # what is added is also noted
                    request_ids.append(self.add(prompt, own))
            self._run_until_finished(set(request_ids), on_finish)
            return [self.forget(request_id) for request_id in request_ids]
        except BaseException:
            self._discard(request_ids)
            raise

    def _run_until_finished(
        self, request_ids: set[str], on_finish: Callable[[Sequence], Any] | None
    ) -> None:
        while request_ids and self.has_work:  # an observer may have aborted some
            for sequence in self.step().finished:
                if sequence.request.request_id in request_ids:
                    request_ids.remove(sequence.request.request_id)
                    if on_finish is not None:
                        on_finish(sequence)

    def _discard(self, request_ids: list[str]) -> None:
        with shielded():
            for request_id in request_ids:
                if (sequence := self._sequences.pop(request_id, None)) is not None:
                    self.scheduler.finish(sequence, "abort")

    # --- changing and ending ------------------------------------------------------------------

    def swap(
        self,
        *,
        scheduler_policy: str | Policy | None = None,
        sampler: Sampler | None = None,
        backend: str | None = None,
    ) -> None:
        """Replace parts between two steps, while requests run; `ConfigError` if unknown."""
        self.require_open()
        policy = None if scheduler_policy is None else get_policy(scheduler_policy)
        new_backend = None if backend is None else get_backend(backend, self.runner.device)
        if sampler is not None and not callable(sampler):
            raise ConfigError("sampler", sampler, "is not callable", "Pass a `Sampler`.")
        self.scheduler.policy = policy or self.scheduler.policy
        self.sampler = sampler or self.sampler
        self.runner.backend = new_backend or self.runner.backend

    def close(self) -> None:
        """Abort everything and give the memory back; idempotent."""
        if self.closed:
            return
        self._require_between_steps("close")
        with shielded():
            for sequence in list(self._sequences.values()):
                self.scheduler.finish(sequence, "abort")
            self.closed = True
            self._sequences.clear()
            self.cache.close()
            self.runner.close()
            del self.model, self.runner, self.sampler

    def __enter__(self) -> Engine:
        """Use the engine as a context manager: it is closed at the end."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def require_open(self) -> None:
        """Raise `EngineClosed` after `close()`."""
        if self.closed:
            raise EngineClosed("the engine was closed; build a new one")

    def _require_between_steps(self, action: str) -> None:
        self.require_open()
        self.scheduler.books.require_closed(action)

    def describe(self) -> dict[str, Any]:
        """Return the parts and the queues."""
        if self.closed:
            return {"closed": True}
        return {
            "model": self.model.config.architecture,
            "step": self.scheduler.step,
            "waiting": len(self.scheduler.waiting),
            "running": len(self.scheduler.running),
            "blocks used": f"{self.cache.blocks.num_used}/{self.cache.num_blocks}",
            "backend": self.runner.backend.name,
            "device": self.runner.device,
        }
