"""The controller on virtual time: it never loses more than it may, and finds what pays."""

from __future__ import annotations

import random

import pytest

from workbench.speculation import SpeculationConfig
from workbench.speculation.control import Control

PLAIN = 0.010


def simulate(
    rate: float,
    cost: float,
    steps: int = 3000,
    *,
    rows: int = 4,
    config: SpeculationConfig | None = None,
    noise: float = 0.0,
) -> tuple[float, float, list[int], Control]:
    """Return (time taken, plain time for as many tokens, depths, the control).

    Each draft token is right with `rate` if all before it are, and makes a step longer by `cost`
    plain steps.
    """
    control = Control(config or SpeculationConfig(adaptive=True, max_depth=8))
    source = random.Random(0)
    spent = plain = 0.0
    depths = []
    for _ in range(steps):
        depth = control.depth(rows)
        runs = [
            next((i for i in range(depth) if source.random() >= rate), depth) for _ in range(rows)
        ]
        accepted = sum(runs)
        seconds = PLAIN * (1 + cost * depth) * source.uniform(1 - noise, 1 + noise)
        observe(control, runs, depth, seconds)
        spent += seconds
        plain += PLAIN * (rows + accepted) / rows
        depths.append(depth)
        # One try may be longer than a plain step, which is what it was allowed for.
        assert spent <= 1.02 * plain + PLAIN * cost * 8, "slower than promised"
    return spent, plain, depths, control


def observe(control: Control, runs: list[int], depth: int, seconds: float) -> None:
    """Tell of a step whose rows accepted runs of these lengths; others wait for their places."""
    if depth:
        made = {row: 1 + run for row, run in enumerate(runs)}
        control.observe(made, depth, depth * len(runs), sum(runs), seconds, queue=True)
    else:
        control.observe_plain(len(runs), seconds)


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_what_does_not_pay_costs_at_most_two_percent(rate: float, noise: float) -> None:
    spent, plain, depths, _ = simulate(rate, cost=1.0, noise=noise)
    # With noise the plain steps themselves add up to some tenths of a percent more or less.
    assert spent <= (1.02 if noise == 0 else 1.025) * plain
    assert depths.count(0) > 0.9 * len(depths)


def test_what_pays_is_found() -> None:
    spent, plain, depths, _ = simulate(0.8, cost=0.05)
    assert plain / spent > 2.2  # the best depth's: sum of 0.8^i up to 8 is 4.3, over 1.4
    assert depths[-1] >= 6


def test_the_best_depth_is_no_deeper_than_it_pays() -> None:
    _, _, depths, _ = simulate(0.6, cost=0.2)
    used = [d for d in depths[1500:] if d]
    # Tokens per time: 1.33 at 1, 1.4 at 2, 1.36 at 3, 1.28 at 4.
    assert max(set(used), key=used.count) in (1, 2, 3)


def test_a_change_is_noticed() -> None:
    control = Control(SpeculationConfig(adaptive=True, max_depth=4))
    source = random.Random(1)
    late = []
    for step in range(6000):
        rate = 0.9 if step < 3000 else 0.0
        depth = control.depth(1)
        accepted = next((i for i in range(depth) if source.random() >= rate), depth)
        seconds = PLAIN * (1 + 0.2 * depth)
        observe(control, [accepted], depth, seconds)
        if step > 4000:
            late.append(depth)
    assert late.count(0) > 0.8 * len(late)


def test_acceptance_below_the_threshold_switches_off_and_a_better_one_on() -> None:
    config = SpeculationConfig(min_acceptance=0.3, max_depth=4)
    _, _, depths, control = simulate_free(0.05, config)
    assert depths.count(0) > 0.9 * len(depths)
    assert max(depths) == 4  # and it goes on looking
    for _ in range(3000):
        depth = control.depth(2)
        observe(control, [depth, depth], depth, PLAIN)
    assert control.depth(2) == 4


