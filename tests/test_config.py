"""Settings said twice are said alike."""

from __future__ import annotations

from dataclasses import fields

from workbench.config import EngineConfig, SchedulerConfig


def test_the_engine_s_settings_of_the_scheduler_have_its_names_types_and_defaults() -> None:
    ours = {field.name: (field.type, field.default) for field in fields(EngineConfig)}
    theirs = {field.name: (field.type, field.default) for field in fields(SchedulerConfig)}
    assert theirs == {name: ours.get(name) for name in theirs}
    assert EngineConfig().scheduler() == SchedulerConfig()
