"""The figure of a comparison draws what the comparison says."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from workbench import events
from workbench.errors import MissingExtra
from workbench.trace import CacheLayout, Comparison, GroupLayout, Trace

SCRIPT = "<script>window.harmed = 1</script>"


def run_of(*outputs: list[int], free: tuple[int, ...] = (7, 5, 8), name: str = "r") -> Trace:
    """Return a trace in which requests make these tokens, one each step."""
    layout = CacheLayout(4, (GroupLayout(0, 8),), 0)
    trace = Trace({**layout.to_header(), "texts": {"1": SCRIPT, "2": "b", "3": "c", "4": "d"}})
    said: list[tuple[float, events.Event]] = [
        (0.01 * number, events.RequestAdded(0, f"{name}{number}", number, 1, 9, (9,)))
        for number in range(len(outputs))
    ]
    for step in range(max(map(len, outputs))):
        made = tuple((n, ids[step]) for n, ids in enumerate(outputs) if step < len(ids))
        told = tuple((-0.5 * token, ((token, -0.5 * token),)) for _, token in made)
        done = events.StepDone(step + 1, made, {}, free[step % len(free)], (), told)
        said.append((1.0 + step, done))
    for seconds, event in said:
        trace.events.append(event)
        trace.seconds.append(seconds)
    return trace


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        run_of([2, 3, 1, 2], [2, 2], [3]), run_of([2, 3, 4, 4], [2, 2], [3, 3]), ("one", "two")
    )


def named(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_tokens_latencies_and_blocks_are_those_of_the_runs(comparison: Comparison) -> None:
    figure = comparison.figure()
    [tokens] = named(figure, "tokens")
    assert list(tokens.y) == ["r2", "r0", "r1"], "earliest divergence first"
    none = None
    assert [list(row) for row in tokens.z] == [
        [0, 0.5, none, none],
        [0, 0, 1, 1],
        [0, 0, none, none],
    ]
    assert tokens.text[0][1] == "ended | 'c'"
    [crosses] = named(figure, "first divergence")
    assert list(zip(crosses.x, crosses.y, strict=True)) == [(1, "r2"), (2, "r0")]
    logprobs, latencies, blocks = named(figure, "two")
    assert list(logprobs.y) == [-1.5, -1.5], "of the output that diverges first"
    assert sorted(latencies.x) == pytest.approx([980.0, 990.0, 1000.0])
    assert list(latencies.y) == [1000.0, 1000.0, 1000.0]
    assert list(blocks.x) == [1, 2, 3, 4]
    assert list(blocks.y) == [1, 3, 0, 1]
    assert "first divergence: r2, output token 1" in figure.layout.title.text


def test_two_runs_that_agree_have_no_mark() -> None:
    figure = Comparison(run_of([1, 2]), run_of([1, 2])).figure()
    assert named(figure, "first divergence") == []
    assert "the same tokens" in figure.layout.title.text
    assert named(Comparison(run_of([1]), Trace(run_of([1]).header)).figure(), "tokens") == []


def test_text_is_never_markup(comparison: Comparison) -> None:
    bundle = comparison.figure()._repr_mimebundle_()
    assert "<script" not in json.dumps(bundle)
    assert "&lt;script&gt;" in json.dumps(bundle["application/vnd.plotly.v1+json"])


def test_names_of_runs_and_requests_are_never_markup() -> None:
    runs = (run_of([2, 3], name="<b>r"), run_of([2, 4], name="<b>r"))
    figure = Comparison(*runs, ("<i>one", "two")).figure()
    said = json.dumps(figure._repr_mimebundle_()["application/vnd.plotly.v1+json"])
    assert "<b>" not in said
    assert "<i>" not in said
    assert "&lt;b&gt;r0" in said
    assert "&lt;i&gt;one" in said


def test_it_is_small_and_stands_as_tables_where_plotly_is_not(comparison: Comparison) -> None:
    bundle = comparison.figure()._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 40_000, "plotly's own script is not in it"
    assert bundle["text/html"] == comparison._repr_html_()


def test_without_plotly_it_says_what_to_install(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtra, match=r"needs plotly.*llm-workbench\[notebook\]"):
        comparison.figure()