def simulate_free(
    rate: float, config: SpeculationConfig
) -> tuple[float, float, list[int], Control]:
    control, source, depths = Control(config), random.Random(2), []
    for _ in range(1000):
        depth = control.depth(2)
        runs = [sum(source.random() < rate for _ in range(depth)) for _ in range(2)]
        observe(control, runs, depth, PLAIN)
        depths.append(depth)
    return 0.0, 0.0, depths, control


def test_a_schedule_by_load() -> None:
    config = SpeculationConfig(lengths=((16, 2), (1, 8), (64, 0)))
    assert [config.depth(n) for n in (1, 15, 16, 63, 64, 500)] == [8, 8, 2, 2, 0, 0]
    control = Control(config)
    assert [control.depth(n) for n in (1, 16, 64)] == [8, 2, 0]


@pytest.mark.parametrize("queue", [False, True])
def test_running_ahead_of_the_batch_pays_only_where_others_wait(queue: bool) -> None:
    """One of four has all its drafts accepted; a step costs half as much again."""
    control = Control(SpeculationConfig(adaptive=True, max_depth=4))
    depths = []
    for _ in range(2000):
        depth = control.depth(4)
        made = {0: 1 + depth, 1: 1, 2: 1, 3: 1}
        if depth:
            control.observe(made, depth, 4 * depth, depth, PLAIN * 1.5, queue=queue)
        else:
            control.observe_plain(4, PLAIN)
        depths.append(depth)
    used = sum(1 for depth in depths if depth) / len(depths)
    assert used > 0.8 if queue else used < 0.1


def test_where_nothing_pays_it_is_tried_ever_more_rarely() -> None:
    _, _, depths, _ = simulate(0.0, cost=1.0, steps=20_000)
    tries = [step for step, depth in enumerate(depths) if depth]
    assert len([step for step in tries if step > 10_000]) <= 4


