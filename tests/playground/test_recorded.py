"""Sweeps that ship: each is read, and says what it is of."""

from __future__ import annotations

from copy import deepcopy

from workbench.kernels.registry import SPECS
from workbench.playground.recorded import recorded_sweeps, title


def test_a_title_says_where_when_and_of_which_source() -> None:
    sweeps = recorded_sweeps("gemv")
    assert {sweep.header["kernel"] for sweep in sweeps} == {"gemv"}
    sweep = deepcopy(sweeps[0])
    sweep.header["source_hash"] = SPECS["gemv"].source_hash
    header = sweep.header
    about = f"{header['kernel']} / {header['case']}, {header['dtype']}"
    assert title(sweep) == f"recorded {header['when']} on {header['device']}: {about}"
    for name, value in (("source_hash", "0" * 16), ("kernel", "gone")):
        other = deepcopy(sweep)
        other.header[name] = value
        assert title(other).endswith(", of an earlier source")
