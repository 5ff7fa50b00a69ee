"""`Retention`: for how long, and at the expense of what, the cache keeps parts of a request's KV.

A request brings ranges of its tokens with a priority and a time; the cache evicts what has the
lowest priority first. Names and meaning are those of TensorRT-LLM's `KvCacheRetentionConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Literal, NamedTuple

from workbench.errors import RequestError
from workbench.keywords import known_keywords

DEFAULT_PRIORITY = 35
MAX_PRIORITY = 100


@known_keywords(RequestError)
@dataclass(frozen=True, slots=True)
class Retention:
    """How eviction treats the blocks whose first token lies in a range of a request.

    start, end: tokens of the prompt (end None: to its end); a block belongs to the range that holds
    its first token. priority: 0 (goes first) to 100; what names none has 35. seconds: how long
    after its last use a block keeps that priority, then it has 35 again (None: until it goes).
    part: `decode` is all that is generated, and takes no start or end.
    """

    start: int = 0
    end: int | None = None
    priority: int = DEFAULT_PRIORITY
    seconds: float | None = None
    part: Literal["prompt", "decode"] = "prompt"

    def __post_init__(self) -> None:
        """Refuse what names no tokens, no priority or no time."""
        if self.part not in ("prompt", "decode"):
            raise _wrong("part", self.part, "must be `prompt` or `decode`")
        if not _is_whole(self.start) or self.start < 0:
            raise _wrong("start", self.start, "must be a whole number of at least 0")
        if self.end is not None and (not _is_whole(self.end) or self.end <= self.start):
            raise _wrong("end", self.end, f"must be a whole number above start={self.start}")
        if self.part == "decode" and (self.start != 0 or self.end is not None):
            raise _wrong("start", self.start, "`decode` is all that is generated")
        if not _is_whole(self.priority) or not 0 <= self.priority <= MAX_PRIORITY:
            raise _wrong("priority", self.priority, f"must be from 0 to {MAX_PRIORITY}")
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if self.seconds is not None and not (number and 0 < self.seconds < inf):
            raise _wrong("seconds", self.seconds, "must be above 0")


class KeptRange(NamedTuple):
    """A `Retention` in positions of a sequence, prompt and output together."""

    start: int
    end: int | None
    priority: int
    seconds: float | None

    def holds(self, position: int) -> bool:
        """Return whether a token lies in the range."""
        return self.start <= position and (self.end is None or position < self.end)


def resolve(ranges: Iterable[Retention] | None, num_prompt: int) -> tuple[KeptRange, ...]:
    """Return the ranges of a request with a prompt of `num_prompt` tokens, in order.

    Raises `RequestError` for anything but `Retention`s, for overlaps and a second decode range.
    """
    if ranges is None:
        return ()
    fix = "Pass a list of `Retention(start, end, priority=…, seconds=…)`."
    if not isinstance(ranges, Iterable):
        raise RequestError("retention", ranges, "is not a list", fix)
    found = list(ranges)
    for one in found:
        if not isinstance(one, Retention):
            raise RequestError("retention", one, "is not a Retention", fix)
    kept = [one for one in (_kept_range(one, num_prompt) for one in found) if one.start != one.end]
    kept.sort(key=lambda one: one.start)
    for before, after in pairwise(kept):
        if before.end is None or after.start < before.end:
            fix = "Let each token lie in one range, and give `decode` once."
            raise RequestError("retention", f"{before} and {after}", "overlap", fix)
    return tuple(kept)


def _kept_range(one: Retention, num_prompt: int) -> KeptRange:
    if one.part == "decode":
        return KeptRange(num_prompt, None, one.priority, one.seconds)
    start, end = (min(num_prompt, at) for at in (one.start, one.end or num_prompt))
    return KeptRange(start, end, one.priority, one.seconds)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(field: str, value: Any, problem: str) -> RequestError:
    fix = "See `Retention` for what each field means."
    return RequestError(f"Retention.{field}", value, problem, fix)
