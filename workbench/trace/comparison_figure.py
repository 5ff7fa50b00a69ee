"""The figure of a `Comparison`: both runs over the output tokens and over the steps, by plotly.

Above, outputs down and positions across: where both runs made the same token, and from where on
they did not; the log-probabilities of the output that diverges first (or the first one); latencies
of each output; blocks in use. Shown where plotly is, as JSON of a few kB; elsewhere the
comparison's own tables stand in its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from workbench.errors import MissingExtra
from workbench.events import StepDone
from workbench.trace.pairs import Pair
from workbench.trace.tokens import SequenceLog
from workbench.trace.trace import Trace

# Of Okabe and Ito's hues, told apart by any eye; dashes as well.
_COLOURS = ("#0072B2", "#D55E00")
_SAME, _OTHER, _ONE = 0.0, 1.0, 0.5
_MOST_OUTPUTS = 60  # rows of tokens that can still be told apart


class Compared(NamedTuple):
    """What is drawn of a comparison: its pairs, those that differ first, earliest divergence first.

    tables: HTML, for where plotly is not.
    """

    a: Trace
    b: Trace
    names: tuple[str, str]
    pairs: list[Pair]
    only_a: list[SequenceLog]
    only_b: list[SequenceLog]
    title: str
    tables: str


def comparison_figure(comparison: Compared) -> Any:
    """Return a `plotly.graph_objects.Figure`; `MissingExtra` without plotly."""
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtra("Comparison.figure", "plotly", "notebook") from error
    pairs = comparison.pairs[:_MOST_OUTPUTS]
    titles = (
        "tokens: blue where both runs agree",
        "log-probability" + (f" of {_name(pairs[0])}" if pairs else ""),
        "latency of each output",
        "KV blocks in use",
    )
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.22)
    if pairs:
        figure.add_trace(_tokens(go, comparison, pairs), 1, 1)
        _mark_divergences(go, figure, pairs)
        _logprobs(go, figure, comparison, pairs[0])
    _latencies(go, figure, comparison)
    for trace, name, colour, dash in _runs(comparison):
        steps, used = _blocks(trace)
        line = {"color": colour, "dash": dash, "shape": "hv"}
        figure.add_trace(_line(go, steps, used, name, line, name != ""), 2, 2)
    axes = (
        ("output token", "", 1, 1),
        ("output token", "natural log", 1, 2),
        ("TTFT, ms", "TPOT, ms", 2, 1),
        ("step", "blocks", 2, 2),
    )
    for across, up, row, column in axes:
        figure.update_xaxes(title_text=across, row=row, col=column)
        figure.update_yaxes(title_text=up, row=row, col=column)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    title = plain(comparison.title)
    clear = "rgba(0,0,0,0)"  # light or dark, as the page is
    figure.update_layout(title=title, height=640, hovermode="closest", font_color="#777777")
    figure.update_layout(legend={"orientation": "h", "y": -0.14})
    figure.update_layout(template="none", paper_bgcolor=clear, plot_bgcolor=clear)
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)

    class ComparisonFigure(go.Figure):  # type: ignore[misc]
        """Brings its JSON, and not the five MB of plotly's script that it brings by default."""

        def _repr_mimebundle_(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {
                "application/vnd.plotly.v1+json": json.loads(self.to_json()),
                "text/html": comparison.tables,
                "text/plain": comparison.title,
            }

    return ComparisonFigure(figure)


def _runs(comparison: Compared) -> list[tuple[Trace, str, str, str]]:
    traces, names = (comparison.a, comparison.b), map(plain, comparison.names)
    return list(zip(traces, names, _COLOURS, ("solid", "dash"), strict=True))


def _name(pair: Pair) -> str:
    return plain(pair.request_id) + (f".{pair.branch}" if pair.branch else "")


def _tokens(go: Any, comparison: Compared, pairs: Sequence[Pair]) -> Any:
    """Return the map of outputs and positions, with both runs' tokens as hover text."""
    length = max((max(len(p.a.tokens), len(p.b.tokens)) for p in pairs), default=0)
    values: list[list[float | None]] = []
    words: list[list[str]] = []
    for pair in pairs:
        row: list[float | None] = []
        said: list[str] = []
        for place in range(length):
            one, other = _at(pair.a, place), _at(pair.b, place)
            if one is None and other is None:
                row.append(None)
                said.append("")
                continue
            row.append(_ONE if None in (one, other) else _SAME if one == other else _OTHER)
            said.append(f"{_text(comparison.a, one)} | {_text(comparison.b, other)}")
        values.append(row)
        words.append(said)
    scale = [[0, "#56B4E9"], [0.5, "#999999"], [1, "#D55E00"]]
    return go.Heatmap(
        z=values,
        text=words,
        y=[_name(pair) for pair in pairs],
        colorscale=scale,
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=1,
        ygap=2,
        hovertemplate="%{y}, token %{x}: %{text}<extra></extra>",
        name="tokens",
    )


def _at(log: SequenceLog, place: int) -> int | None:
    return log.tokens[place].token_id if place < len(log.tokens) else None


def _text(trace: Trace, token_id: int | None) -> str:
    return "ended" if token_id is None else plain(repr(trace.text_of(token_id)))


def plain(text: str) -> str:
    """Return a text that plotly, which reads some HTML, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _mark_divergences(go: Any, figure: Any, pairs: Sequence[Pair]) -> None:
    """Put a cross where each output first differs."""
    found = [(p.divergence.position, _name(p)) for p in pairs if p.divergence is not None]
    if found:
        marks = {
            "symbol": "x",
            "size": 9,
            "color": "#F0E442",
            "line": {"color": "#000000", "width": 1},
        }
        places, names = zip(*found, strict=True)
        crosses = go.Scatter(x=places, y=names, mode="markers", marker=marks)
        crosses.update(name="first divergence", hoverinfo="skip")
        figure.add_trace(crosses, 1, 1)


def _logprobs(go: Any, figure: Any, comparison: Compared, pair: Pair) -> None:
    """Draw both runs' log-probabilities of one output, and a line where they part."""
    for log, (_, name, colour, dash) in zip((pair.a, pair.b), _runs(comparison), strict=True):
        told = [token.logprob for token in log.tokens]
        line = {"color": colour, "dash": dash}
        figure.add_trace(_line(go, list(range(len(told))), told, name, line, False), 1, 2)
    if pair.divergence is not None:
        figure.add_vline(
            x=pair.divergence.position, line_dash="dot", line_color="#888888", row=1, col=2
        )


def _latencies(go: Any, figure: Any, comparison: Compared) -> None:
    logs = (
        [*(pair.a for pair in comparison.pairs), *comparison.only_a],
        [*(pair.b for pair in comparison.pairs), *comparison.only_b],
    )
    symbols = ("circle", "diamond-open")
    for own, (_, name, colour, _), symbol in zip(logs, _runs(comparison), symbols, strict=True):
        ms = [
            (1e3 * log.ttft, None if log.tpot is None else 1e3 * log.tpot, log.request_id)
            for log in own
            if log.ttft is not None
        ]
        dots = go.Scatter(
            x=[ttft for ttft, _, _ in ms],
            y=[tpot for _, tpot, _ in ms],
            text=[plain(request) for _, _, request in ms],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
        )
        dots.update(name=name, legendgroup=name, showlegend=False)
        figure.add_trace(dots, 2, 1)


def _blocks(trace: Trace) -> tuple[list[int], list[int]]:
    total, done = trace.layout.num_blocks, trace.of(StepDone)
    return [event.step for event in done], [total - event.num_free_blocks for event in done]


def _line(
    go: Any, x: Sequence[Any], y: Sequence[Any], name: str, line: dict[str, Any], legend: bool
) -> Any:
    drawn = go.Scatter(x=x, y=y, mode="lines", line=line)
    drawn.update(name=name, legendgroup=name, showlegend=legend)
    return drawn
