"""`KernelPlayground`: a kernel's configurations in hand: compiled, checked, timed and seen.

Controls are made from the kernel's tuning space; what is selected is worked on in the background
(`playground.Session`), and what is known already is drawn by the browser alone. Where there is no
GPU numerics are checked in Triton's interpreter and code is compiled for any target; recorded
sweeps show times, and say that they are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import traitlets

from workbench.errors import ConfigError
from workbench.kernels.registry import SPECS, get_spec
from workbench.playground.compiling import Compiled
from workbench.playground.recorded import recorded_sweeps, title
from workbench.playground.session import Session
from workbench.playground.subject import DTYPES, Subject, config_key
from workbench.playground.sweep import Sweep
from workbench.views.esm import compose
from workbench.views.kernel_listing import as_row, comparison_of, listing_of
from workbench.views.pace import Pacer
from workbench.views.panel import Panel
from workbench.views.space_picture import draw_space

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")


class KernelPlayground(Panel):
    """Shows a kernel's space, and tries what is selected in it.

    kernel, case: names (None: the first case that this machine can run); dtype None: bfloat16 on a
    GPU, float16 in the interpreter. recorded: a `Sweep` to show instead of trying. `trials()` is
    the table of what is known, `wait()` waits for the background, `close()` ends it.
    """

    _esm = compose("kernel_playground")
    PICTURE_INCHES = (9.0, 4.2)

    menu = traitlets.Dict().tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)  # kernel, case, dtype, target, recorded, stage, launch
    facts = traitlets.Dict().tag(sync=True)  # what a sweep's header says, and the configurations
    rows: Any = traitlets.List().tag(sync=True)  # the trials
    config = traitlets.Dict().tag(sync=True)  # what is selected; the browser sets it
    taken = traitlets.Dict().tag(sync=True)  # by configuration: its compiled launches' resources
    listing = traitlets.Dict().tag(sync=True)  # the stage shown of what is selected
    comparison = traitlets.Dict().tag(sync=True)  # the pinned configuration, and the diff to it
    state = traitlets.Dict().tag(sync=True)  # what is being done

    def __init__(
        self,
        kernel: str = "paged_decode",
        case: str | None = None,
        *,
        dtype: str | None = None,
        target: str = "cuda:90",
        recorded: Sweep | None = None,
    ) -> None:
        """Raise `ConfigError` for unknown names."""
        self._recorded = recorded_sweeps()
        if recorded is not None and recorded not in self._recorded:
            self._recorded.append(recorded)
        self._stage, self._launch = "ttgir", 0
        self._pinned: Compiled | None = None
        self._shown: Any = None
        self._pacer = Pacer(self._update)
        subject = recorded.subject if recorded else self._subject(kernel, case, dtype)
        self.session = Session(subject, target, self._pacer.poke, recorded)
        self.menu = self._menu()
        self.take()
        super().__init__()

    # --- what is shown ---------------------------------------------------------------------------

    def take(self) -> None:
        """Read what the session has come to."""
        session = self.session
        subject, sweep = session.subject, session.sweep
        with self.hold_trait_notifications(), self.hold_sync():
            index = self._recorded.index(sweep) if session.recorded and sweep else None
            self.choice = {
                **{name: getattr(subject, name) for name in ("kernel", "case", "dtype")},
                "target": session.target,
                "recorded": index,
                "stage": self._stage,
                "launch": self._launch,
            }
            self._take_sweep(sweep)
            if session.config is not None and self.config != session.config:
                self.config = dict(session.config)
            self.state = {
                "trying": session.trying,
                "compiling": session.compiling,
                "progress": session.progress,
                "notice": session.notice,
            }
            self._take_listing(session.listing)

    def _take_sweep(self, sweep: Sweep | None) -> None:
        if sweep is None:
            self.facts, self.rows = {}, []
            return
        version = (id(sweep), len(sweep.trials))
        if version == self._shown:
            return
        self._shown = version
        facts = {**sweep.header, "configs": self.session.configs, "finals": sweep.finals}
        facts["title"] = title(sweep) if self.session.recorded else ""
        self.facts = facts
        self.rows = [asdict(trial) for trial in sweep.trials.values()]

    def _take_listing(self, compiled: Compiled | str | None) -> None:
        if self.session.config is None:
            return
        key = config_key(self.session.config)
        taken = dict(self.session.compiled.taken)  # the thread goes on
        subject = self.session.subject
        self.taken = {f"{t} {k}": found for (s, k, t), found in taken.items() if s == subject}
        if not isinstance(compiled, Compiled):
            self.listing = {"key": key, "problem": compiled or ""}
            self.comparison = {}
            return
        self.listing = listing_of(compiled, self._stage, self._launch)
        pinned, stage = self._pinned, self.listing.get("stage", "")
        self.comparison = comparison_of(pinned, compiled, stage, self._launch) if pinned else {}

    def trials(self) -> pd.DataFrame:
        """Return a row for each trial: its constants, status, times, error and reason."""
        import pandas as pd

        sweep = self.session.sweep
        trials = [] if sweep is None else list(sweep.trials.values())
        taken = self.session.compiled.taken
        subject, target = self.session.subject, self.session.target
        return pd.DataFrame(
            [
                as_row(trial, taken.get((subject, config_key(trial.config), target)))
                for trial in trials
            ]
        )

    def summary(self) -> str:
        """Return what is selected and what is known of it."""
        session = self.session
        subject, trial = session.subject, session.trial
        what = f"{subject.kernel} / {subject.case}, {subject.dtype}"
        if session.recorded and session.sweep is not None:
            what = title(session.sweep)
        known = 0 if session.sweep is None else len(session.sweep.trials)
        space = session.sweep.header["num_configs"] if session.sweep else 0
        what += f": {known} of {space} configurations tried"
        if trial is None or session.config is None:
            return what
        said = f"{trial.p50:.1f} µs" if trial.p50 is not None else trial.status
        return f"{what}; {config_key(session.config)}: {said}"

    def draw(self, figure: Figure) -> None:
        """Draw the space, a dot for each trial by what it came to."""
        draw_space(figure, self.session.sweep, self.session.config, self.summary())

    # --- what a reader does ----------------------------------------------------------------------

    def choose(
        self,
        kernel: str | None = None,
        case: str | None = None,
        *,
        dtype: str | None = None,
        target: str | None = None,
        config: Mapping[str, int] | None = None,
        recorded: Sweep | None = None,
    ) -> None:
        """Select something else, as the menus do; raise `ConfigError` for unknown names."""
        if target is not None and target not in TARGETS:
            raise ConfigError("target", target, "is not offered", f"One of {', '.join(TARGETS)}.")
        present = self.session.subject
        subject = None
        if kernel is not None or case is not None or dtype is not None:
            name = kernel or present.kernel
            kept = case or (present.case if name == present.kernel else None)
            subject = self._subject(name, kept, dtype or present.dtype)
        if recorded is not None and recorded not in self._recorded:
            self._recorded.append(recorded)
            self.menu = self._menu()
        self.session.choose(subject, config, target, recorded)
        self._update()

    def sweep(self, max_trials: int | None = None) -> None:
        """Try the whole space, or so many more of it, in the background."""
        self.session.start_sweep(max_trials=max_trials)
        self._update()

    def cancel(self) -> None:
        """Stop what is being done, at once."""
        self.session.cancel()
        self._update()

    def pin(self) -> None:
        """Compare what is selected from now on with what is selected now."""
        found = self.session.listing
        self._pinned = found if isinstance(found, Compiled) else None
        self._update()

    def wait(self, seconds: float = 60.0) -> bool:
        """Wait for the background, then show what it came to; return whether it is done."""
        done = self.session.wait(seconds)
        self._update()
        return done

    @traitlets.observe("config")
    def _selected(self, _: object) -> None:
        if self.config and self.config != self.session.config:
            self.session.choose(config=self.config)

    def tell(self, text: str) -> None:
        """Show what a command came to, where the background says what it came to."""
        if text:
            self.session.notice = text
            self._update()

    def act(self, content: dict[str, Any]) -> None:
        """Do what a reader of the panel can: choose, sweep, cancel, pin, list."""
        match content["command"]:
            case "choose":
                place = content.get("recorded")
                sweep = None if place is None else self._recorded[place]
                wanted = {k: content.get(k) for k in ("kernel", "case", "dtype", "target")}
                self.choose(**({"recorded": sweep} if sweep is not None else wanted))
            case "sweep":
                self.sweep()
            case "cancel":
                self.cancel()
            case "pin":
                self.pin()
            case "list":
                self._stage, self._launch = str(content["stage"]), int(content["launch"])
                self._update()
            case _:
                super().act(content)

    # --- names -----------------------------------------------------------------------------------

    @staticmethod
    def _subject(kernel: str, case: str | None, dtype: str | None) -> Subject:
        spec, cuda = get_spec(kernel), torch.cuda.is_available()
        if case is None:
            quick = [name for name, each in spec.cases.items() if each.quick]
            small = [name for name, each in spec.cases.items() if each.small]
            case = quick[0] if cuda and quick else small[-1]
        if case not in spec.cases:
            known = ", ".join(spec.cases)
            raise ConfigError("case", case, f"{kernel} has no such case", f"Known: {known}.")
        return Subject(kernel, case, dtype or ("bfloat16" if cuda else "float16"))

    def _menu(self) -> dict[str, Any]:
        cuda = torch.cuda.is_available()
        kernels = {
            name: {
                "summary": spec.summary,
                "cases": [n for n, case in spec.cases.items() if cuda or case.small],
            }
            for name, spec in SPECS.items()
        }
        device = torch.cuda.get_device_name() if cuda else "Triton's interpreter, no times"
        recorded = [title(sweep) for sweep in self._recorded]
        offered = {"dtypes": list(DTYPES), "targets": list(TARGETS), "recorded": recorded}
        return {"kernels": kernels, "device": device, **offered}

    def close(self) -> None:
        """End the background, and remove the widget."""
        if hasattr(self, "session"):
            self.session.close()
        super().close()
