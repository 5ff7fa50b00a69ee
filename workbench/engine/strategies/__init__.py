"""Strategies: requests that run several sequences, as copies that share blocks."""

from workbench.engine.requests import Strategy
from workbench.engine.strategies.beams import BeamSearch
from workbench.engine.strategies.branches import Branches
from workbench.request import Sequence
from workbench.sampling_params import SamplingParams

__all__ = ["BeamSearch", "Branches", "Strategy", "make_strategy"]


def make_strategy(params: SamplingParams, first: Sequence) -> Strategy | None:
    """Return the strategy that `params` ask for, begun with `first`; None for one sequence."""
    strategy: Strategy | None = None
    if params.beam_width is not None:
        strategy = BeamSearch(params)
    elif params.num_branches > 1:
        strategy = Branches(params.num_branches, params.n)
    if strategy is not None:
        strategy.begin(first)
    return strategy
