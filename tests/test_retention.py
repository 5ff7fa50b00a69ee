"""`Retention`: what may be asked for, and which positions it means."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.errors import RequestError
from workbench.retention import KeptRange, Retention, resolve


def test_positions() -> None:
    ranges = [
        Retention(part="decode", priority=10),
        Retention(12, priority=50),
        Retention(0, 8, priority=90, seconds=2.5),
    ]
    assert resolve(ranges, 20) == (
        KeptRange(0, 8, 90, 2.5),
        KeptRange(12, 20, 50, None),
        KeptRange(20, None, 10, None),
    )
    assert resolve(ranges, 6) == (KeptRange(0, 6, 90, 2.5), KeptRange(6, None, 10, None))
    assert resolve(None, 6) == resolve([], 6) == ()
    held = [p for p in range(30) if resolve(ranges, 20)[1].holds(p)]
    assert held == list(range(12, 20))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"start": -1}, "start"),
        ({"start": 1.0}, "start"),
        ({"start": 4, "end": 4}, "end"),
        ({"end": True}, "end"),
        ({"priority": 101}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": 35.0}, "priority"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": "1"}, "seconds"),
        ({"part": "output"}, "part"),
        ({"part": "decode", "start": 3}, "start"),
        ({"duration": 3}, "duration"),
    ],
    ids=str,
)
def test_bad_values(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError, match=rf"Retention\.{field}="):
        Retention(**settings)


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([Retention(0, 8), Retention(7, 9)], "overlap"),
        ([Retention(), Retention(4, 9)], "overlap"),
        ([Retention(part="decode"), Retention(part="decode")], "overlap"),
        ([(0, 8, 90)], "is not a Retention"),
        (Retention(), "is not a list"),
    ],
)
def test_bad_lists(ranges: Any, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        resolve(ranges, 10)
