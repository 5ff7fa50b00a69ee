"""Kernels by name: replaced, put back, refused, and noted when they are asked for."""

from __future__ import annotations

import dataclasses

import pytest

from workbench.errors import ConfigError
from workbench.kernels.registry import SPECS
from workbench.ops.kernel_set import KernelSet


def test_a_kernel_is_replaced_and_put_back_by_its_name() -> None:
    kernels = KernelSet(SPECS)
    mine = dataclasses.replace(SPECS["gemv"], summary="mine")
    kernels.replace(kernels.named(mine))
    assert kernels["gemv"] is mine
    assert kernels.replaced == {"gemv"}
    assert KernelSet(SPECS)["gemv"] is SPECS["gemv"]
    kernels.replace(kernels.named("gemv"))
    assert kernels["gemv"] is SPECS["gemv"]
    assert kernels.replaced == set()


@pytest.mark.parametrize(
    "wrong", ["softmax", 3, None, dataclasses.replace(SPECS["gemv"], name="other")]
)
def test_what_has_no_place_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"kernel=.*no such kernel.*Known: rms_norm, "):
        KernelSet(SPECS).named(wrong)  # type: ignore[arg-type]


def test_what_is_asked_for_is_noted_also_in_a_block_within_a_block() -> None:
    kernels = KernelSet(SPECS)
    with kernels.noting() as outer:
        kernels["gemv"]
        with kernels.noting() as inner:
            kernels["sample"]
        kernels["rms_norm"]
    assert (outer, inner) == ({"gemv", "sample", "rms_norm"}, {"sample"})
