"""`StepResults`: takes what a step has computed and made into its sequences and their blocks.

Held by the scheduler, which calls it when it commits a step, under its books.
"""

from __future__ import annotations

from workbench.batch import StepPlan
from workbench.config import SchedulerConfig
from workbench.request import Sequence, Status
from workbench.results import Accepted, SampledTokens
from workbench.scheduler.ending import append_step
from workbench.scheduler.queues import Queues


class StepResults:
    """Writes to the sequences of `queues` and to their blocks; `config` may be replaced."""

    def __init__(self, queues: Queues, config: SchedulerConfig) -> None:
        self.queues, self.blocks, self.config = queues, queues.blocks, config

    def advance(self, plan: StepPlan) -> None:
        """Note how far every row is computed, and publish the blocks that are full now.

        Rows with a draft are left for `append`: only then it is known what of them counts.
        """
        rows = list(zip(plan.sequences, plan.starts, plan.num_new, strict=True))
        del rows[plan.num_decodes : plan.num_decodes + len(plan.drafts)]
        for sequence, start, num_new in rows:
            if sequence.status is Status.RUNNING:  # else it was aborted while the step ran
                self._computed(sequence, start, start + num_new)

    def append(self, plan: StepPlan, sampled: SampledTokens) -> list[Sequence]:
        """Append the new tokens, and end whom they end; return these."""
        finished = append_step(plan, sampled)
        for place, accepted in sampled.accepted.items():
            self._settle(plan, plan.sampled[place], accepted)
        for sequence in finished:
            assert sequence.finish_reason is not None
            self.queues.finish(sequence, sequence.finish_reason)
        return finished

    def _settle(self, plan: StepPlan, row: int, accepted: Accepted) -> None:
        """Note how far a row with a draft is computed, and take back what it did not need."""
        sequence, start = plan.sequences[row], plan.starts[row]
        if sequence.status is not Status.RUNNING:
            return
        num_appended = sequence.num_tokens - start - 1
        num_right = min(len(accepted.nodes), num_appended)
        sequence.metrics.add_draft(len(plan.drafts[row]), num_right, accepted.lossy)
        computed = start + max(1, num_appended)
        self._computed(sequence, start, computed)
        self.blocks.shrink(sequence.sequence_id, computed)

    def _computed(self, sequence: Sequence, start: int, stop: int) -> None:
        sequence.num_computed = stop
        size = self.blocks.block_size
        if self.config.prefix_reuse and stop // size > start // size:
            self.blocks.publish(sequence.sequence_id, sequence.token_ids, stop)
