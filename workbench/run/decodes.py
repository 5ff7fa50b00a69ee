"""Which plans can be replayed: batches in which every row decodes, with a draft to verify or none,
and asks for nothing but tokens.

Asked by `graphs` and by `tapes`, once a step.
"""

from __future__ import annotations

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.request import Sequence
from workbench.run.watch import ModelWatch


class PlainDecodes:
    """Tells the plans of one cache that can be replayed from those that cannot."""

    def __init__(self, cache: KVCache, watch: ModelWatch) -> None:
        self._cache, self._watch = cache, watch
        self._plain: list[Sequence] = []  # the latest rows that ask for nothing but tokens

    def why_not(self, plan: StepPlan, *, max_rows: int | None = None) -> str:
        """Return why a plan cannot be replayed, of at most `max_rows` rows; empty if it can."""
        rows = plan.sequences
        if len(self._cache.groups) > 1:
            return "the cache has several KV groups"
        if plan.num_decodes + len(plan.drafts) < len(rows):
            return "not every row decodes"
        if max_rows is not None and len(rows) > max_rows:
            return f"more than {max_rows} rows"
        if len(plan.sampled) < len(rows):
            return "not every row samples"
        if plan.weighed:
            return "a dropping policy wants to know where attention goes"
        if self._watch.hooked:
            return "a hook (a probe) sits on the model"
        if rows != self._plain:
            if any(asks(sequence) for sequence in rows):
                return "a row brings embeddings or asks for more than tokens"
            self._plain = list(rows)
        return ""

    def forget(self) -> None:
        """Let go of the sequences seen last."""
        self._plain = []


def asks(sequence: Sequence) -> bool:
    """Whether a sequence needs what a replay does not do: embeddings in, or reports out."""
    return (
        sequence.prompt_logprobs is not None
        or sequence.activations is not None
        or sequence.request.embeds is not None
    )
