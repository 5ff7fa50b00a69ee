"""`EngineDashboard`: how an engine does, step by step, and the hand on its controls.

Throughput, TTFT, TPOT, queues, cache, hit rate, acceptance and memory; of a recorded trace at any
step, of a live engine as it goes, with buttons and sliders that really act between its steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.scheduler import POLICIES
from workbench.trace import Trace
from workbench.views.base import View
from workbench.views.controls import AsyncControls, Controls, EngineControls
from workbench.views.esm import compose
from workbench.views.meters import Meters
from workbench.views.picture import HUES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MOST_REQUESTS = 40  # in the table; the others are counted
_MOST_STEPS = 100_000  # by one press of the button


class EngineDashboard(View):
    """Shows a trace's figures, and drives an engine.

    source: as for `View`, or an `AsyncEngine`. An `Engine` is stepped by the panel itself, between
    cells, while it says `running`; then do not step it elsewhere. `figures()` returns the rows.
    """

    _esm = compose("dashboard")
    PICTURE_INCHES = (9.0, 4.0)

    about = traitlets.Dict().tag(sync=True)
    history = traitlets.Bytes().tag(sync=True)  # most of the log, and
    tail = traitlets.Bytes().tag(sync=True)  # what came since
    control = traitlets.Dict().tag(sync=True)  # state, limits, requests; empty for a recorded trace

    _meters: Meters | None = None
    _controls: Controls | None = None
    _taken = 0  # events of the trace that are in the log

    def __init__(self, source: Trace | Engine | AsyncEngine | None = None) -> None:
        """Raise `ConfigError` for another source, `EngineClosed` for an engine that was closed."""
        if isinstance(source, AsyncEngine):
            engine = source.call(lambda engine: engine).result()
            self._controls = AsyncControls(source, engine, self.tell)
        elif isinstance(source, Engine):
            self._controls = EngineControls(source, self.tell)
        super().__init__(source)

    # --- what is shown ---------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin with another trace."""
        self._meters, self._taken = None, 0

    def update(self) -> tuple[int, int]:
        """Take in what the trace has got; return the first and last step."""
        if self._meters is None and len(self.trace):
            self._meters = Meters(self.trace.layout.num_blocks)
        meters = self._meters
        if meters is not None:
            taken = slice(self._taken, len(self.trace.seconds))
            meters.take(self.trace.events[taken], self.trace.seconds[taken])
            self._taken = taken.stop
        with self.hold_sync():
            if self._controls is not None:
                self._show_control()
            if meters is None or not meters.num_rows:
                return 0, 0
            header = self.trace.header
            about = {"num_blocks": meters.num_blocks}
            about |= {k: header[k] for k in ("weight_bytes", "cache_bytes") if k in header}
            self.about = about
            self.history, self.tail = meters.log.parts()
        steps = meters.log.columns["step"]
        return steps[0], steps[-1]

    def _show_control(self) -> None:
        controls = self._controls
        assert controls is not None
        state = controls.state
        if state == "closed":
            self.control = {"state": state}
            return
        live = {} if self._meters is None else self._meters.live
        requests = [
            [s.request_id, s.branch, s.state, s.num_prompt_tokens, s.num_made]
            for s in list(live.values())[:_MOST_REQUESTS]
        ]
        limits = controls.limits()
        policies = list(dict.fromkeys([*POLICIES, limits["policy"]]))
        self.control = {
            "state": state,
            "limits": limits,
            "policies": policies,
            "requests": requests,
            "num_requests": len(live),
        }

    def figures(self) -> pd.DataFrame:
        """Return a row for each step: its figures, and sums from the first step on."""
        import pandas as pd

        if self._meters is None:
            return pd.DataFrame()
        log = self._meters.log
        per_step = [name for name in log.columns if not name.startswith(("ttft", "tpot"))]
        return pd.DataFrame({name: log.numbers(name) for name in per_step}).set_index("step")

    def summary(self) -> str:
        """Return the figures of the step shown."""
        meters = self._meters
        if meters is None or not meters.num_rows:
            return "engine: no step yet"
        row = self._row()
        at = {name: meters.log.columns[name][row] for name in ("running", "waiting", "used")}
        made, seconds = self._rate(row)
        return (
            f"engine at step {self.step}: {at['running']} running, {at['waiting']} waiting, "
            f"{at['used']} of {meters.num_blocks} blocks used, "
            f"{made / seconds if seconds else 0:.0f} tokens/s over the last second"
        )

    def _row(self) -> int:
        assert self._meters is not None
        steps = self._meters.log.numbers("step")
        return max(0, int(np.searchsorted(steps, self.step, side="right")) - 1)

    def _rate(self, row: int) -> tuple[int, float]:
        """Return tokens made, and seconds, of the steps that end within a second before a row."""
        assert self._meters is not None
        times = self._meters.log.numbers("time")
        first = min(int(np.searchsorted(times, times[row] - 1.0)), row - 1)
        if first < 0:
            return 0, 0.0
        made = self._meters.log.columns["made"]
        return made[row] - made[first], times[row] - times[first]

    def draw(self, figure: Figure) -> None:
        """Draw throughput, sequences, blocks and step times over the steps."""
        if self._meters is None or not self._meters.num_rows:
            figure.text(0.5, 0.5, self.summary(), ha="center")
            return
        log = self._meters.log
        steps, times = log.numbers("step"), log.numbers("time")
        spans = np.maximum(np.diff(times, prepend=times[0]), 1e-9)
        made = np.diff(log.numbers("made").astype(np.float64), prepend=0.0)
        window = np.ones(max(1, len(steps) // 60))
        rate = np.convolve(made, window, "same") / np.convolve(spans, window, "same")
        rate[0] = rate[1] if len(rate) > 1 else 0.0  # the first step has no span
        above, below = figure.subplots(2, 2, sharex=True)
        panels = zip(
            (*above, *below),
            ("tokens/s", "sequences running, waiting", "KV blocks used", "ms a step"),
            (rate, log.numbers("running"), log.numbers("used"), log.numbers("step_ms")),
            HUES[4:] + HUES[2:3],
            strict=True,
        )
        for axes, title, values, colour in panels:
            axes.plot(steps, values, color=colour, linewidth=1.2)
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_ylim(bottom=0)
            axes.axvline(self.step, color="#1976d2", linewidth=1)
            axes.tick_params(labelsize=8)
        above[1].plot(steps, log.numbers("waiting"), color=HUES[0], linewidth=1.2)
        below[0].set_xlabel("step", fontsize=8)
        below[1].set_xlabel("step", fontsize=8)

    # --- what the buttons do ---------------------------------------------------------------------

    def act(self, content: dict[str, Any]) -> None:
        """Drive the engine: run, pause, step, abort, configure. Of a recorded trace, nothing."""
        controls = self._controls
        if controls is None:
            return
        try:
            self._drive(controls, content)
        finally:
            self._pacer.poke()
            self._show_control()

    def _drive(self, controls: Controls, content: dict[str, Any]) -> None:
        match content["command"]:
            case "run":
                controls.run()
            case "pause":
                controls.pause()
            case "step":
                count = content["count"]
                if count not in range(1, _MOST_STEPS + 1):
                    fix = f"Give 1 to {_MOST_STEPS}."
                    raise ConfigError("steps", count, "is no number of steps", fix)
                controls.step(count)
            case "abort":
                controls.abort(content["request_id"])
            case "configure":
                allowed = "max_batch_tokens", "max_sequences", "max_prefill_tokens", "policy"
                controls.configure({k: v for k, v in content["changes"].items() if k in allowed})
            case _:
                super().act(content)

    def close(self) -> None:
        """Stop stepping the engine, and remove the widget."""
        if isinstance(self._controls, EngineControls):
            self._controls.pause()
        super().close()
