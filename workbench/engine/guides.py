"""`GuideDesk`: sequences whose grammar is still being compiled; they are queued when it is ready.

Grammars are compiled in a process of their own, so nobody waits for a neighbour's. Called by the
engine: when a sequence is to be queued, and at the beginning of each step.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, wait
from typing import NamedTuple

from workbench.errors import ConfigError, RequestError
from workbench.events import SequenceQueued
from workbench.guided import CompiledGrammar, GrammarCompiler
from workbench.guided.compiler import CompiledFuture
from workbench.interrupts import shielded
from workbench.models import DecoderLM
from workbench.request import Sequence
from workbench.scheduler import Scheduler

# How long a step that has nothing else to do waits for a grammar before it returns empty.
PATIENCE = 0.02


class _Pending(NamedTuple):
    sequence: Sequence
    grammar: CompiledFuture


class GuideDesk:
    """Queues sequences with a scheduler, guided ones with their guide.

    grammars: the compiler, which then belongs to the caller. None: one is made for the first
    guided sequence, since its worker takes a second to start, and closed at the end.
    """

    def __init__(
        self, model: DecoderLM, scheduler: Scheduler, grammars: GrammarCompiler | None = None
    ) -> None:
        self.model, self.scheduler = model, scheduler
        self.grammars, self._shared = grammars, grammars is not None
        self._pending: dict[int, _Pending] = {}

    def __len__(self) -> int:
        """Sequences that wait for their grammar."""
        return len(self._pending)

    def check(self, sequence: Sequence) -> None:
        """Raise `RequestError` if this model's text cannot be guided."""
        if sequence.request.params.guided_decoding is not None:
            self._compiler(sequence)

    def queue(self, sequence: Sequence) -> None:
        """Queue a sequence, now or when its grammar is ready."""
        constraint = sequence.request.params.guided_decoding
        if constraint is None or not sequence.awaits_guide:
            self.scheduler.add(sequence)
            return
        grammar = self._compiler(sequence).compile(constraint)
        self._pending[sequence.sequence_id] = _Pending(sequence, grammar)

    def holds(self, sequence: Sequence) -> bool:
        """Whether a sequence still waits for its grammar."""
        return sequence.sequence_id in self._pending

    def settle(self) -> list[Sequence]:
        """Queue whose grammar is ready; end, and return, whose grammar cannot be had or whose time
        is up.

        Where nothing else is to be done it waits a moment for one.
        """
        if not self._pending:
            return []
        if not self.scheduler.num_unfinished:
            futures = [grammar for _, grammar in self._pending.values()]
            wait(futures, PATIENCE, return_when=FIRST_COMPLETED)
        ended: list[Sequence] = []
        now = time.monotonic()
        for number, (sequence, grammar) in list(self._pending.items()):
            late = (sequence.request.deadline or now) < now
            if not (sequence.finished or late or grammar.done()):
                continue
            with shielded():  # it is pending, or queued, or ended: never none of these
                del self._pending[number]
                if sequence.finished:
                    continue
                if late:
                    self.scheduler.finish(sequence, "timeout")
                else:
                    self._begin(sequence, grammar)
                if sequence.finished:
                    ended.append(sequence)
        return ended

    def close(self) -> None:
        """Forget who waits, and end the compiler's process if it was made here."""
        self._pending.clear()
        if self.grammars is not None and not self._shared:
            self.grammars.close()

    def _begin(self, sequence: Sequence, future: CompiledFuture) -> None:
        """Give a sequence its guide and queue it, or end it if there is none."""
        try:
            grammar: CompiledGrammar = future.result()
            guide = grammar.start()
            for token_id in sequence.output_token_ids:  # of a request that was saved or restored
                guide.accept(token_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the waiting request gets it
            self.scheduler.refuse(sequence, str(error))
            return
        sequence.guide = guide
        self.scheduler.add(sequence)
        if self.scheduler.bus:
            facts = sequence.sequence_id, sequence.status.value
            self.scheduler.bus.emit(SequenceQueued(self.scheduler.step, *facts))

    def _compiler(self, sequence: Sequence) -> GrammarCompiler:
        if self.grammars is not None:
            return self.grammars
        value, fix = sequence.request.params.guided_decoding, "Use another model, or no guide."
        if self.model.tokenizer is None:
            problem = "the engine has no tokenizer to read text with"
            raise RequestError("guided_decoding", value, problem, fix)
        config = self.model.config
        try:
            self.grammars = GrammarCompiler(
                self.model.tokenizer, config.vocab_size, eos_token_ids=config.eos_token_ids
            )
        except ConfigError as error:
            raise RequestError("guided_decoding", value, error.problem, fix) from error
        return self.grammars
