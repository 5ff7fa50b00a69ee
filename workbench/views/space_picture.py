"""The still picture of a kernel's space: parallel coordinates, a line for each configuration.

For readers without the widget, whose own picture is a heat map (`js/space_grid.js`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.playground.subject import config_key
from workbench.playground.sweep import Sweep
from workbench.views.picture import HUES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAILED = HUES[5]


def draw_space(
    figure: Figure, sweep: Sweep | None, selected: Mapping[str, int] | None, title: str
) -> None:
    """Draw every trial as a line over the constants, coloured by its time; failures dashed."""
    axes = figure.subplots()
    axes.set_title(title.replace("; ", "\n"), loc="left", fontsize=8)
    if sweep is None or not sweep.trials:
        axes.axis("off")
        return
    trials = list(sweep.trials.values())
    names = list(trials[-1].config)
    ticks = {name: sorted({t.config.get(name, 0) for t in trials}) for name in names}
    times = [trial.p50 for trial in trials if trial.ok and trial.p50]
    fastest, slowest = (min(times), max(times)) if times else (1.0, 1.0)
    order = sorted(trials, key=lambda trial: -(trial.p50 or slowest))
    chosen = None if selected is None else config_key(selected)
    for trial in order:
        line = [_height(ticks[name], trial.config.get(name, 0)) for name in names]
        style: dict[str, Any] = {"color": _FAILED, "linestyle": ":", "linewidth": 0.8}
        if trial.ok:
            speed = _log_share(trial.p50, fastest, slowest)
            colour = _cividis(1.0 - speed) if times else HUES[4]
            style = {"color": colour, "linewidth": 0.8}
        if config_key(trial.config) == chosen:
            style |= {"linewidth": 2.5, "zorder": 5}
        if times:
            line.append(_log_share(trial.p50, fastest, slowest) if trial.ok else 1.06)
        axes.plot(range(len(line)), line, **style)
    _label(axes, names, ticks, (fastest, slowest) if times else None)


def _label(
    axes: Axes, names: list[str], ticks: dict[str, list[int]], times: tuple[float, float] | None
) -> None:
    for place, name in enumerate(names):
        for value in ticks[name]:
            at = (place, _height(ticks[name], value))
            axes.annotate(str(value), at, fontsize=7, ha="right", xytext=(-3, 0),
                          textcoords="offset points")  # fmt: skip
    labels = list(names)
    if times is not None:
        labels.append("µs (log)")
        for share, us in zip((0.0, 1.0), times, strict=True):
            axes.annotate(f"{us:.1f}", (len(names), share), fontsize=7, xytext=(4, 0),
                          textcoords="offset points")  # fmt: skip
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)


def _height(values: list[int], value: int) -> float:
    return values.index(value) / max(1, len(values) - 1)


def _log_share(value: float | None, low: float, high: float) -> float:
    if value is None or high <= low:
        return 0.0
    return float((np.log(value) - np.log(low)) / (np.log(high) - np.log(low)))


def _cividis(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["cividis"](share)
