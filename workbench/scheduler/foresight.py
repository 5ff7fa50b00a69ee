"""`Foresight`: the next step's decodes, planned while nobody knows yet with which tokens.

Of a step's rows, those that sample decode once more in the next one, but for those whose length
ends them. So that pass can be started before this step's tokens are read. The step itself is
planned as ever, when they are; `match` says which of its rows the pass has run. What ended by a
token meanwhile has run in vain, into blocks of its own; what joins, a prompt, runs in a pass of its
own beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.batch import StepPlan
from workbench.cache.table import BlockTable
from workbench.request import Sequence, Status
from workbench.scheduler.queues import Queues

# Decodes from which on a pass of theirs loses little by not taking prompts along: about as many
# tokens as multiply for as long as a GPU reads the weights that both passes need.
MANY = 128


@dataclass(frozen=True, slots=True)
class Foreseen:
    """`plan`: decodes of the step after another one. sources: the places among that one's sampled
    rows that they continue. tables, written: each row's block table, and the block it writes to."""

    plan: StepPlan
    sources: list[int]
    tables: list[BlockTable]
    written: list[int]


class Foresight:
    """Foresees over `queues` and their blocks. Used by the scheduler, under its books.

    many: decodes that run ahead although prompts may come beside them.
    """

    def __init__(self, queues: Queues, many: int = MANY) -> None:
        self.queues, self.blocks, self.many = queues, queues.blocks, many

    def why_not(self, plan: StepPlan, max_sequences: int) -> str:
        """Return why the decodes of the step after `plan` are not known, or had better wait for
        prompts that run beside them; empty if neither."""
        queues, rows, sampled = self.queues, len(plan.sequences), len(plan.sampled)
        if plan.drafts or plan.weighed:
            return "drafts are verified, or attention is weighed"
        if len(queues.running) != rows:
            return "not every running sequence is in the batch"
        ending = sum(_ends(plan.sequences[row]) for row in plan.sampled)
        if sampled - ending >= self.many:
            return ""
        if not rows or sampled < rows:
            return "a prompt goes on"
        # Who could not start in this step cannot in the next, unless somebody makes room.
        if queues.waiting and (ending or plan.num_decodes < rows < max_sequences):
            return "others wait to start"
        return ""

    def foresee(self, plan: StepPlan) -> Foreseen | None:
        """Return the decodes after `plan`, with blocks for them; None if there are none, or blocks
        lack. Ask `why_not` first."""
        size, tables = self.blocks.block_size, self.blocks.tables
        ahead = StepPlan(plan.step + 1)
        found = Foreseen(ahead, [], [], [])
        for place, row in enumerate(plan.sampled):
            sequence, start, num_new = plan.sequences[row], plan.starts[row], plan.num_new[row]
            if sequence.status is not Status.RUNNING or _ends(sequence):
                continue
            number, position = sequence.sequence_id, start + num_new
            table = tables[number]
            if position >= table.writable_to:
                self.blocks.trim(number, start)  # should this step fail, it is run again
                if self.blocks.lacks(number, position, position + 1):
                    return None
                self.blocks.grow(number, position, position + 1)
            ahead.sequences.append(sequence)
            ahead.starts.append(position)
            found.sources.append(place)
            found.tables.append(table)
            found.written.append(table.block_ids[position // size - table.begin])
        count = ahead.num_decodes = len(ahead.sequences)
        if not count:
            return None
        ahead.num_new, ahead.sampled = [1] * count, list(range(count))
        return found

    def match(self, foreseen: Foreseen, plan: StepPlan) -> list[int] | None:
        """Return which rows of a foreseen pass are a plan's decodes, in order; None if it has not
        computed all of these, or somebody else's rows and blocks are other ones now."""
        count, size = plan.num_decodes, self.blocks.block_size
        if not count or plan.drafts or plan.weighed:
            return None
        places = {s.sequence_id: i for i, s in enumerate(foreseen.plan.sequences)}
        rows: list[int] = []
        for sequence, start in zip(plan.sequences[:count], plan.starts, strict=False):
            row = places.get(sequence.sequence_id)
            if row is None or foreseen.plan.starts[row] != start:
                return None
            table = foreseen.tables[row]
            if self.blocks.tables[sequence.sequence_id] is not table:
                return None
            if table.block_ids[start // size - table.begin] != foreseen.written[row]:
                return None  # a fork shares it, so it was copied
            rows.append(row)
        return rows

    def retract(self, foreseen: Foreseen) -> None:
        """Take back the blocks that were given for a pass that nobody wants any more."""
        for sequence in foreseen.plan.sequences:
            if sequence.sequence_id in self.blocks.tables:
                self.blocks.shrink(sequence.sequence_id, sequence.num_computed)


def _ends(sequence: Sequence) -> bool:
    """Whether the token that is being drawn is a sequence's last."""
    return len(sequence.token_ids) + 1 >= sequence.max_num_tokens
