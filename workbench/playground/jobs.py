"""What a worker can be asked to do: plain records, each saying what it is answered by.

A job that raises is answered by `Failed`, a user's mistake by the error itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.playground.subject import Subject

Config = dict[str, int]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make inputs and expected outputs; answers the case's space and costs, and the machine."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Try:
    """Try a configuration and time it for about so many seconds; compile `ahead` meanwhile.

    Answers a `Trial`.
    """

    subject: Subject
    config: Config
    seconds: float = 0.5
    ahead: tuple[Config, ...] = ()


@dataclass(frozen=True, slots=True)
class Finals:
    """Time configurations beside the default and the library; answers `Rig.finals`."""

    subject: Subject
    configs: tuple[Config, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Against:
    """Time a cell's kernel beside the shipped one; answers figures by "cell", "current", …"""

    subject: Subject
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """Hold the default configuration to the reference; answers a `Checked`."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Compile:
    """Compile a configuration for a target, here or not; answers a `Compiled`."""

    subject: Subject
    config: Config | None
    target: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The job raised: status and reason as a `Trial`'s."""

    status: str
    reason: str
