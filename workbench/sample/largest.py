"""`takes_largest`: for whom a sampler does nothing but take the largest logit.

Then a draft's nodes need not be shown to it as sequences: one search over the pass tells them all.
Asked by the verifier of drafts.
"""

from __future__ import annotations

from workbench.request import Sequence
from workbench.sample.processing import used_fields
from workbench.sample.sampler import Sampler


def takes_largest(sampler: object, sequences: list[Sequence]) -> bool:
    """Whether a sampler gives every one of these the largest of its logits, whatever its tokens
    are, and reports nothing of it. False of samplers that it knows nothing about."""
    if not isinstance(sampler, Sampler) or type(sampler).__call__ is not Sampler.__call__:
        return False
    return not sampler.processors and all(map(_plainly_greedy, sequences))


def _plainly_greedy(sequence: Sequence) -> bool:
    return (
        sequence.request.params.greedy
        and sequence.num_tracked is None
        and sequence.chooser is None
        and not used_fields(sequence)
    )
