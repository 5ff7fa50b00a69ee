"""`Dropper`: applies a dropping policy, which may be user code, to the sequences that run.

Held by the scheduler, which has it drop blocks before it plans a step. A sequence's tokens are then
a function of its own tokens and the policy alone, whatever the batch: its prompt is computed whole,
in chunks or from the prefix cache, and after that the policy is asked exactly once for each token.
So what was preempted computes its output again one token a step, and a fork shares blocks only
where it stands exactly where its parent does.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping

from workbench.batch import RowReport, StepPlan
from workbench.cache import Blocks, BlockTable
from workbench.cache.dropping import (
    DroppingPolicy,
    KeptBlock,
    KeptBlocks,
    dropping_name,
    keep_all,
)
from workbench.errors import ConfigError
from workbench.events import warn
from workbench.request import Sequence, Status


class Dropper:
    """A policy over block tables; one that raises, or names a block that it may not, is told of and
    replaced by `keep_all`. What was dropped by then stays dropped.

    on_failure: called with the policy's name and what went wrong.
    """

    def __init__(self, blocks: Blocks, on_failure: Callable[[str, str], None]) -> None:
        self._blocks, self._on_failure = blocks, on_failure
        self._policy: DroppingPolicy = keep_all
        self.active = False

    @property
    def policy(self) -> DroppingPolicy:
        """The policy, as it was given; `ConfigError` where layers have a window of their own."""
        return self._policy

    @policy.setter
    def policy(self, policy: DroppingPolicy) -> None:
        """Take another one."""
        check_droppable(self._blocks, policy)
        self._policy, self.active = policy, policy is not keep_all

    @property
    def needs_attention(self) -> bool:
        """Whether the policy wants to know how much attention blocks have had."""
        return self.active and bool(getattr(self._policy, "needs_attention", False))

    def apply(self, running: Iterable[Sequence]) -> None:
        """Ask the policy about every sequence that has computed a token since it was last asked."""
        group = self._blocks.groups[0]
        for sequence in running:
            table, computed = group.tables[sequence.sequence_id], sequence.num_computed
            if computed < sequence.num_prompt_tokens or table.asked_at == computed:
                continue
            table.asked_at = computed
            dropped = self._ask(_view(sequence, table, group.block_size))
            if dropped:
                group.drop(sequence.sequence_id, dropped)
            if not self.active:
                return

    def _ask(self, view: KeptBlocks) -> list[int]:
        """Return what to drop, in order and each once; nothing if the policy fails."""
        try:
            dropped = set(self._policy(view))
            wrong = dropped - {block.index for block in view.blocks}
            if not wrong:
                return sorted(dropped)
            problem = f"{sorted(wrong, key=repr)} are no full blocks that {view.request_id!r} has"
        except Exception as error:  # noqa: BLE001 - user code
            problem = "".join(traceback.format_exception(error))
        name = dropping_name(self._policy)
        self.policy = keep_all
        warn(f"dropping policy {name!r} failed; keeping all from now on:\n{problem}", stacklevel=5)
        self._on_failure(name, problem)
        return []

    def num_reusable(self, sequence: Sequence) -> int:
        """Return how many first tokens may come from the prefix cache: of a prompt all but the
        last. What follows depends on what was dropped, and on the attention from there on."""
        if not self.active:
            return sequence.num_reusable
        return min(sequence.num_reusable, sequence.num_prompt_tokens - 1)

    def replays(self, sequence: Sequence) -> bool:
        """Whether a sequence computes its output again, which it shares with nobody."""
        return self.active and sequence.num_tokens > sequence.num_prompt_tokens

    def at_once(self, sequence: Sequence, num_new: int) -> int:
        """Return how many of the next tokens a step may compute: the prompt's, or one."""
        if not self.active:
            return num_new
        return min(num_new, max(1, sequence.num_prompt_tokens - sequence.num_computed))

    def weighed(self, plan: StepPlan) -> list[int]:
        """Return the rows of a plan whose last token's attention the policy wants to know."""
        if not self.needs_attention:
            return []
        rows = enumerate(zip(plan.sequences, plan.starts, plan.num_new, strict=True))
        return [row for row, (s, start, n) in rows if start + n >= s.num_prompt_tokens]

    def take_in(self, plan: StepPlan, reports: Mapping[int, RowReport]) -> None:
        """Note the attention that a step's blocks have had."""
        tables = self._blocks.tables
        for row in plan.weighed:
            sequence = plan.sequences[row]
            if sequence.status is Status.RUNNING:
                table = tables[sequence.sequence_id]
                table.weigh(reports[row].block_masses, plan.starts[row] + plan.num_new[row])


def check_droppable(blocks: Blocks, policy: DroppingPolicy) -> None:
    """Raise `ConfigError` for any policy but `keep_all` where layers have windows of their own."""
    groups = blocks.groups
    if policy is not keep_all and (len(groups) > 1 or groups[0].window is not None):
        problem = "layers have a window already, or there are several KV groups"
        raise ConfigError("dropping", dropping_name(policy), problem, "Use 'keep_all'.")


def _view(sequence: Sequence, table: BlockTable, size: int) -> KeptBlocks:
    full = sequence.num_computed // size
    kept = tuple(
        KeptBlock(index, index * size, (index + 1) * size, table.masses.get(index, 0.0))
        for index in table.indices
        if index < full
    )
    return KeptBlocks(
        sequence.request.request_id,
        sequence.index,
        sequence.num_prompt_tokens,
        sequence.num_computed,
        size,
        kept,
    )
