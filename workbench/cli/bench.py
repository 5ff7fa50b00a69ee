"""`workbench bench PROGRAM …`: run one of the benchmark programs of `workbench.bench`.

Each program parses its own arguments and prints its own table; this only starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.cli.delegate import add_programs

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    add_programs(
        commands,
        "bench",
        "measure the engine",
        {
            "cpu": run_cpu,
            "gpu": run_gpu,
            "kernels": run_kernels,
            "lora": run_lora,
            "playground": run_playground,
            "recording": run_recording,
            "scheduler": run_scheduler,
            "speculation": run_speculation,
            "tuning": run_tuning,
            "views": run_views,
        },
    )


def run_cpu(arguments: list[str]) -> int:
    """The engine against Hugging Face `generate`, same weights, same process."""
    from workbench.bench.cpu import main

    return main(arguments)


def run_gpu(arguments: list[str]) -> int:
    """The engine on a GPU beside its ceilings and a peer; random weights."""
    from workbench.bench.gpu_engine import main

    return main(arguments)


def run_kernels(arguments: list[str]) -> int:
    """Each Triton kernel checked, timed and, on request, tuned; needs a GPU."""
    from workbench.bench.kernels import main

    return main(arguments)


def run_lora(arguments: list[str]) -> int:
    """What LoRA adapters cost: beside the base and PEFT on a CPU, an 8B shape on a GPU."""
    from workbench.bench.lora import main

    return main(arguments)


def run_playground(arguments: list[str]) -> int:
    """How long a user of the kernel playground waits, beside what is asked."""
    from workbench.playground.bench import main

    return main(arguments)


def run_recording(arguments: list[str]) -> int:
    """What recording a trace costs, step by step."""
    from workbench.bench.recording import main

    return main(arguments)


def run_scheduler(arguments: list[str]) -> int:
    """Scheduler and bookkeeping per step, without a model."""
    from workbench.bench.scheduler import main

    return main(arguments)


def run_speculation(arguments: list[str]) -> int:
    """Proposers beside plain decoding: trained ones on a CPU, random weights on a GPU."""
    from workbench.bench.speculation import main

    return main(arguments)


def run_tuning(arguments: list[str]) -> int:
    """What tuned kernels do to the engine's step on a GPU, kernel by kernel."""
    from workbench.bench.tuning import main

    return main(arguments)


def run_views(arguments: list[str]) -> int:
    """The views of a long run in a headless Chromium: bytes, time to paint, smoothness."""
    from workbench.bench.views import main
    from workbench.cli.machine.browser import find_browser

    return main(arguments, browser=find_browser())
