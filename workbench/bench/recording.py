"""`workbench bench recording`: what recording a trace costs a run, step by step.

Rounds of requests are recorded and not, in turn, so that whatever else the machine does meets both
alike; compared is the CPU time of the process, of which a shared machine changes least. A round is
whole: prompts, decodes and endings. The bound is 3 % of a step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from workbench.bench.idle import idle_engine
from workbench.engine import Engine
from workbench.events import EventBus
from workbench.llm import LLM
from workbench.sampling_params import SamplingParams
from workbench.trace import Trace

_BOUND = 0.03
_SHORTEST, _LONGEST = 16, 64


class Cost(NamedTuple):
    """CPU seconds of a step, medians of the rounds' means, and how many events it states."""

    plain: float
    recorded: float
    events: float

    @property
    def share(self) -> float:
        """What recording adds, as a share of a step."""
        return self.recorded / self.plain - 1


def measure(engine: Engine, num_sequences: int, num_output: int, rounds: int) -> Cost:
    """Run `rounds` not recorded and as many recorded, in turn; the trace is kept all along.

    Each round runs `num_sequences` requests of many lengths that arrive together, to their end.
    """
    source, trace = random.Random(0), Trace()
    spent: dict[bool, list[float]] = {False: [], True: []}
    params = SamplingParams(max_tokens=num_output, temperature=0, ignore_eos=True)
    num_steps = 0
    for turn in range(-2, 2 * rounds):  # the first two warm up
        recorded, count = turn % 2 == 1, 0
        names = []
        for _ in range(num_sequences):
            length = source.randint(_SHORTEST, _LONGEST)
            names.append(engine.add([source.randint(16, 99) for _ in range(length)], params))
        if recorded:
            engine.bus.subscribe(trace)
        begin = time.process_time()
        while engine.has_work:
            engine.step()
            count += 1
        mean = (time.process_time() - begin) / count
        engine.bus.unsubscribe(trace)
        engine.discard(names)
        if turn >= 0:
            spent[recorded].append(mean)
        num_steps += count if recorded else 0
    plain, told = (statistics.median(spent[recorded]) for recorded in (False, True))
    return Cost(plain, told, len(trace) / num_steps)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 if recording costs a real model more than the bound."""
    parser = argparse.ArgumentParser(prog="workbench bench recording", description=__doc__)
    parser.add_argument("--model", default="tinypy")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--output", type=int, default=192, help="tokens of each request")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    count, output = arguments.sequences, arguments.output
    blocks = count * ((_LONGEST + output) // 16 + 2)
    settings: dict[str, Any] = {"max_sequences": count, "num_blocks": blocks, "device": "cpu"}
    engines: dict[str, Callable[[], Engine]] = {
        arguments.model: lambda: LLM(arguments.model, **settings).engine,
        "no model": lambda: idle_engine(count, _LONGEST + output),
    }
    print(f"{count} sequences, {output} tokens out; CPU time of a step")
    print(f"{'':>12} {'not recorded µs':>16} {'recorded µs':>12} {'cost':>8} {'events':>8}")
    shares = {}
    for name, make in engines.items():
        with make() as engine:
            cost = measure(engine, count, output, arguments.rounds)
        shares[name] = cost.share
        print(
            f"{name:>12} {1e6 * cost.plain:>16.1f} {1e6 * cost.recorded:>12.1f} "
            f"{cost.share:>8.2%} {cost.events:>8.1f}"
        )
    print(f"an idle bus is asked in {1e9 * idle_bus():.0f} ns")
    return 0 if shares[arguments.model] <= _BOUND else 1


def idle_bus(repeats: int = 200_000) -> float:
    """Return the seconds that `if bus:` takes where nobody listens."""
    bus = EventBus()
    begin = time.process_time()
    for _ in range(repeats):
        if bus:
            raise AssertionError("nobody listens")
    return (time.process_time() - begin) / repeats


if __name__ == "__main__":
    raise SystemExit(main())
