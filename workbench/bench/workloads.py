"""The seeded workloads that every CPU figure is measured on, and how an engine runs them.

Lengths depend on the workload's name only; token ids also on `repeat`, so that an engine that
caches prefixes across calls gains nothing from an earlier repeat. All requests arrive at once and
run to a fixed length.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.sampling_params import SamplingParams

# Above the special tokens of every tokenizer in use here, and inside the smallest vocabulary.
_LOW_ID, _HIGH_ID = 16, 4095


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its prompt's token ids, and how many tokens it generates."""

    prompt: list[int]
    num_output: int


DESCRIPTIONS = {
    "W1": "1 stream, 128 in, 128 out",
    "W2": "16 equal, 128 in, 128 out each",
    "W3": "64 mixed, 16-512 in, 8-256 out",
    "W4": "32 sharing a 512-token prefix, +16 in, 32 out",
}


def make_workload(name: str, repeat: int = 0) -> list[Job]:
    """Return the jobs of workload `W1` … `W4`; raise `ConfigError` for another name."""
    if name not in DESCRIPTIONS:
        raise ConfigError(
            "workload", name, "no such workload", f"Known: {', '.join(DESCRIPTIONS)}."
        )
    lengths = random.Random(f"lengths-{name}")
    ids = random.Random(f"ids-{name}-{repeat}")
    if name == "W4":
        prefix = _token_ids(ids, 512)
        return [Job(prefix + _token_ids(ids, 16), 32) for _ in range(32)]
    if name == "W3":
        shape = [(lengths.randint(16, 512), lengths.randint(8, 256)) for _ in range(64)]
    else:
        shape = [(128, 128)] * (1 if name == "W1" else 16)
    return [Job(_token_ids(ids, num_prompt), num_output) for num_prompt, num_output in shape]


def _token_ids(source: random.Random, count: int) -> list[int]:
    return [source.randint(_LOW_ID, _HIGH_ID) for _ in range(count)]


def run_jobs(engine: Engine, jobs: list[Job]) -> list[list[int]]:
    """Run jobs greedily, all in flight together, and return each one's new token ids."""
    params = [
        SamplingParams(max_tokens=job.num_output, temperature=0, ignore_eos=True) for job in jobs
    ]
    outputs = engine.generate([job.prompt for job in jobs], params)
    return [output.outputs[0].token_ids for output in outputs]
