"""When a sequence ends: a stop string, a stop token, or its length. Called once per new token."""

from __future__ import annotations

from workbench.request import Sequence


def ends(sequence: Sequence, token_id: int) -> bool:
    """Return whether this token, its latest, ends the sequence; if so, set the reasons."""
    stop_string = sequence.stream.push(token_id) if sequence.stream is not None else None
    if stop_string is not None:
        sequence.finish_reason, sequence.stop_reason = "stop", stop_string
    elif token_id in sequence.stop_ids:
        sequence.finish_reason, sequence.stop_reason = "stop", token_id
    elif len(sequence.token_ids) >= sequence.max_num_tokens:
        sequence.finish_reason = "length"
    return sequence.finish_reason is not None
