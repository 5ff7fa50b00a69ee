"""Every kernel against its reference: one test over all specs, cases and dtypes.

On a CPU the small cases run in Triton's interpreter, in float32 and float16 (its bfloat16 is
wrong); on a GPU every case runs natively, in bfloat16 too.
"""

from __future__ import annotations

import copy
import inspect
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_checks import check

from workbench.errors import ConfigError
from workbench.kernels.quantised_kv import QUANTISED
from workbench.kernels.registry import MODULES, SPECS, get_spec
from workbench.kernels.spec import Case, KernelSpec

GPU = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]


def runs_here(case: Case) -> bool:
    """Whether a case can run on this machine: natively, or small enough to interpret."""
    if not GPU:
        return case.small
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= case.min_capability


ALL = [(spec, case) for spec in SPECS.values() for case in spec.cases]
HERE = [(spec, case) for spec, case in ALL if runs_here(spec.cases[case])]


def named(value: Any) -> str | None:
    """Return the identifier of a parameter."""
    if isinstance(value, KernelSpec):
        return value.name
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(("spec", "case"), HERE, ids=named)
def test_kernel_equals_reference(
    spec: KernelSpec, case: str, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = spec.inputs(case, dtype, device)
    eight_bits = any(isinstance(x, torch.Tensor) and x.dtype in QUANTISED for x in inputs.values())
    # Tensor cores multiply what an 8-bit cache holds in halves, whatever the queries' dtype.
    check(spec, inputs, torch.float16 if eight_bits and dtype == torch.float32 else dtype)


@pytest.mark.parametrize(("spec", "case"), HERE, ids=named)
def test_the_reference_writes_to_no_input(
    spec: KernelSpec, case: str, device: torch.device
) -> None:
    inputs = spec.inputs(case, torch.float32, device)
    before = copy.deepcopy(inputs)
    spec.reference(**inputs)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value.float(), before[name].float(), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("spec", SPECS.values(), ids=named)
def test_configurations_from_all_over_the_space(spec: KernelSpec, device: torch.device) -> None:
    """An even sample of the space gives the same result as the default."""
    case = max((c for c in spec.cases if spec.cases[c].small), key=lambda c: work(spec, c))
    dtype = torch.float16
    inputs = spec.inputs(case, dtype, device)
    configs = list(spec.configs(inputs))
    for config in islice(configs, 0, None, max(1, len(configs) // (40 if GPU else 5))):
        check(spec, copy.deepcopy(inputs), dtype, config=config)


def work(spec: KernelSpec, case: str) -> int:
    return spec.num_bytes(**spec.inputs(case, torch.float16))


@pytest.mark.parametrize(("spec", "case"), HERE, ids=named)
def test_every_case_has_candidates_costs_and_a_bucket(
    spec: KernelSpec, case: str, device: torch.device
) -> None:
    inputs = spec.inputs(case, torch.float16, device)
    configs = list(spec.configs(inputs))
    wanted = {*spec.space}
    assert all(config.keys() == wanted for config in configs)
    assert len({tuple(c.values()) for c in configs}) == len(configs) >= 1
    assert spec.flops(**inputs) >= 0
    assert spec.num_bytes(**inputs) >= 0
    assert spec.bucket(**inputs)


@pytest.mark.parametrize("spec", SPECS.values(), ids=named)
def test_a_spec_is_complete(spec: KernelSpec) -> None:
    assert set(spec.tolerance) >= {torch.float32, torch.float16, torch.bfloat16}
    assert any(case.quick for case in spec.cases.values()), "--quick would measure nothing"
    assert any(case.small for case in spec.cases.values()), "nothing is tested without a GPU"
    assert re.fullmatch(r"[0-9a-f]{16}", spec.source_hash)
    assert all(least <= most for least, most in spec.limits.values())


def test_every_kernel_file_is_in_the_registry(repository: Path) -> None:
    files = {
        path.stem
        for path in (repository / "kernels").glob("*.py")
        if re.search(r"^SPEC\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert files == {module.__name__.rpartition(".")[2] for module in MODULES}


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"kernel='fast': no such kernel\. Known: rms_norm"):
        get_spec("fast")
    with pytest.raises(ConfigError, match=r"case='huge': rms_norm has no such case"):
        get_spec("rms_norm").inputs("huge", torch.float32)


def test_limits_are_refused_by_name() -> None:
    x = torch.empty(1, 40000)
    with pytest.raises(ConfigError, match=r"rms_norm\.width=40000: the kernel takes 1 to 32768"):
        get_spec("rms_norm")(x=x, weight=x[0], eps=1e-5)
    with pytest.raises(ConfigError, match=r"activation='relu': no such activation"):
        get_spec("silu_mul")(gate_up=x, activation="relu")


OPTIONS = {"num_warps", "num_stages", "launch_pdl", "enable_fp_fusion"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=named)
def test_launches_name_what_their_kernels_take(spec: KernelSpec, device: torch.device) -> None:
    """The interpreter passes over an argument that a kernel has not; the compiler refuses it."""
    for case, made in spec.cases.items():
        if not made.small:
            continue
        inputs = spec.inputs(case, torch.float16, device)
        for launch in spec.plan(**inputs).launches:
            taken = set(inspect.signature(launch.kernel.fn).parameters)
            assert set(launch.keywords) - OPTIONS <= taken, case
            assert taken <= set(launch.keywords) | OPTIONS, case
