"""Which plans can be replayed: batches in which every row decodes, with a draft to verify or none,
and asks for nothing but tokens.

Asked by `graphs` and by `tapes`, once a step.
"""

from __future__ import annotations

from workbench.batch import StepPlan
from workbench.cache import KVCache
from workbench.request import Sequence
from workbench.run.graph_sizes import CHUNK_ROWS, CHUNK_TOKENS, num_prompts
from workbench.run.watch import ModelWatch


class PlainDecodes:
    """Tells the plans of one cache that can be replayed from those that cannot."""

    def __init__(self, cache: KVCache, watch: ModelWatch) -> None:
        self._cache, self._watch = cache, watch
        self._plain: list[Sequence] = []  # the latest rows that ask for nothing but tokens

    def why_not(self, plan: StepPlan, *, max_rows: int | None = None, mixed: bool = False) -> str:
        """Return why a plan cannot be replayed, of at most `max_rows` rows; empty if it can.

        mixed: whether a few short prompts may come with decodes, or alone.
        """
        rows = plan.sequences
        if len(self._cache.groups) > 1:
            return "the cache has several KV groups"
        prompts = num_prompts(plan)
        if prompts and (plan.drafts or not mixed):
            return "not every row decodes"
        most, tokens = CHUNK_ROWS[-1], CHUNK_TOKENS[-1]
        if prompts > most or (prompts and plan.num_tokens - plan.num_decodes > tokens):
            return f"more than {most} prompts, or {tokens} tokens of them"
        if max_rows is not None and len(rows) - prompts > max_rows:
            return f"more than {max_rows} rows"
        if not prompts and len(plan.sampled) < len(rows):
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
