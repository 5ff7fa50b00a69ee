"""What ships beside a model is named where somebody looks for it."""

from __future__ import annotations

from workbench.models.resolve import shipped_loras


def test_adapters_that_ship_are_named() -> None:
    assert "json, pytest, sql" in shipped_loras("tinypy")
    assert shipped_loras("/tmp/elsewhere") == shipped_loras("no-such-model") == ""
