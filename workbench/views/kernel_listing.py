"""What the playground sends of a compiled configuration: one stage with its source, and a diff.

And a trial as a row of a table. Functions of plain records; `KernelPlayground` calls them.
"""

from __future__ import annotations

from typing import Any

from workbench.playground.compiling import Compiled, diff
from workbench.playground.listings import STAGES
from workbench.playground.subject import Trial, config_key

_MOST_DIFF_LINES = 400


def listing_of(compiled: Compiled, stage: str, launch: int) -> dict[str, Any]:
    """Return a stage of a launch for the browser; the first ones if there are no such."""
    key = config_key(compiled.config)
    if not compiled.launches:
        return {"key": key, "problem": "no launch: there is nothing to do"}
    shown = compiled.launches[min(launch, len(compiled.launches) - 1)]
    stage = stage if stage in shown.texts else next(iter(shown.texts))
    return {
        "key": key,
        "problem": "",
        "stages": [name for name in STAGES if name in shown.texts],
        "launches": [each.kernel for each in compiled.launches],
        "stage": stage,
        "text": shown.texts[stage],
        "lines": shown.lines[stage],
        "source": shown.source,
        "seconds": compiled.seconds,
    }


def comparison_of(pinned: Compiled, compiled: Compiled, stage: str, launch: int) -> dict[str, Any]:
    """Return the diff of a stage from one configuration to another, cut to what can be read."""
    about = {"pinned": config_key(pinned.config), "target": pinned.target, "lines": [], "more": 0}
    if pinned.kernel != compiled.kernel or launch >= len(pinned.launches):
        return {**about, "problem": "another kernel is pinned"}
    if stage not in pinned.launches[launch].texts:
        return {**about, "problem": f"it has no {stage}"}
    lines = diff(pinned, compiled, stage, launch)
    more = max(0, len(lines) - _MOST_DIFF_LINES)
    return {**about, "lines": lines[:_MOST_DIFF_LINES], "more": more, "problem": ""}


def as_row(trial: Trial, compiled: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a trial as a flat row: its constants, status, times, error, resources and reason.

    compiled: the resources that a compiler for another GPU told, where the trial has none.
    """
    taken = trial.resources or compiled or []
    times = {name: (trial.us or {}).get(name) for name in ("p50", "p10", "p90")}
    spills = sum(each["spills"] for each in taken) if taken else None
    return {
        **trial.config,
        "status": trial.status,
        **{f"{name}_us": value for name, value in times.items()},
        "default_us": trial.default_us,
        "max_err": trial.max_err,
        "registers": max((each["registers"] for each in taken), default=None),
        "spills": spills,
        "reason": trial.reason,
    }
