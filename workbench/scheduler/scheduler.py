"""`Scheduler`: decides each step's batch and takes its results in.

One rule, no phases: every sequence has `num_computed` and `num_tokens`, and a step lets it catch up
by some tokens: a prompt, a chunk of one, a decode, a resume after preemption. The scheduler is the
one writer of `Sequence` and drives the cache's block manager; it never sees a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.cache.dropping import DroppingPolicy, dropping_name, get_dropping
from workbench.config import SchedulerConfig
from workbench.describe import Described
from workbench.draft import Draft
from workbench.events import EventBus, PolicyFailed, SequenceExtended, StepPlanned
from workbench.request import FinishReason, Sequence, Status, TokenLogprobs
from workbench.results import RowReport, SampledTokens
from workbench.scheduler.books import Books, StalePlan
from workbench.scheduler.checks import check_config, check_parts
from workbench.scheduler.dropping import Dropper
from workbench.scheduler.ending import append_token, note
from workbench.scheduler.facts import forked
from workbench.scheduler.foresight import Foreseen, Foresight
from workbench.scheduler.guard import GuardedPolicy
from workbench.scheduler.planner import Planner
from workbench.scheduler.policy import Policy, get_policy, policy_name
from workbench.scheduler.queues import Queues
from workbench.scheduler.step_results import StepResults


class Scheduler(Described):
    """Continuous batching over a KV cache.

    `waiting` and `running` are the two queues, guarded by `books`. `schedule()` and `commit()`
    alternate; after a failure in between, the next `schedule()` plans the same work again.
    """

    def __init__(self, cache: KVCache, config: SchedulerConfig | None = None) -> None:
        """Raise `ConfigError` for what is no cache, and settings that ask for what it lacks."""
        self.config, self.blocks = check_parts(cache, config)
        self.step = 0
        self.books = Books()
        self._queues = Queues(cache.blocks, self.config.preemption)
        self._order = GuardedPolicy(get_policy(self.config.policy), self, self._policy_failed)
        self._dropper = Dropper(cache.blocks, self._policy_failed)
        self._dropper.policy = get_dropping(self.config.dropping)
        self._planner = Planner(self._queues, self.config, self._order, self._dropper)
        self.adapters = self._planner.adapters  # asks whether LoRA adapters are there
        self._results = StepResults(self._queues, self.config)
        self.foresight = Foresight(self._queues)
        self._plan: StepPlan | None = None  # planned and not yet committed

    def configure(self, config: SchedulerConfig) -> None:
        """Go by other settings from the next step on; `ConfigError` for what the cache lacks.

        What runs goes on: with lower limits only nothing further starts until they are kept again.
        `engine.swap` also checks that every request can still run to its end.
        """
        check_config(self.blocks, config)
        policy = get_policy(config.policy)
        with self.books.open("configure"):
            if config.policy != self.config.policy:
                self.policy = policy
            if config.dropping != self.config.dropping:
                self.dropping = get_dropping(config.dropping)
            self.config, self._queues.preemption = config, config.preemption
            self._planner.configure(config)
            self._results.config = config

    @property
    def bus(self) -> EventBus:
        """Where the queues' facts are stated; the engine puts its own here."""
        return self._queues.bus

    @bus.setter
    def bus(self, bus: EventBus) -> None:
        self._queues.bus = bus

    @property
    def policy(self) -> Policy:
        """What orders admission and, reversed, preemption; replaceable between steps."""
        return self._order.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if policy is not self._order.policy:  # one that is kept also keeps its accounts
            self._order.policy = policy

    @property
    def dropping(self) -> DroppingPolicy:
        """What drops blocks of running sequences; replaceable between steps. `ConfigError` where
        layers have a window of their own."""
        return self._dropper.policy

    @dropping.setter
    def dropping(self, policy: DroppingPolicy) -> None:
        self._dropper.policy = policy

    @property
    def drops(self) -> bool:
        """Whether a policy may drop blocks. It is asked after each token: drafts are left out."""
        return self._dropper.active

    @property
    def waiting(self) -> list[Sequence]:
        """The waiting sequences, as they were last ordered (a copy)."""
        return list(self._queues.waiting)

    @property
    def running(self) -> list[Sequence]:
        """The running sequences in order of admission (a copy)."""
        return list(self._queues.running.values())

    @property
    def paused(self) -> list[Sequence]:
        """The paused sequences (a copy)."""
        return list(self._queues.paused.values())

    @property
    def holding(self) -> list[Sequence]:
        """Those that hold blocks and do not run: paused, or resumed and waiting for a place."""
        return list(self._queues.holding.values())

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running: those that further steps advance, so not the paused."""
        return self._queues.num_unfinished

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Return how many of its first tokens it would find in full blocks, on device or host."""
        names, request = self._queues.names(sequence), sequence.request
        tokens = sequence.token_ids
        asked = tokens, request.namespace, names
        return self.blocks.lookup(*asked, partial=False, explain=False).num_tokens

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the cache when it is alone: `engine.add` checks that."""
        self._queues.add(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Queue `child`, whose tokens begin like `parent`'s: it shares the blocks of what both
        have computed, or waits for a place.

        At least the child's last token is computed by itself, because its logits are what its next
        one is drawn from. Who first writes to a shared block copies it.
        """
        num_shared = min(parent.num_computed, child.num_tokens - 1)
        assert child.token_ids[:num_shared] == parent.token_ids[:num_shared], "not a branch"
        with self.books.open("fork"):
            queues = self._queues
            if self.bus:
                self.bus.emit(forked(self.step, parent, child))
            runs = parent.status is Status.RUNNING
            if not runs or not self._planner.may_fork(parent, child, num_shared):
                queues.add(child)
                return
            self.blocks.fork(parent.sequence_id, child.sequence_id, num_shared)
            queues.run(child, num_shared)
            if child.request.deadline is not None:
                queues.timed[child.sequence_id] = child

    def schedule(self, drafts: Mapping[int, Draft] | None = None) -> StepPlan:
        """Return the next step's batch, with blocks allocated for everything in it.

        drafts: by sequence id, guesses to verify where tokens and blocks are left over.
        """
        queues = self._queues
        self._order.sort(queues.waiting)
        with self.books.open("schedule"):
            self.step += 1
            self.blocks.step = queues.step = self.step
            if self._plan is not None and self._plan.drafts:  # its step failed
                self._planner.retract(self._plan)
            plan = StepPlan(self.step, ended=queues.expire())
            if self.drops:
                self._dropper.apply(queues.running.values())
            self._planner.fill(plan, {} if self.drops else drafts or {})
            plan.weighed = self._dropper.weighed(plan)
            if self.bus:
                ids = [sequence.sequence_id for sequence in plan.sequences]
                rows = tuple(zip(ids, plan.starts, plan.num_new, strict=True))
                sizes = len(queues.waiting), len(queues.running)
                self.bus.emit(StepPlanned(self.step, rows, *sizes))
            self._plan = plan
            return plan

    def foresee(self, plan: StepPlan) -> Foreseen | str:
        """Return the decodes of the step after `plan`, which is not committed yet, with blocks for
        them; or why nobody knows them."""
        if self.drops:
            return "a dropping policy is asked in between"
        with self.books.open("foresee"):
            why = self.foresight.why_not(plan, self.config.max_sequences)
            return why or self.foresight.foresee(plan) or "no row goes on, or blocks lack"

    def commit(
        self,
        plan: StepPlan,
        sampled: SampledTokens,
        reports: Mapping[int, RowReport] | None = None,
    ) -> list[Sequence]:
        """Take a step's results in: advance every row, append its token; return what finished.

        reports: by row, what the pass says of sequences that keep more than tokens. Raises
        `StalePlan` for any but the latest plan, and for one that was committed before.
        """
        with self.books.open("commit"):
            if plan is not self._plan:
                raise StalePlan(plan.step, self.step)
            self._plan = None
            if plan:  # an empty one was not run: a copy for a paused sequence is still owed
                self.blocks.finish_copies()
            self._results.advance(plan)
            if plan.weighed:
                self._dropper.take_in(plan, reports or {})
            for row, report in (reports or {}).items():
                note(plan.sequences[row], report)
            self._order.committed(plan)
            return plan.ended + self._results.append(plan, sampled)

    def extend(self, sequence: Sequence, entry: TokenLogprobs) -> None:
        """Append the token of `entry`, which a chooser decided on, between two steps.

        Stops and lengths are the chooser's business; the sequence goes on until it is finished.
        """
        with self.books.open("extend"):
            append_token(sequence, entry.token_id, entry)
            if self.bus:
                ids = self.step, sequence.sequence_id
                self.bus.emit(SequenceExtended(*ids, entry.token_id, entry.logprob))

    def pause(self, sequence: Sequence, *, release: bool = False) -> None:
        """Keep an unfinished sequence from running until `resume`; idempotent.

        It keeps its blocks until a running sequence lacks them, or nothing else can run. release:
        give them up now, to be swapped in or computed again.
        """
        with self.books.open("pause"):
            self._queues.pause(sequence)
            if release and sequence.sequence_id in self._queues.holding:
                self._queues.preempt(sequence, "paused and released")

    def resume(self, sequence: Sequence) -> None:
        """Let a paused sequence go on; fine if it is not paused."""
        with self.books.open("resume"):
            has_place = len(self._queues.running) < self.config.max_sequences
            self._queues.resume(sequence, has_place)

    def refuse(self, sequence: Sequence, error: str) -> None:
        """End a sequence between two steps, queued or not, with an error."""
        with self.books.open("refuse"):
            sequence.error = error
            self._queues.finish(sequence, "error")

    def decode_plainly(self, sequence: Sequence, why: str) -> None:
        """Note why a sequence goes on without drafts."""
        sequence.metrics.proposer_error = why

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state and release its blocks; idempotent."""
        with self.books.open("finish"):
            if sequence.status is not Status.FINISHED:
                self._queues.finish(sequence, reason)

    def _policy_failed(self, name: str, trace: str) -> None:
        if self.bus:
            self.bus.emit(PolicyFailed(self.step, name, trace))

    def describe(self) -> dict[str, Any]:
        """Return the queues and the budgets."""
        return {
            "waiting": len(self._queues.waiting),
            "running": len(self._queues.running),
            "paused": len(self._queues.paused),
            "policy": policy_name(self.policy),
            "dropping": dropping_name(self.dropping),
            "max_batch_tokens": self.config.max_batch_tokens,
            "max_sequences": self.config.max_sequences,
            "capacity": self.config.capacity,
            "preemption": self.config.preemption,
            "chunking": self.config.chunking if self.config.chunked_prefill else "off",
            "prefix_reuse": self.config.prefix_reuse,
            "partial_reuse": self.config.partial_reuse,
            "prefix_wait": self.config.prefix_wait,
        }
