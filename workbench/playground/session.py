"""`Session`: one reader's playground, working in the background on whatever is selected.

Two threads, each with a worker process: one tries configurations (and sweeps), one compiles them
for the target. A thread looks at what is selected, does what is missing, and looks again, so a
newer selection is never queued behind older ones. `cancel` kills what is being done.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from workbench.errors import WorkbenchError
from workbench.playground.client import Worker
from workbench.playground.compilations import Compilations, Key
from workbench.playground.compiling import Compiled, CompileFailed, cross_compile
from workbench.playground.search import Search, make_search
from workbench.playground.subject import Subject, Trial, config_key
from workbench.playground.sweep import Sweep, header_of
from workbench.playground.tuner import prepare, try_config

Config = dict[str, int]
Tell = Callable[[], None]


def _tried(recorded: Sweep) -> list[Config]:
    return [trial.config for trial in recorded.trials.values()]  # the default is tried first


class Session:
    """Tries and compiles what is selected. tell: called, on any thread, when something is new.

    subject, target, config: what is selected; change them by `choose`. sweep: header and trials of
    the present subject, recorded or made here; None until the case is prepared. compiled: by
    (subject, config key, target), a `Compiled` or the reason why there is none. A sweep without a
    GPU compiles what it has tried as well.
    """

    def __init__(
        self, subject: Subject, target: str, tell: Tell, recorded: Sweep | None = None
    ) -> None:
        """recorded: a sweep of `subject` to show; nothing is tried then."""
        self.subject, self.target, self._tell = subject, target, tell
        self.sweep, self.recorded = recorded, recorded is not None
        self.configs = [] if recorded is None else _tried(recorded)
        self.config: Config | None = dict(self.configs[0]) if self.configs else None
        self.compiled = Compilations()
        self.notice = ""
        self.trying: str | None = None
        self.compiling = False
        self._search: Search | None = None
        self._surveying = False
        self._left = 0  # trials that the sweep in hand may still make
        self._known: dict[Subject, tuple[Sweep, list[Config]]] = {}
        self._refused: set[tuple[Subject, str]] = set()  # cancelled: not tried again unasked
        self._changed = threading.Condition()
        self._closed = False
        self._trier, self._compiler = Worker(), Worker(interpret=False)
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), daemon=True)
            for step in (self._try_step, self._compile_step)
        ]
        for thread in self._threads:
            thread.start()

    # --- what a reader does ----------------------------------------------------------------------

    def choose(
        self,
        subject: Subject | None = None,
        config: Mapping[str, int] | None = None,
        target: str | None = None,
        recorded: Sweep | None = None,
    ) -> None:
        """Select something else; what is left out stays. recorded: show that sweep, try nothing."""
        with self._changed:
            self.notice = ""
            if recorded is not None:
                subject = recorded.subject
                self._known.pop(subject, None)
            if subject is not None and (
                subject != self.subject or recorded is not None or self.recorded
            ):
                self.subject, self.recorded = subject, recorded is not None
                self.sweep, self.config, self._search = recorded, None, None
                self.configs = [] if recorded is None else _tried(recorded)
                if recorded is None and subject in self._known:
                    self.sweep, self.configs = self._known[subject]
                self.config = dict(self.configs[0]) if self.configs else None
                self._trier.cancel()
            if config is not None:
                self.config = {name: int(value) for name, value in config.items()}
                self._refused.discard((self.subject, config_key(self.config)))
                self.compiled.retry(self._compile_key())
            if target is not None:
                self.target = target
            self._changed.notify_all()

    def start_sweep(self, method: str = "auto", max_trials: int | None = None) -> None:
        """Try the whole space, or `max_trials` more of it, between what else is selected."""
        with self._changed:
            if self.recorded or self.sweep is None:
                self.notice = "A recorded sweep is not swept again; choose a live one."
                return
            self._search = make_search(method, self.configs, self.subject.seed)
            for trial in self.sweep.trials.values():
                self._search.tell(trial)
            self._left = max_trials or len(self.configs)
            self._surveying = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Stop the sweep and what is being tried or compiled, at once."""
        with self._changed:
            self._search, self._surveying = None, False
            if self.config is not None:
                self._refused.add((self.subject, config_key(self.config)))
            self._trier.cancel()
            self._compiler.cancel()
            self._changed.notify_all()

    def wait(self, seconds: float = 60.0) -> bool:
        """Wait until nothing is left to do; return whether that came within `seconds`."""
        with self._changed:
            return self._changed.wait_for(self._idle, seconds)

    def close(self) -> None:
        """End the threads and the workers."""
        with self._changed:
            self._closed = True
            self._trier.cancel()
            self._compiler.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)
        self._trier.close()
        self._compiler.close()

    # --- what is known ---------------------------------------------------------------------------

    @property
    def trial(self) -> Trial | None:
        """The trial of what is selected."""
        if self.sweep is None or self.config is None:
            return None
        return self.sweep.trials.get(config_key(self.config))

    @property
    def listing(self) -> Compiled | str | None:
        """What was compiled of what is selected, or why it was not; None: not yet."""
        return None if self.config is None else self.compiled.get(self._compile_key())

    @property
    def progress(self) -> tuple[int, int] | None:
        """(tried, in all) of the sweep in hand."""
        if self._search is None or self.sweep is None:
            return None
        tried = len(self.sweep.trials)
        return tried, min(len(self.configs), tried + self._left)

    def _compile_key(self, config: Config | None = None) -> Key:
        config = config or self.config
        assert config is not None
        return self.subject, config_key(config), self.target

    def _idle(self) -> bool:
        return not self._try_work() and self._uncompiled() is None

    def _try_work(self) -> bool:
        if self.recorded:
            return False
        if self.sweep is None:
            return (self.subject, "") not in self._refused
        return self._search is not None or self._untried() is not None

    def _untried(self) -> Config | None:
        config = self.config
        if config is None or self.sweep is None or self.trial is not None:
            return None
        return None if (self.subject, config_key(config)) in self._refused else config

    def _uncompiled(self) -> Config | None:
        """Return what to compile next: what is selected, then what a sweep has tried."""
        if self.config is None or (self.subject, config_key(self.config)) in self._refused:
            return None
        if self._compile_key() not in self.compiled:
            return self.config
        if not self._surveying or self.sweep is None or self.recorded:
            return None
        for trial in list(self.sweep.trials.values()):
            key = self._compile_key(trial.config)
            if trial.ok and not trial.resources and key not in self.compiled:
                return trial.config
        return None

    # --- the threads -----------------------------------------------------------------------------

    def _loop(self, step: Callable[[], bool]) -> None:
        """Do steps until there is nothing left, then wait for a change."""
        while not self._closed:
            try:
                worked = step()
            except Exception:  # noqa: BLE001 - in a thread nobody would see it: the panel says it
                self.notice, worked = traceback.format_exc(limit=-2), False
            self._tell()
            with self._changed:
                self._changed.notify_all()
                if not worked and not self._closed:
                    self._changed.wait()

    def _try_step(self) -> bool:
        with self._changed:
            if self._closed or not self._try_work():
                return False
            subject, sweep, search = self.subject, self.sweep, self._search
            config = self._untried()
            if sweep is not None and config is None:
                assert search is not None
                config = search.next() if self._left > 0 else None
                self._left -= 1
            self.trying = "preparing" if config is None else config_key(config)
        self._tell()
        try:
            if sweep is None:
                self._prepare(subject)
            elif config is None:
                self._search = None
            else:
                ahead = search.ahead(8) if search is not None else ()
                trial = try_config(subject, config, self._trier, ahead=ahead)
                self._book(subject, sweep, trial)
        finally:
            self.trying = None
        return True

    def _prepare(self, subject: Subject) -> None:
        try:
            facts = prepare(subject, self._trier)
        except WorkbenchError as error:
            with self._changed:
                if subject == self.subject:  # else it was cancelled for another one
                    self.notice = str(error)
                    self._refused.add((subject, ""))
            return
        known = Sweep(header_of(subject, facts)), list(facts["configs"])
        with self._changed:
            self._known[subject] = known
            if subject == self.subject and not self.recorded:
                self.sweep, self.configs = known
                self.config = self.config or dict(self.configs[0])

    def _book(self, subject: Subject, sweep: Sweep, trial: Trial) -> None:
        with self._changed:
            if trial.status == "cancelled":
                return
            sweep.add(trial)
            if self._search is not None and subject == self.subject:
                self._search.tell(trial)

    def _compile_step(self) -> bool:
        with self._changed:
            subject, target, config = self.subject, self.target, self._uncompiled()
            if self._closed or config is None:
                return False
            key = self._compile_key(config)
            self.compiling = True
        self._tell()
        found: Compiled | str
        try:
            about: dict[str, Any] = {
                "dtype": subject.dtype,
                "source": subject.source,
                "worker": self._compiler,
            }
            found = cross_compile(subject.kernel, subject.case, config, target, **about)
        except CompileFailed as error:
            found = str(error)
            if error.status == "cancelled":
                return True
        except WorkbenchError as error:
            found = str(error)
        finally:
            self.compiling = False
        with self._changed:
            self.compiled.add(key, found, keep=None if self.config is None else self._compile_key())
        return True
