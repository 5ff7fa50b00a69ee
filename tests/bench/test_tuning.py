"""What tuned rows do to a step: the rows that a step uses, and engines that take turns."""

from __future__ import annotations

from typing import Any

import pytest
from interpreter import kernel_device

from workbench.bench import tuning
from workbench.bench.measure import Row
from workbench.config import ModelConfig
from workbench.kernels.registry import get_spec
from workbench.kernels.tuning import TunedRow, TunedTable
from workbench.models import DecoderLM, LlamaForCausalLM


@pytest.fixture
def model() -> DecoderLM:
    """A model of random weights whose vocabulary has the bench's prompts."""
    config = ModelConfig("LlamaForCausalLM", 160, 16, 16, 1, 2, 1, 16, context=256)
    found = LlamaForCausalLM(config)
    found.init_weights(std=0.3)
    return found.requires_grad_(False)


def row(kernel: str, bucket: str, **config: int) -> TunedRow:
    """Return a row for float32 that says the kernel's time went from 4 to 2 us."""
    fields: dict[str, Any] = dict.fromkeys(("driver", "triton", "torch"), "")
    fields |= {"kernel": kernel, "bucket": bucket, "dtype": "float32", "config": config}
    fields |= {"source_hash": get_spec(kernel).source_hash, "device": "cpu", "seed": 0}
    fields |= {"latency_us": {"p50": 2.0, "p90": 3.0}, "default_us": 4.0, "library_us": None}
    return TunedRow(**fields, bound=0.5, max_err=0.0)


@pytest.mark.parametrize("device", [kernel_device()])
def test_each_kernel_s_rows_are_set_beside_the_shipped_ones(
    device: str,
    model: DecoderLM,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "_PROMPT", 2)
    monkeypatch.setattr(tuning, "_WARM", 1)
    if device != "cpu":
        model.to(device)
    rows = [
        row("silu_mul", "width 16 rows 2", BLOCK=64, num_warps=1),
        row("rms_norm", "width 16 rows 2 +residual", ROWS=1, num_warps=1),
        row("silu_mul", "width 16 rows 256", BLOCK=64, num_warps=1),  # no decode of two asks it
    ]
    found = tuning.measure(model, TunedTable("cpu", rows), 2, rounds=1, steps=1, where={})
    assert [each.case.removeprefix("decode_b2: ") for each in found] == [
        tuning.SHIPPED, tuning.AGAIN, "silu_mul", "rms_norm", tuning.ALL
    ]  # fmt: skip
    assert [len(each.where["rows"]) for each in found] == [0, 0, 1, 1, 2]
    assert all(each.n == 1 and each.where["same tokens"] for each in found)
    assert all(0 < each.low <= each.median <= each.high for each in found)
    shown = capsys.readouterr().out
    assert "rms_norm / float32 / width 16 rows 2: default: this bucket is not tuned" in shown
    assert "decode_b2: silu_mul" in shown
    assert "width 16 rows 2 4 -> 2" in shown
    (*_, all_rows) = tuning.effects(found)
    assert (all_rows["kernel"], all_rows["own"]) == (tuning.ALL, (-0.5, -0.5))


def test_a_step_has_moved_where_it_did_more_than_the_same_step_again() -> None:
    def made(name: str, median: float, *rows: dict[str, float]) -> Row:
        ends = median - 1, median + 1
        where = {"shipped": 1000.0, "rows": list(rows)}
        return Row("tuning", f"decode_b1: {name}", "", "", median, *ends, 5, 0.0, "", where)

    found = tuning.effects(
        [
            made(tuning.SHIPPED, 1000.0),
            made(tuning.AGAIN, 1004.0),
            made("gemv", 900.0),  # an older row of the same
            made("gemv", 970.0, {"p50": 9.0, "before_us": 10.0}, {"p50": 7.0, "before_us": 10.0}),
            made("silu_mul", 997.0, {"p50": 5.0, "before_us": 10.0}),
        ]
    )
    assert [each["moved"] for each in found] == [False, False, True, False]
    gemv, silu_mul = found[2:]
    assert gemv["step"] == pytest.approx(-0.03)
    assert gemv["own"] == pytest.approx((-0.3, -0.1))
    assert silu_mul["noise"] == pytest.approx(0.004)
