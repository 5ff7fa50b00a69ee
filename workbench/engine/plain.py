"""Log-probability entries as plain data, for states that go to disk.

Used by `state` and by the strategies that keep entries of their own.
"""

from __future__ import annotations

from typing import Any

from workbench.request import TokenLogprobs


def pack_logprobs(entry: TokenLogprobs) -> list[Any]:
    """Return an entry as plain data."""
    return [entry.token_id, entry.logprob, [list(pair) for pair in entry.top]]


def unpack_logprobs(data: list[Any]) -> TokenLogprobs:
    """Return the entry of `pack_logprobs`."""
    token_id, logprob, top = data
    return TokenLogprobs(token_id, logprob, tuple((token, value) for token, value in top))
