"""Which tokens occur in a trace, so that a file can bring their text without a tokenizer.

`Trace.save` asks; whatever event carries token ids is named here.
"""

from __future__ import annotations

from collections.abc import Iterable

from workbench import events
from workbench.events import Event
from workbench.trace.keyframe import sequences_of


def token_ids(facts: Iterable[Event]) -> set[int]:
    """Return every token id that these events speak of: prompts, outputs, alternatives, drafts."""
    found: set[int] = set()
    for event in facts:
        match event:
            case events.RequestAdded() | events.SequenceForked():
                found.update(event.token_ids)
            case events.SequenceExtended():
                found.add(event.token_id)
            case events.StepDone():
                found.update(token for _, token in event.tokens)
                for told in event.logprobs:
                    found.update(token for token, _ in (told[1] if told is not None else ()))
            case events.DraftVerified():
                found.update((*event.token_ids, event.bonus_token_id))
            case events.StateSeen():
                for _, ids in sequences_of(event):
                    found.update(ids)
            case _:
                pass
    return found
