"""Recorded rows are what the program writes, and their table is arithmetic on them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from workbench.bench import gpu_rows
from workbench.bench.measure import Row, append_rows
from workbench.errors import InvalidValue


def row(case: str, rate: float, device: str = "NVIDIA H200", floor: float = 1.0) -> Row:
    """Return a row of a workload."""
    where = {"device": device, "shape": "llama-8b", "floor": floor, "when": "2026-11-25T00:00:00Z"}
    return Row("gpu", case, "workbench", "out tokens/s", rate, rate, rate, 1, 0.0, where=where)


def test_the_table_has_shares_of_the_floor_and_of_the_peer_for_the_latest_rows() -> None:
    rows = [row("decode_b1", 100.0), row("outside_b1", 20.0), row("decode_b1", 128.5)]
    [line] = gpu_rows.table(rows).to_dict("records")
    assert line["tokens/s"] == 128.5  # the later one
    assert line["floor"] == 257.0  # tokens out, in a second
    assert line["of floor"] == 0.5
    assert line["of peer"] == pytest.approx(128.5 / 195.4)
    elsewhere = gpu_rows.table([row("decode_b1", 100.0, device="NVIDIA A100")])
    assert math.isnan(elsewhere.loc["decode_b1", "of peer"])


def test_prompts_count_where_they_are_what_is_counted() -> None:
    table = gpu_rows.table([row("prefill_16x2048", 16384.0)])
    assert table.loc["prefill_16x2048", "floor"] == 16 * 2048


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row("decode_b1", 100.0), row("decode_b32", 5000.0)]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert gpu_rows.read(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_recorded_rows_say_where_they_are_from(name: str) -> None:
    rows = gpu_rows.recorded(name)
    facts = gpu_rows.provenance(rows)
    assert name in facts["device"].lower()
    assert facts["when"].startswith("2026-")
    assert {"torch", "commit", "shape"} <= facts.keys()
    table = gpu_rows.table(rows)
    assert len(table) >= 4
    assert ((table["of floor"] > 0.3) & (table["of floor"] < 1)).all()
    names = {field.name for field in dataclasses.fields(Row)}
    assert all(set(json.loads(json.dumps(dataclasses.asdict(r)))) == names for r in rows)


def test_unknown_rows() -> None:
    with pytest.raises(InvalidValue, match=r"no rows at .*a100\.jsonl\. There are: h100, h200"):
        gpu_rows.recorded("a100")
