"""A stand-in for runner and model that knows what every KV slot must hold.

It keeps, for each slot, the token list up to and including the slot's token. Before it "computes" a
row it proves that the whole context of the row lies where the block table says: a wrong share, a
lost copy or a block handed out twice shows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from workbench.batch import SampledTokens, StepPlan
from workbench.cache import Blocks, PrefixLookup
from workbench.metrics import RequestMetrics
from workbench.request import Request, Sequence
from workbench.retention import KeptRange
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler
from workbench.scheduler.prefix_waits import Awaited

Slots = dict[tuple[int, int], tuple[int, ...]]


class TransferFailed(Exception):
    """A copy between blocks or host slots that fails half way."""


class ShadowModel:
    """Checks and fills shadow slots; its next token is a function of all tokens before it."""

    def __init__(self, blocks: Blocks, vocab: int = 3) -> None:
        self.blocks, self.vocab = blocks, vocab
        self.slots: Slots = {}
        self.host: Slots = {}
        self.transfers_left = 10**9  # how many blocks are moved before moving one fails

    def next_token(self, token_ids: list[int]) -> int:
        """Return a token that depends on everything before it."""
        return hash(tuple(token_ids)) % self.vocab

    def offload(self, block_of: Mapping[int, int]) -> None:
        """Copy blocks to host slots, as `HostMemory` does."""
        for slot, block_id in block_of.items():
            self._move(self.slots, block_id, self.host, slot)

    def restore(self, slot_of: Mapping[int, int]) -> None:
        """Copy host slots to blocks, as `HostMemory` does."""
        for block_id, slot in slot_of.items():
            self._move(self.host, slot, self.slots, block_id)

    def _move(self, source: Slots, from_id: int, target: Slots, to_id: int) -> None:
        """Copy a block's content, offset by offset; what the source lacks is gone there too."""
        self.transfers_left -= 1
        if self.transfers_left < 0:
            raise TransferFailed
        for offset in range(self.blocks.block_size):
            target.pop((to_id, offset), None)
            if (from_id, offset) in source:
                target[to_id, offset] = source[from_id, offset]

    def run(self, plan: StepPlan) -> SampledTokens:
        """Carry out copies, check every row's context, write its new slots, choose its token."""
        if self.blocks.host is not None:
            self.blocks.host.carry_out(self, self.blocks.bus, plan.step)
        for source, destination in plan.copies:  # in order: one may build on another
            self._move(self.slots, source, self.slots, destination)
        rows = list(zip(plan.sequences, plan.starts, plan.num_new, strict=True))
        for sequence, start, num_new in rows:
            for position, slot in self._slots(sequence, start, start + num_new):
                content = tuple(sequence.token_ids[: position + 1])
                if position >= start:
                    self.slots[slot] = content
                else:
                    assert self.slots.get(slot) == content, (sequence, position, slot)
        for sequence, start, num_new in rows:  # nobody overwrote a neighbour
            for position, slot in self._slots(sequence, start, start + num_new):
                assert self.slots[slot] == tuple(sequence.token_ids[: position + 1])
        sampled = [plan.sequences[row] for row in plan.sampled]
        return SampledTokens([self.next_token(sequence.token_ids) for sequence in sampled])

    def _slots(
        self, sequence: Sequence, start: int, stop: int
    ) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield (position, slot) of all that the tokens `start` to `stop` may read or write."""
        size = self.blocks.block_size
        for group in self.blocks.groups:
            table = group.tables[sequence.sequence_id]
            first = 0 if group.window is None else max(0, start - group.window + 1)
            for position in range(first, stop):
                if position // size not in table.holes:
                    block_id = table.block_ids[table.place(position // size)]
                    yield position, (block_id, position % size)


def make_sequence(
    sequence_id: int,
    prompt: list[int],
    max_tokens: int,
    *,
    namespace: str = "",
    priority: int = 0,
    stop_ids: frozenset[int] = frozenset(),
    retention: tuple[KeptRange, ...] = (),
) -> Sequence:
    """Return a sequence as the engine would make it."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    request = Request(
        f"r{sequence_id}", None, tuple(prompt), params, priority, namespace, retention=retention
    )
    return Sequence(
        sequence_id=sequence_id,
        request=request,
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        metrics=RequestMetrics(arrival=0.0),
        seed=0,
        stop_ids=stop_ids,
        max_num_tokens=len(prompt) + max_tokens,
    )


def watch_passed(scheduler: Scheduler) -> list[tuple[Sequence, Sequence]]:
    """Return a list that gets (who waits for a prefix, whom it waits for) each time one is passed
    over; clear it before a plan."""
    waits = scheduler._queues.prefix_waits
    passed: list[tuple[Sequence, Sequence]] = []
    holds, find = waits.holds, waits.find

    def noted_holds(sequence: Sequence) -> bool:
        held = holds(sequence)
        if held:
            passed.append((sequence, waits._awaited[sequence.sequence_id].leader))
        return held

    def noted_find(sequence: Sequence, found: PrefixLookup) -> Awaited | None:
        awaited = find(sequence, found)
        if awaited is not None:
            passed.append((sequence, awaited.leader))
        return awaited

    waits.holds, waits.find = noted_holds, noted_find  # type: ignore[method-assign]
    return passed
