"""A stand-in for runner and model that knows what every KV slot must hold.

It keeps, for each slot, the token list up to and including the slot's token. Before it "computes" a
row it proves that the whole context of the row lies where the block table says: a wrong share, a
lost copy or a block handed out twice shows at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from workbench.batch import SampledTokens, StepPlan
from workbench.cache import BlockManager
from workbench.request import Request, RequestMetrics, Sequence
from workbench.retention import KeptRange
from workbench.sampling_params import SamplingParams


class ShadowModel:
    """Checks and fills shadow slots; its next token is a function of all tokens before it."""

    def __init__(self, blocks: BlockManager, vocab: int = 3) -> None:
        self.blocks, self.vocab = blocks, vocab
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}

    def next_token(self, token_ids: list[int]) -> int:
        """Return a token that depends on everything before it."""
        return hash(tuple(token_ids)) % self.vocab

    def run(self, plan: StepPlan) -> SampledTokens:
        """Carry out copies, check every row's context, write its new slots, choose its token."""
        size = self.blocks.block_size
        for source, destination in plan.copies:  # in order: one may build on another
            for offset in range(size):  # what the source does not hold, the copy does not either
                self.slots.pop((destination, offset), None)
                if (source, offset) in self.slots:
                    self.slots[destination, offset] = self.slots[source, offset]
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
                yield position, (table.block_ids[position // size - table.first], position % size)


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
