"""Logits to tokens: `Sampler`, its filters, its random numbers and log-probabilities.

The engine calls `Sampler` once a step and `check_params` when a request is added. A token depends
only on its logits, its parameters, its seed and its index in the output, never on the batch.
"""

from workbench.sample.filters import min_p, rank, temperature, top_k, top_p
from workbench.sample.logprobs import token_logprobs
from workbench.sample.params import SamplingTensors, check_params
from workbench.sample.random import inverse_cdf, uniforms
from workbench.sample.sampler import Sampler

__all__ = [
    "Sampler",
    "SamplingTensors",
    "check_params",
    "inverse_cdf",
    "min_p",
    "rank",
    "temperature",
    "token_logprobs",
    "top_k",
    "top_p",
    "uniforms",
]
