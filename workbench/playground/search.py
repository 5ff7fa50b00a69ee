"""In which order a kernel's space is tried: all of it, a seeded part, or where a model points.

A search is asked for the next configuration and told what each came to; what a sweep file holds
already is told first, so a search that goes on knows what it knew. `guided` is Optuna's
tree-structured Parzen estimator, an optional dependency.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

from workbench.errors import ConfigError, MissingExtra
from workbench.playground.subject import Trial, config_key

EXHAUSTIVE_LIMIT = 512
METHODS = ("auto", "exhaustive", "random", "guided")

Config = dict[str, int]


class Search(Protocol):
    """One way through a space; the first configuration is always the default."""

    def next(self) -> Config | None:
        """Return a configuration that was not tried yet; None at the end."""

    def ahead(self, count: int) -> tuple[Config, ...]:
        """Return what is certain to come next, so that it can be compiled meanwhile."""

    def tell(self, trial: Trial) -> None:
        """Learn what a configuration came to."""


class Shuffled:
    """All configurations, the default first, the others in a seeded order.

    Cut short, it is a random search; run to its end, an exhaustive one.
    """

    def __init__(self, configs: Sequence[Config], seed: int) -> None:
        default, *others = configs
        random.Random(seed).shuffle(others)
        self._left = {config_key(config): config for config in (default, *others)}

    def next(self) -> Config | None:
        """Return the next one."""
        return self._left.pop(next(iter(self._left))) if self._left else None

    def ahead(self, count: int) -> tuple[Config, ...]:
        """Return the next ones."""
        return tuple(islice(self._left.values(), count))

    def tell(self, trial: Trial) -> None:
        """Leave out what was tried."""
        self._left.pop(config_key(trial.config), None)


class Guided:
    """Optuna's TPE over the space's values; what it proposes twice is drawn anew."""

    def __init__(self, configs: Sequence[Config], seed: int) -> None:
        """Raise `MissingExtra` where Optuna is not installed."""
        try:
            self._optuna: Any = importlib.import_module("optuna")
        except ModuleNotFoundError as error:
            raise MissingExtra("search='guided'", "optuna", "tune") from error
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._default = configs[0]
        self._left = {config_key(config): config for config in configs}
        names = list(configs[-1])
        self._space = {
            name: self._optuna.distributions.CategoricalDistribution(
                sorted({config[name] for config in configs if name in config})
            )
            for name in names
        }
        sampler = self._optuna.samplers.TPESampler(
            seed=seed, multivariate=True, warn_independent_sampling=False, n_startup_trials=10
        )
        self._study = self._optuna.create_study(sampler=sampler)
        self._rng = random.Random(seed)
        self._slowest = 0.0

    def next(self) -> Config | None:
        """Return the default, then what the model proposes."""
        if not self._left:
            return None
        if config_key(self._default) in self._left:
            return self._default
        for _ in range(20):
            asked = self._study.ask(self._space)
            proposed = self._left.get(config_key(asked.params))
            # Booked either way when it was tried (`tell`); here it only must not stay open.
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
            if proposed is not None:
                return proposed
        return self._rng.choice(list(self._left.values()))

    def ahead(self, count: int) -> tuple[Config, ...]:
        """Nothing: what comes next hangs on what the present one comes to."""
        return ()

    def tell(self, trial: Trial) -> None:
        """Book a result; a failure counts as twice the slowest."""
        self._left.pop(config_key(trial.config), None)
        value = trial.p50 if trial.ok and trial.p50 is not None else 2 * self._slowest
        self._slowest = max(self._slowest, trial.p50 or 0.0)
        inside = all(
            name in trial.config and trial.config[name] in kind.choices
            for name, kind in self._space.items()
        )
        if inside:
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params={name: trial.config[name] for name in self._space},
                    distributions=self._space,
                    value=value,
                )
            )


def make_search(method: str, configs: Sequence[Config], seed: int) -> Search:
    """Return a search; "auto" is all of a space of at most 512, else a guided one."""
    if method not in METHODS:
        raise ConfigError("search", method, "no such search", f"Known: {', '.join(METHODS)}.")
    if method == "auto":
        method = "exhaustive" if len(configs) <= EXHAUSTIVE_LIMIT else "guided"
    return Guided(configs, seed) if method == "guided" else Shuffled(configs, seed)
