"""Strategies: requests that run several sequences, as copies that share blocks."""

from workbench.engine.requests import Strategy
from workbench.engine.strategies.branches import Branches
from workbench.sampling_params import SamplingParams

__all__ = ["Branches", "Strategy", "make_strategy"]


def make_strategy(params: SamplingParams, num_tokens: int) -> Strategy | None:
    """Return the strategy that `params` ask for; None for a single sequence of `num_tokens`."""
    if params.num_branches == 1:
        return None
    return Branches(params.num_branches, params.n, num_tokens)
