"""`LoRAPanel`: an engine's adapters by tier, where they lie on the device, what goes through them.

Load, pin, evict and unload from the panel while requests run: its buttons call the manager, between
the engine's steps. What is in use is unloaded when its requests have ended, or refused, as chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from workbench.async_engine import AsyncEngine
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.events import Event
from workbench.llm import LLM
from workbench.lora import LoRAManager
from workbench.views.adapter_traffic import BASE, AdapterTraffic
from workbench.views.esm import compose
from workbench.views.lora_desk import AsyncDesk, Desk, ManagerDesk
from workbench.views.panel import Panel
from workbench.views.picture import HUES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLOUR = {"device": HUES[2], "host": HUES[1], "disk": "#9e9e9e"}


class LoRAPanel(Panel):
    """Shows and drives the adapters of an `Engine`, `LLM` or `AsyncEngine`, or a `LoRAManager`.

    Traffic counts from when the panel was made. `table()` returns what is shown, `refresh()` shows
    what is new now, `close()` ends it.
    """

    _esm = compose("lora_panel")
    PICTURE_INCHES = (9.0, 3.2)

    adapters: Any = traitlets.List().tag(sync=True)  # a row each, by name
    device = traitlets.Dict().tag(sync=True)  # rank rows, bytes of each tier, the base's traffic

    def __init__(self, source: Engine | LLM | AsyncEngine | LoRAManager) -> None:
        """Raise `ConfigError` for another source."""
        self._desk, bus = self._open(source)
        self._traffic = AdapterTraffic()
        super().__init__()
        self._leave = bus.subscribe(self._hear)
        self.take()

    def _open(self, source: Any) -> tuple[Desk, Any]:
        match source:
            case AsyncEngine():
                return AsyncDesk(source, self.tell), source.bus
            case LLM():
                return self._open(source.engine)
            case Engine():
                return ManagerDesk(source.loras, self.tell), source.bus
            case LoRAManager():
                return ManagerDesk(source, self.tell), source.facts.bus
        fix = "Pass an Engine, an LLM, an AsyncEngine or a LoRAManager."
        raise ConfigError("source", source, "has no adapters to show", fix)

    def _hear(self, event: Event) -> None:
        """Called by the bus, on the engine's thread."""
        self._traffic.take(event, time.perf_counter())
        self._pacer.poke()

    # --- what is shown ---------------------------------------------------------------------------

    def take(self) -> None:
        """Ask how the adapters stand."""
        self._desk.ask(_standing, self._show)

    def refresh(self) -> None:
        """Show what is new now; the panel does so by itself where a loop runs."""
        self._pacer.flush()
        self.take()

    def _show(self, standing: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
        rows, device = standing
        rates = self._traffic.rates(time.perf_counter())
        running = self._traffic.running()
        for row in rows:
            row |= self._figures(row["name"], rates, running)
        base = self._figures(BASE, rates, running) | {"requests": self._traffic.requests[BASE]}
        with self.hold_sync():
            self.adapters, self.device = rows, device | {"base": base}

    def _figures(self, name: str, rates: Any, running: Any) -> dict[str, Any]:
        made = self._traffic.tokens[name]
        return {"rate": round(rates.get(name, 0.0), 1), "tokens": made, "running": running[name]}

    def table(self) -> pd.DataFrame:
        """Return a row for each adapter, as shown."""
        import pandas as pd

        frame = pd.DataFrame(self.adapters)
        return frame.set_index("name") if len(frame) else frame

    def summary(self) -> str:
        """Return how many adapters are where."""
        if not self.device:
            return "adapters: the engine has not answered yet"
        tiers = [row["tier"] for row in self.adapters]
        where = ", ".join(f"{tiers.count(tier)} on {tier}" for tier in _COLOUR)
        used = self.device["num_rows"] - self.device["num_free"]
        return f"{len(tiers)} adapters: {where}; {used} of {self.device['num_rows']} rank rows used"

    def draw(self, figure: Figure) -> None:
        """Draw tokens made through each adapter, and its hits and misses."""
        if not self.adapters:
            figure.text(0.5, 0.5, self.summary(), ha="center")
            return
        left, right = figure.subplots(1, 2, sharey=True)
        names = [row["name"] for row in self.adapters]
        places = np.arange(len(names))
        colours = [_COLOUR[row["tier"]] for row in self.adapters]
        left.barh(places, [row["tokens"] for row in self.adapters], color=colours)
        left.set_yticks(places, names, fontsize=8)
        left.set_title("green is on the device", loc="left", fontsize=9)
        left.set_xlabel("tokens made")
        hits = [row["hits"] for row in self.adapters]
        right.barh(places, hits, color=HUES[2], label="hits")
        misses = [row["misses"] for row in self.adapters]
        right.barh(places, misses, left=hits, color=HUES[5], label="misses")
        right.set_title("found on the device, or brought there", loc="left", fontsize=9)
        right.set_xlabel("times that it was wanted")
        right.legend(fontsize=7)
        left.invert_yaxis()

    # --- what the buttons do ---------------------------------------------------------------------

    def act(self, content: dict[str, Any]) -> None:
        """Ask the manager: load, unload, pin, unpin, evict."""
        match content:
            case {"command": "load", "name": name, "path": path}:
                self._desk.load(name, path, lambda _: self.take())
            case {"command": "unload", "name": name, "wait": wait}:
                self._ask(lambda manager: manager.unload(name, wait=bool(wait)))
            case {"command": "pin", "name": name}:
                self._ask(lambda manager: manager.pin(name))
            case {"command": "unpin", "name": name}:
                self._ask(lambda manager: manager.unpin(name))
            case {"command": "evict", "name": name}:
                self._ask(lambda manager: manager.evict(name))
            case _:
                super().act(content)

    def _ask(self, function: Callable[[LoRAManager], Any]) -> None:
        """Have the manager do something, and show how the adapters stand then."""
        self._desk.ask(function, lambda _: self.take())

    def close(self) -> None:
        """Stop listening, and remove the widget."""
        if hasattr(self, "_leave"):
            self._leave()
        super().close()


def _standing(manager: LoRAManager) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row for each adapter, and what the tiers hold."""
    rows = [
        {
            "name": info.name,
            "tier": info.tier,
            "pinned": info.pinned,
            "leaving": info.leaving,
            "rank": info.rank,
            "bytes": info.num_bytes,
            "rows": list(info.rows),
            "requests": info.num_requests,
            "hits": info.hits,
            "misses": info.misses,
            "ms": {move: round(1e3 * seconds, 2) for move, seconds in info.seconds.items()},
        }
        for info in manager.list()
    ]
    pool = manager.slots.pool
    device = {
        "num_rows": pool.num_rows,
        "num_free": pool.num_free,
        "bounded": manager.slots.bounded,
        "device_bytes": pool.num_bytes,
        "host_bytes": manager.store.num_host_bytes,
        "host_limit": manager.store.host_bytes,
    }
    return rows, device
