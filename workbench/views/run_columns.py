"""The columns of `RunLog`: names and types, and what one entry of each stands for.

A *column number* (…_column) is a step's place among the committed ones: the numbers of steps have
gaps where one failed, these have none. js/run_log.js reads the same names.
"""

from __future__ import annotations

# Of each sequence. parent: the lane that it was forked from (-1: none), at `forked` tokens, which
# are that lane's and are not told again.
LANES = {
    "lane_sequence": "I",
    "lane_branch": "I",
    "lane_prompt": "I",  # tokens
    "lane_max": "I",  # output tokens at most, 0 where it is not known
    "lane_parent": "i",
    "lane_forked": "I",
}
# Of each token, in the order they came. column: of the step that made it, or -1.
TOKENS = {
    "token_lane": "I",
    "token_id": "I",
    "token_column": "i",
    "token_maker": "B",
    "token_proposer": "B",
    "token_logprob": "f",  # natural; NaN where it was not asked
}
# The likeliest tokens beside a token, where the request asked for them.
TOPS = {"top_token": "I", "top_id": "I", "top_logprob": "f"}
# Of each committed step. end: seconds of the trace. device: seconds, NaN where
# it is not told.
STEPS = {
    "step_number": "i",
    "step_end": "d",
    "step_rows": "I",  # how many rows its batch has
    "step_waiting": "I",
    "step_running": "I",
    "step_free": "I",  # blocks
    "step_device": "f",
    **{f"step_{part}": "f" for part in ("schedule", "run", "sample", "commit", "other")},  # seconds
}
# Of each row of each batch. start: its first position. at: the position of the first of `made` new
# tokens.
ROWS = {
    "row_lane": "I",
    "row_start": "I",
    "row_num": "I",
    "row_work": "B",
    "row_at": "I",
    "row_made": "H",
    "row_drafted": "H",
    "row_accepted": "H",
}
# Of each change of a lane's state: the first column and the second that it holds for, the number of
# its cause, and the lane that it is about (-1: none).
CHANGES = {
    "change_lane": "I",
    "change_column": "I",
    "change_seconds": "d",
    "change_state": "B",
    "change_cause": "I",
    "change_other": "i",
}
# Tokens found by a lane's first prefix lookup.
CACHED = {"cached_lane": "I", "cached_tokens": "I"}
# Of each verified draft. at: the position of its first token; nodes: how many it has.
DRAFTS = {
    "draft_lane": "I",
    "draft_column": "I",
    "draft_at": "I",
    "draft_proposer": "B",
    "draft_bonus": "I",
    "draft_nodes": "I",
}
# Of each of its nodes: the parent in the draft (-1: the root), and the proposer's probability, NaN
# where it has none.
NODES = {
    "node_token": "I",
    "node_parent": "i",
    "node_accepted": "B",
    "node_probability": "f",
}
TEXTS = {"known_ids": "I"}  # token ids whose text is known
PARTS = ("schedule", "run", "sample", "commit")

KINDS = {
    "lane": LANES,
    "token": TOKENS,
    "top": TOPS,
    "step": STEPS,
    "row": ROWS,
    "change": CHANGES,
    "cached": CACHED,
    "draft": DRAFTS,
}
# What is sent together: columns and lists. A view sends the groups that it draws; the numbers of
# steps are needed by all.
GROUPS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "sequences": (
        {**LANES, **TOKENS, **TOPS, **CACHED, **TEXTS, "step_number": "i"},
        ("requests", "proposers", "known_texts"),
    ),
    "batches": ({k: STEPS[k] for k in STEPS if k != "step_number"} | ROWS | CHANGES, ("causes",)),
    "drafts": ({**DRAFTS, **NODES}, ()),
}
