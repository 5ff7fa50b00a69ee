"""`Engine`: takes its parts, and steps them.

    schedule ─► plan ─► run ─► logits ─► sample ─► tokens ─► commit

Between two steps everything may be looked at, changed or swapped. The engine owns no tensors and
makes no decisions: it connects scheduler, runner and sampler, and keeps the list of requests.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cache import DroppingPolicy, EvictionPolicy, KVCache
from workbench.config import SchedulerConfig
from workbench.describe import Described
from workbench.engine import checks, loops, time_travel
from workbench.engine.admission import make_request, make_sequence
from workbench.engine.brancher import Brancher
from workbench.engine.description import describe
from workbench.engine.guides import GuideDesk
from workbench.engine.output import make_output
from workbench.engine.overlap import Overlap
from workbench.engine.rebalancing import Balance, Rebalancer
from workbench.engine.record import Laps, StepRecord, new_tokens, step_done
from workbench.engine.requests import RequestBook, RequestRecord
from workbench.engine.speculator import Speculator
from workbench.engine.state import EngineState
from workbench.engine.strategies import make_strategy
from workbench.engine.swapping import replacing
from workbench.errors import ConfigError, EngineClosed, RequestError
from workbench.errors import RequestFinished as AlreadyFinished
from workbench.events import EventBus
from workbench.guided import GrammarCompiler
from workbench.interrupts import shielded
from workbench.keywords import known_arguments
from workbench.lora import LoRAManager
from workbench.models import DecoderLM
from workbench.models.tokenizer import Tokenizer
from workbench.request import Prompt, RequestOutput
from workbench.retention import Retention
from workbench.run import Runner
from workbench.sample import Sampler
from workbench.sampling_params import IN_PARAMS, SamplingParams
from workbench.scheduler import Policy, Scheduler, added
from workbench.speculation import Proposer, SpeculationConfig

if TYPE_CHECKING:
    from workbench.batch import Backend
    from workbench.kernels.spec import KernelSpec


class Engine(Described, AbstractContextManager["Engine"]):
    """An LLM engine made of parts that were made elsewhere (by hand, or by `workbench.build`).

    The parts are public attributes and share `bus`. `add` queues a request, `step` runs one
    iteration, `run` steps until nothing is left, `stream` and `generate` are loops over `step`.
    `seed`: base of the seeds of requests that bring none. `grammars`: compiles the constraints of
    guided requests (None: its own, made when one comes). `proposer`: guesses tokens that are
    verified several at once, see `workbench.speculation`; `speculation`: how far that goes.
    `overlap`: whether loops start a step before the last one's tokens are read ("auto": on a GPU).
    `loras`: the adapters that requests may name (None: a manager of its own, empty).
    """

    def __init__(
        self,
        model: DecoderLM,
        cache: KVCache,
        scheduler: Scheduler,
        runner: Runner,
        sampler: Sampler | None = None,
        *,
        proposer: str | Path | Proposer | None = None,
        speculation: SpeculationConfig | None = None,
        loras: LoRAManager | None = None,
        grammars: GrammarCompiler | None = None,
        overlap: bool | str = "auto",
        seed: int | None = None,
        bus: EventBus | None = None,
    ) -> None:
        """Raise `ConfigError` if the parts were not made for each other."""
        checks.check_parts(model, cache, scheduler, runner, loras, seed)
        self.model, self.cache, self.scheduler, self.runner = model, cache, scheduler, runner
        self.sampler, self.seed = sampler or Sampler(), seed
        self.bus = EventBus() if bus is None else bus  # one that nobody listens to is false
        self.bus.source = weakref.ref(self)
        cache.blocks.bus = scheduler.bus = self.bus
        self.loras = LoRAManager(model) if loras is None else loras
        self.speculator = Speculator(model, cache, scheduler, runner, proposer, speculation)
        self.overlap = Overlap(overlap, scheduler, runner, self.speculator)
        self.closed, self._book = False, RequestBook()
        self.loras.attach(self.bus, scheduler, runner, self._book.unfinished)
        self._desk = GuideDesk(model, scheduler, grammars)
        self._brancher = Brancher(model, scheduler, self._book, self._desk)
        self._rebalancer = Rebalancer(self.overlap.drop)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        self.require_open()
        return self.model.tokenizer

    # --- the step -----------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """Run one iteration and return its record; with nothing to do, an empty one. Whatever fails
        or interrupts it, no block leaks and the next `step()` does the work again."""
        self._require_between_steps("step")
        self.overlap.drop()
        return self._step(ahead=False)

    def advance(self) -> StepRecord:
        """Do what `step` does, for a loop: where `overlap` is on, the next step's pass starts, if
        it can, before this one's tokens are read. End the loop with `overlap.drop()`.

        Tokens are the same. What else than the engine's methods changes may be seen a step late.
        """
        self._require_between_steps("step")
        return self._step(ahead=self.overlap.on)

    def _step(self, ahead: bool) -> StepRecord:
        laps = Laps()
        refused, (drafts, failed) = self._desk.settle(), self.speculator.propose()
        plan = self.scheduler.schedule(drafts)
        laps.lap("schedule")
        output, drawing = self.overlap.run(plan, self.sampler, laps)
        if ahead and not self._book.unsettled:  # else a strategy may branch
            self.overlap.begin_next(plan, drawing, self.sampler)
        sampled = drawing.wait()
        laps.lap("sample")
        with shielded():  # a step that is committed is also told
            finished = refused + failed + self.scheduler.commit(plan, sampled, output.reports)
            self.speculator.committed(plan, output, sampled, laps.seconds)
            new = new_tokens(plan, sampled)
            finished += self._book.advance(self._brancher)
            laps.lap("commit")
            if self.bus:
                told = step_done(plan, new, sampled, laps.seconds, self.cache.blocks, output.timer)
                self.bus.emit(told)
        return StepRecord(plan, new, finished, laps.seconds)

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running; the paused ones are not."""
        return not self.closed and self.scheduler.num_unfinished + len(self._desk) > 0

    def run(self, max_steps: int | None = None) -> list[StepRecord]:
        """Step until nothing is left, or `max_steps` times; return the records."""
        self.require_open()
        return loops.run(self, max_steps)

    # --- requests -----------------------------------------------------------------------------

    @known_arguments(RequestError, IN_PARAMS)
    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        namespace: str = "",
        tenant: str = "",
        timeout: float | None = None,
        retention: Iterable[Retention] | None = None,
        lora: str | None = None,
    ) -> str:
        """Queue a request and return its id.

        prompt: text, embeddings [tokens, hidden], or a list of token ids and embeddings. priority
        and tenant: for the policies that look at them. namespace: keeps prefix reuse apart (a cache
        salt). timeout: seconds after which it ends as it is. retention: what of it the cache keeps
        longer. lora: adapters it goes through, "sql", "sql:0.5" or "sql:0.7+json:0.3". Raises
        `RequestError`, with nothing queued, for what could not run to its end.
        """
        self.require_open()
        request_id = self._book.free_name() if request_id is None else request_id
        params = SamplingParams() if params is None else params
        wishes = priority, namespace, tenant, timeout, retention, self.loras.resolve(lora)
        request = make_request(request_id, prompt, params, *wishes, self.model, self.tokenizer)
        self._book.require_free(request_id)
        number, limits = self._book.next_number(), self.scheduler.config
        sequence = make_sequence(request, number, self.model, self.cache, limits, self.seed)
        self._desk.check(sequence)
        checks.check_beams(sequence.max_num_tokens, request, self.cache.blocks, limits)
        record = RequestRecord(request, [sequence], make_strategy(params, sequence))
        with shielded():
            self._book.add(record)
            self.loras.count(request.lora)
            self._desk.queue(sequence)
            if self.bus:
                waits = self._desk.holds(sequence)
                self.bus.emit(added(self.scheduler.step, sequence, compiling=waits))
        return request_id

    def fork(
        self,
        request_id: str,
        params: SamplingParams | None = None,
        *,
        branch: int = 0,
        new_id: str | None = None,
    ) -> str:
        """Continue a running request a second time, from where it stands; return the twin's id.

        The twin shares the blocks computed so far. params: how it goes on (None: as the original);
        its `max_tokens` counts from the prompt. branch: which of several sequences to follow.
        Raises `RequestError` where it could not go on, `RequestFinished` if there is none to fork.
        """
        self._require_between_steps("fork")
        original = self.find(request_id)
        new_id = self._book.free_name() if new_id is None else new_id
        self._book.require_free(new_id)
        params = original.request.params if params is None else params
        parent = checks.check_fork(original, branch, params, self.scheduler, self.model)
        self._brancher.twin(parent, replace(original.request, request_id=new_id, params=params))
        return new_id

    def abort(self, request_id: str) -> RequestOutput:
        """End a request between steps, keeping what it made; return its output. Raises
        `UnknownRequest`, or `RequestFinished` if it has already ended."""
        self._end(self._unfinished("abort", request_id))
        return self.output(request_id)

    def pause(self, request_id: str, *, release: bool = False) -> None:
        """Keep a request from running until `resume`; it can be aborted meanwhile, and time out.

        It keeps its blocks until others lack them; release: it gives them up at once. Raises
        `UnknownRequest`, or `RequestFinished` if it has ended."""
        for sequence in self._unfinished("pause", request_id).sequences:
            self.scheduler.pause(sequence, release=release)

    def resume(self, request_id: str) -> None:
        """Let a paused request go on, with the tokens it would have made; fine if it is not paused.
        Raises as `pause` does."""
        for sequence in self._unfinished("resume", request_id).sequences:
            self.scheduler.resume(sequence)

    def output(self, request_id: str) -> RequestOutput:
        """Return what a request has produced so far."""
        return make_output(self.find(request_id), self.tokenizer)

    def forget(self, request_id: str) -> RequestOutput:
        """Return a finished request's output and drop its record; `RequestError` if it runs."""
        output = self.output(request_id)
        if not output.finished:
            raise RequestError("request_id", request_id, "has not ended", "Abort it first.")
        self._book.drop(request_id)
        return output

    def discard(self, request_ids: Iterable[str]) -> None:
        """Abort and forget these requests, in whatever state; unknown ones are fine."""
        with shielded():
            for record in filter(None, map(self._book.drop, request_ids)):
                self._end(record)

    @property
    def requests(self) -> dict[str, RequestRecord]:
        """Every request the engine knows, by id (a copy)."""
        return dict(self._book.records)

    def find(self, request_id: str) -> RequestRecord:
        """Return a request's record, or raise `UnknownRequest`."""
        self.require_open()
        return self._book.find(request_id)

    def _unfinished(self, action: str, request_id: str) -> RequestRecord:
        """Return the record of a request that has not ended, if this is the time to change it."""
        self._require_between_steps(action)
        record = self.find(request_id)
        if record.finished:
            raise AlreadyFinished(request_id, str(record.sequences[0].finish_reason))
        return record

    def _end(self, record: RequestRecord) -> None:
        self._book.end(record, lambda sequence: self.scheduler.finish(sequence, "abort"))

    # --- time ---------------------------------------------------------------------------------

    def checkpoint(self) -> EngineState:
        """Return every request as it stands, as plain data; takes no block and copies no KV."""
        self._require_between_steps("checkpoint")
        return time_travel.checkpoint(self, self._book)

    def restore(self, state: EngineState) -> None:
        """Go back to a checkpoint of this engine, as often as you like.

        Later requests are gone, earlier ones go on, computed again where the prefix cache lacks
        them. Steps count on. Raises `RequestError` for no checkpoint, or one that cannot run now.
        """
        self._require_between_steps("restore")
        time_travel.restore(self, self._book, self._brancher, state)

    def save(self, request_id: str, path: str | Path) -> Path:
        """Write a request, running or ended, to a JSON file; `RequestError` if it holds code."""
        self._require_between_steps("save")
        return time_travel.save(self, request_id, Path(path))

    def load(self, path: str | Path, *, request_id: str | None = None) -> str:
        """Continue a saved request beside those that run; return its id (as saved, or the given).

        Raises `StateError` for a file that is damaged or of another model, `RequestError` if the
        request cannot run here.
        """
        self._require_between_steps("load")
        return time_travel.load(self, self._book, self._brancher, Path(path), request_id)

    # --- loops over step ----------------------------------------------------------------------

    def stream(self, request_id: str) -> Iterator[RequestOutput]:
        """Step the engine until this request ends, yielding its output after each of its tokens."""
        return loops.stream(self, request_id)

    @known_arguments(RequestError, IN_PARAMS)
    def generate(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | list[SamplingParams] | None = None,
        *,
        lora: str | list[str | None] | None = None,
        on_finish: Callable[[RequestRecord], Any] | None = None,
    ) -> list[RequestOutput]:
        """Run these prompts to their end, all in flight together, and return outputs in order.

        Either all are queued or none: a bad one raises first. lora: one for all, or one each.
        `on_finish` gets each as it ends.
        """
        self._require_between_steps("generate")
        return loops.generate(self, prompts, params, lora, on_finish)

    # --- changing and ending ------------------------------------------------------------------

    @known_arguments(ConfigError)
    def swap(
        self,
        *,
        scheduler_policy: str | Policy | None = None,
        scheduler_config: SchedulerConfig | None = None,
        sampler: Sampler | None = None,
        backend: str | Backend | None = None,
        kernel: str | KernelSpec | None = None,
        eviction: str | EvictionPolicy | None = None,
        dropping: str | DroppingPolicy | None = None,
        proposer: str | Path | Proposer | None = "same",
        speculation: SpeculationConfig | None = None,
    ) -> None:
        """Replace parts between two steps, while requests run; what is left out stays.

        scheduler_config: other budgets, say `replace(engine.scheduler.config, max_sequences=4)`.
        kernel: in place of the backend's of its name (a name: the shipped one); CUDA graphs that
        hold that are captured anew. proposer: as `LLM` takes it; None or "off" ends speculation.
        `ConfigError`, with nothing replaced, for what is unknown, or keeps a request from its end.
        """
        self._require_between_steps("swap")
        put_in = replacing(self, scheduler_policy, sampler, backend, eviction, dropping, kernel)
        checks.check_limits(self._book.records, scheduler_config, self.cache.blocks, self.model)
        self.speculator.swap(proposer, speculation)
        if scheduler_config is not None:
            self.scheduler.configure(scheduler_config)
        put_in()

    def rebalance(self, *, lora_rows: int) -> Balance:
        """Have so many rank rows, and blocks in the memory beside: see `Rebalancer.rebalance`."""
        self._require_between_steps("rebalance")
        return self._rebalancer.rebalance(self, self._book.records.values(), lora_rows)

    def close(self) -> None:
        """Abort everything and give the memory back; idempotent."""
        if self.closed:
            return
        self._require_between_steps("close")
        with shielded():
            self.discard(list(self._book.records))
            self.closed = True
            parts = self.cache, self.runner, self._desk, self.overlap, self.speculator, self.loras
            for part in parts:
                part.close()
            del self.model, self.runner, self.sampler, self._brancher, self._desk, self.speculator

    def __exit__(self, *exc: object) -> None:
        """Close: the engine is a context manager."""
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
        return {"closed": True} if self.closed else describe(self)
