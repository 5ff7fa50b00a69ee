"""What is said of a sequence that comes: added, or forked from another.

Called where that happens, by engine and scheduler, and only while somebody listens.
"""

from __future__ import annotations

from workbench.events import RequestAdded, SequenceForked
from workbench.request import Sequence


def added(step: int, sequence: Sequence, *, compiling: bool = False) -> RequestAdded:
    """Return the event of a sequence that was queued, or waits for its grammar."""
    request, metrics = sequence.request, sequence.metrics
    prompt = request.prompt_token_ids
    brings_output = len(sequence.token_ids) > len(prompt)
    started = metrics.first_scheduled is not None
    return RequestAdded(
        step,
        request.request_id,
        sequence.sequence_id,
        sequence.num_prompt_tokens,
        request.params.max_tokens,
        tuple(sequence.token_ids) if brings_output else prompt,  # usually nothing is copied
        "compiling" if compiling else sequence.status.value,
        request.namespace,
        sequence.index,
        metrics.num_cached_tokens if started else None,
        metrics.num_preemptions,
        "+".join(f"{use.name}:{use.scale:g}" for use in request.lora),
    )


def forked(step: int, parent: Sequence, child: Sequence) -> SequenceForked:
    """Return the event of a branch, before it is queued."""
    num_shared = min(parent.num_tokens, child.num_tokens)
    return SequenceForked(
        step,
        child.request.request_id,
        child.sequence_id,
        parent.sequence_id,
        child.num_prompt_tokens,
        num_shared,
        tuple(child.token_ids[num_shared:]),
        child.index,
    )
