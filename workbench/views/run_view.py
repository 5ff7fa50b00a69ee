"""`RunView`: the base of views that draw steps, sequences and tokens out of a trace's `RunLog`.

A subclass names the groups of columns that it sends, and declares their two traits each; the
browser reads them by `loadRun` (js/run_panel.js).
"""

from __future__ import annotations

from typing import ClassVar

import traitlets

from workbench.views.base import View
from workbench.views.esm import FOLDER, STYLE
from workbench.views.run_log import RunLog

_SHOWN = ("model", "device", "backend", "max_batch_tokens", "max_sequences")


class RunView(View):
    """Sends the groups of columns that `GROUPS` names, whole, in two parts each."""

    _css = STYLE + (FOLDER / "run_view.css").read_text(encoding="utf-8")
    GROUPS: ClassVar[tuple[str, ...]] = ("sequences",)

    sequences_old = traitlets.Bytes().tag(sync=True)
    sequences_new = traitlets.Bytes().tag(sync=True)
    header = traitlets.Dict().tag(sync=True)

    def reset(self) -> None:
        """Begin anew, with another trace."""
        self.run = RunLog.of(self.trace)

    def update(self) -> tuple[int, int]:
        """Send what the trace has got since; return the first and last committed step."""
        self.run.read()
        header = self.trace.header
        parts = {group: self.run.logs[group].parts() for group in self.GROUPS}
        with self.hold_sync():  # one message: columns of one length
            self.header = {name: header[name] for name in _SHOWN if name in header}
            for group, (old, new) in parts.items():
                setattr(self, f"{group}_old", old)
                setattr(self, f"{group}_new", new)
        return self.run.bounds
