"""Strategies: requests that run several sequences, as copies that share blocks."""

from workbench.engine.requests import Strategy
from workbench.engine.strategies.beams import BeamSearch
from workbench.engine.strategies.branches import Branches
from workbench.sampling_params import SamplingParams

__all__ = ["BeamSearch", "Branches", "Strategy", "make_strategy"]


def make_strategy(params: SamplingParams) -> Strategy | None:
    """Return the strategy that `params` ask for; None for a single sequence."""
    if params.beam_width is not None:
        return BeamSearch(params)
    if params.num_branches == 1:
        return None
    return Branches(params.num_branches, params.n)
