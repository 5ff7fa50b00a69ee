"""Logits to tokens: `Sampler`, what it does to logits first, its filters, its random numbers.

The engine calls `Sampler` once a step and `check_params` when a request is added. A token depends
only on its logits, its parameters, its seed and its index in the output, never on the batch.
"""

from workbench.sample.checks import bad_word_ids, check_params
from workbench.sample.filters import min_p, rank, temperature, top_k, top_p
from workbench.sample.logprobs import token_logprobs
from workbench.sample.params import SamplingTensors
from workbench.sample.penalties import penalize
from workbench.sample.processing import Processing
from workbench.sample.random import inverse_cdf, uniforms
from workbench.sample.sampler import Sampler, begin

__all__ = [
    "Processing",
    "Sampler",
    "SamplingTensors",
    "bad_word_ids",
    "begin",
    "check_params",
    "inverse_cdf",
    "min_p",
    "penalize",
    "rank",
    "temperature",
    "token_logprobs",
    "top_k",
    "top_p",
    "uniforms",
]