# How fast each of four is, the draft's price, and what its verification adds, in plain steps.
BATCHES = {
    "nothing is right": ((0.0, 0.0, 0.0, 0.0), 0.1),
    "some run ahead": ((0.0, 0.1, 0.5, 0.9), 0.3),
    "all a little": ((0.3, 0.3, 0.3, 0.3), 0.4),
    "it pays": ((0.8, 0.8, 0.8, 0.8), 0.05),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches_that_grow_smaller_take_at_most_two_percent_more(case: str) -> None:
    """Four requests at a time, each to its own end; steps of fewer rows are shorter."""
    rates, cost = BATCHES[case]
    control, source = Control(SpeculationConfig(adaptive=True, max_depth=8)), random.Random(3)
    spent, told, steps, length = 0.0, 0, 0, 100

    def plain(rows: int) -> float:
        return PLAIN * (0.6 + 0.1 * rows)

    for batch in range(1, 41):
        left = dict.fromkeys(range(4), length)
        while left:
            depth, rows = control.depth(len(left)), len(left)
            seconds, own = plain(rows) * (1 + cost * depth), 0.001 * plain(rows)
            made, accepted = {}, 0
            for row in left:
                run = next((i for i in range(depth) if source.random() >= rates[row]), depth)
                made[4 * batch + row] = 1 + run
                accepted += run
                left[row] -= 1 + run
            steps += 1
            if depth:
                control.observe(made, depth, depth * rows, accepted, seconds)
            elif not control.passes_over():
                control.observe_plain(rows, seconds)
                told += 1
                own = 0.014 * plain(rows)  # as measured: looking at a step takes time as well
            spent += seconds + own
            left = {row: tokens for row, tokens in left.items() if tokens > 0}
        assert spent <= 1.02 * batch * length * plain(4) + 2 * PLAIN, "slower than promised"
    if case == "it pays":
        assert spent < 0.6 * 40 * length * plain(4)
    else:
        assert told < 0.5 * steps


def test_a_pause_is_known_one_step_ahead() -> None:
    control, told = Control(SpeculationConfig(adaptive=True, max_depth=8)), 0
    for _ in range(600):
        pauses = control.pauses(4)
        depth = control.depth(4)
        told += pauses
        assert not (pauses and depth)
        observe(control, [0] * 4, depth, PLAIN * (1 + depth))
    assert told > 400
    assert not Control(SpeculationConfig()).pauses(4)


def test_a_try_that_was_not_measured_is_made_again() -> None:
    """Its step captured a graph; where a try counted all the same, the next came 32 steps later."""
    control = Control(SpeculationConfig(adaptive=True, max_depth=5))
    depths, captures = [], 2
    for _ in range(12):
        depth = control.depth(1)
        depths.append(depth)
        if depth and captures:
            captures -= 1
            control.unmeasured(1)
        else:
            observe(control, [depth], depth, PLAIN * (1.5 if depth else 1))
    assert depths[:4] == [0] * 4
    assert depths[4:7] == [1] * 3, "until it was measured"


# What a step takes that verifies drafts of a head that drafts all its tokens in one go, in plain
# steps, as on an H200 with chains of 5 at 1 and 128 sequences; how often a token is right.
MACHINES = {"pays twofold": (1.65, 0.75), "never right": (1.65, 0.0), "dear": (6.4, 0.75)}


@pytest.mark.parametrize("captures", [0, 2])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_whose_first_tries_capture_graphs(machine: str, seed: int, captures: int) -> None:
    """The first steps of each depth are told as unmeasured, and the allowance is as ever: what pays
    is found within 200 steps, and what does not costs 2 %."""
    ratio, right = MACHINES[machine]
    control, source = Control(SpeculationConfig(adaptive=True, max_depth=5)), random.Random(seed)
    tried: dict[int, int] = {}
    spent, made, depths = 0.0, 0.0, []
    for _ in range(1000):
        depth = control.depth(1)
        run = next((i for i in range(depth) if source.random() >= right), depth)
        seconds = PLAIN * (ratio if depth else 1.0) * source.uniform(0.98, 1.02)
        tried[depth] = tried.get(depth, 0) + 1
        if depth and tried[depth] <= captures:
            control.unmeasured(1)
        elif depth:
            control.observe({0: 1 + run}, depth, depth, run, seconds)
        elif not control.passes_over():
            control.observe_plain(1, seconds)
        spent, made = spent + seconds, made + PLAIN * (1 + run)
        depths.append(depth)
    if machine == "pays twofold":
        assert sum(1 for depth in depths[200:] if depth >= 3) > 0.5 * len(depths[200:])
        assert made / spent > 1.5
    else:
        on_credit = captures * (ratio - 1) * PLAIN  # before the first was measured
        assert spent - on_credit <= 1.02 * made


def test_tries_that_are_never_measured_end() -> None:
    """A machine that captures in each of them: it is left alone, ever longer."""
    control, tries = Control(SpeculationConfig(adaptive=True, max_depth=5)), 0
    for _ in range(1000):
        if depth := control.depth(1):
            tries += 1
            control.unmeasured(1)
        else:
            observe(control, [0], depth, PLAIN)
    assert tries < 15


def test_a_loss_beyond_what_may_be_lost_is_made_good_with_time() -> None:
    """It was not: what expired of the time that a share of may be lost gave nothing, and after one
    stretch of bad luck nothing was tried any more."""
    control = Control(SpeculationConfig(adaptive=True, max_depth=4))
    for _ in range(300):
        observe(control, [0], control.depth(1), PLAIN)
    control.debt = 10 * PLAIN
    depths = []
    for _ in range(1500):
        depths.append(control.depth(1))
        observe(control, [depths[-1]], depths[-1], PLAIN * 1.2)
    assert not any(depths[:256])
    assert sum(1 for depth in depths[-200:] if depth) > 100


def test_the_pace_of_a_batch_is_not_learned_anew_for_each_depth() -> None:
    """A single deep try beside shallow steps is worth what it made, however many sequences ran: it
    was worth a tenth of that at first."""
    control = Control(SpeculationConfig(adaptive=True, max_depth=4))
    for _ in range(40):
        control.observe(dict.fromkeys(range(8), 2), 1, 8, 8, PLAIN)
    load = control._load(8)
    control.observe(dict.fromkeys(range(8), 5), 4, 32, 32, PLAIN)
    assert load.speed(4) == pytest.approx(5 / PLAIN)
