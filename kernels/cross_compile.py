"""Compile kernels for GPUs that are not there, and read what they take: registers, spills, memory.

`compile_launch` compiles one `Launch` for a target such as `cuda:90` or `hip:gfx942`; nothing runs.
As a program (`python -m workbench.kernels.cross_compile --targets cuda:90`) it walks the registry
and prints a line of JSON per launch. It needs a process without the interpreter, and no driver.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from workbench.errors import ConfigError
from workbench.kernels.early import CAPABILITY
from workbench.kernels.launch import INTERPRETED, Launch
from workbench.kernels.registry import SPECS, get_spec
from workbench.kernels.spec import KernelSpec

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
_COUNTED = ("HGMMA", "UTCHMMA", "HMMA", "LDGSTS", "UTMALDG", "LDG", "STL", "LDL")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes: per thread registers and stack bytes, shared bytes a program.

    spills: how many store and load instructions to local memory (AMD: registers that were spilled).
    instructions: how many of those that say which path it took (HGMMA tensor cores of Hopper, HMMA
    older ones, LDGSTS copies; MFMA on AMD).
    """

    kernel: str
    target: str
    registers: int
    stack: int
    shared: int
    spills: int
    instructions: dict[str, int] = field(default_factory=dict)


def parse_target(target: str) -> GPUTarget:
    """Return Triton's name of a target; raise `ConfigError` for one that is not known."""
    backend, _, arch = target.partition(":")
    if backend == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if backend == "hip" and re.fullmatch(r"gfx9[0-9a-f]+", arch):
        return GPUTarget("hip", arch, 64)
    fix = "Write it as `cuda:90` or `hip:gfx942`."
    raise ConfigError("target", target, "no such target", fix)


def compile_for(launch: Launch, target: str) -> Any:
    """Return Triton's compiled kernel of a launch for a target, here or not.

    Raises `ConfigError` for an unknown target and under the interpreter, and what the compiler
    raises.
    """
    if INTERPRETED:
        raise ConfigError(
            "TRITON_INTERPRET", "1", "kernels are interpreted in this process", "Unset it."
        )
    options = {k: v for k, v in launch.config.items() if k in ("num_warps", "num_stages")}
    named = parse_target(target)
    if "EARLY" in launch.arguments:
        early = named.backend == "cuda" and named.arch >= CAPABILITY
        launch = replace(launch, arguments={**launch.arguments, "EARLY": early})
        if named.backend == "cuda":
            options["launch_pdl"] = early
    return triton.compile(_source(launch), named, options)


def compile_launch(launch: Launch, target: str) -> Resources:
    """Compile a launch for `cuda:<capability>` or `hip:<arch>`; see `compile_for`."""
    compiled = compile_for(launch, target)
    return resources(compiled, launch.kernel.__name__, target, machine_code(compiled))


def machine_code(compiled: Any) -> str:
    """Return SASS with source lines (NVIDIA, by triton's own nvdisasm), or AMDGCN."""
    if "amdgcn" in compiled.asm:
        return str(compiled.asm["amdgcn"])
    return _tool("nvdisasm", compiled.asm["cubin"], "-c", "-g")


def resources(compiled: Any, kernel: str, target: str, code: str) -> Resources:
    """Return what a compiled kernel takes; `code` is its `machine_code`."""
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in _COUNTED}
    if "amdgcn" in compiled.asm:
        counts = {"MFMA": len(re.findall(r"\bv_mfma_", code))}
        names = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        found = [int(re.findall(rf"\.{name}:\s+(\d+)", code)[-1]) for name in names]
        registers, stack, spills = found
    else:
        usage = _tool("cuobjdump", compiled.asm["cubin"], "--dump-resource-usage")
        registers, stack = (int(re.findall(rf"{n}:(\d+)", usage)[-1]) for n in ("REG", "STACK"))
        spills = counts.pop("STL") + counts.pop("LDL")
    return Resources(
        kernel=kernel,
        target=target,
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        spills=spills,
        instructions={name: count for name, count in counts.items() if count},
    )


def _source(launch: Launch) -> ASTSource:
    make = GluonASTSource if isinstance(launch.kernel, GluonJITFunction) else ASTSource
    values = {**launch.arguments, **launch.config}
    signature, constants, attributes = {}, {}, {}
    for place, param in enumerate(launch.kernel.params):
        value = values[param.name]
        given = param.is_constexpr or (type(value) is int and value == 1 and _by_value(param))
        kind = "constexpr" if given else _kind(value)
        signature[param.name] = kind
        if kind == "constexpr":
            constants[param.name] = value
        elif kind.startswith("*") or (
            kind in ("i32", "i64") and _by_value(param) and value % 16 == 0
        ):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return make(launch.kernel, signature, constants, attributes)


def _by_value(param: Any) -> bool:
    """Whether a launch compiles a kernel of its own for an integer that is 1, or divided by 16."""
    return not param.do_not_specialize


def _kind(value: Any) -> str:
    """Return how Triton's signature spells an argument's type."""
    if value is None or isinstance(value, bool):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    block = ",".join(map(str, value.block_shape))  # a host-made tensor descriptor
    layout = f",{value.layout!r}" if hasattr(value, "layout") else ""
    return f"tensordesc<{_TYPES[value.base.dtype]}[{block}]{layout}>"


def _tool(name: str, cubin: bytes, *options: str) -> str:
    """Run one of the tools that come with triton on a cubin and return what it prints."""
    binary = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(binary), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def launches(
    spec: KernelSpec,
    case: str,
    dtype: torch.dtype,
    targets: list[str],
    sample: int = 0,
    changes: dict[str, int] | None = None,
) -> Iterator[tuple[dict[str, int], Launch, str]]:
    """Yield (configuration, launch, target) for the default and `sample` others of a case's space.

    changes: values of the default's constants that are to be others. A target older than the case
    needs is left out.
    """
    inputs = spec.inputs(case, dtype)
    configs = list(spec.configs(inputs))
    configs[0] = {**configs[0], **(changes or {})}
    step = max(1, len(configs) // (sample + 1))
    for config in islice(configs, 0, 1 + sample * step, step):
        for launch in spec.plan(**inputs, config=config).launches:
            for target in targets:
                arch = parse_target(target).arch
                if isinstance(arch, int) and arch < spec.cases[case].min_capability:
                    continue
                yield dict(config), launch, target


def main(argv: list[str] | None = None) -> int:
    """Compile small cases of the chosen kernels; print a line of JSON each; return 0."""
    parser = argparse.ArgumentParser(prog="workbench.kernels.cross_compile", description=__doc__)
    parser.add_argument("--kernel", choices=[*SPECS, "all"], default="all")
    parser.add_argument("--case", help="only this case (default: every small one)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--targets", default="cuda:90", help="comma-separated")
    parser.add_argument("--sample", type=int, default=0, help="configurations beside the default")
    parser.add_argument("--config", default="{}", help="JSON: changes to the default")
    arguments = parser.parse_args(argv)
    changes = json.loads(arguments.config)
    specs = list(SPECS.values()) if arguments.kernel == "all" else [get_spec(arguments.kernel)]
    dtype = getattr(torch, arguments.dtype)
    targets = arguments.targets.split(",")
    for spec in specs:
        small = [name for name, case in spec.cases.items() if case.small]
        for case in [arguments.case] if arguments.case else small:
            found = launches(spec, case, dtype, targets, arguments.sample, changes)
            for config, launch, target in found:
                taken = asdict(compile_launch(launch, target))
                row = {"spec": spec.name, "case": case, "config": config, **taken}
                sys.stdout.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
