"""`alone`: a sequence that no engine knows, made of sampling parameters.

Used by `Sampler` where it is called by hand, on logits and parameters.
"""

from __future__ import annotations

import secrets

from workbench.errors import RequestError
from workbench.metrics import RequestMetrics
from workbench.request import Request, Sequence
from workbench.sampling_params import SamplingParams


def alone(params: SamplingParams) -> Sequence:
    """Return a sequence with these parameters, without tokens and not queued anywhere.

    Its seed is the parameters', or drawn anew. Raises `RequestError` for what only an engine can
    set up: beams, a grammar, and what goes by the tokens before.
    """
    if not isinstance(params, SamplingParams):
        fix = "Pass SamplingParams, or sequences of an engine."
        raise RequestError("params", params, "is not a SamplingParams", fix)
    for name in ("beam_width", "guided_decoding", "bad_words", "no_repeat_ngram_size"):
        if value := getattr(params, name):
            fix = "Leave it out, or use an engine."
            raise RequestError(name, value, "needs an engine around the sampler", fix)
    return Sequence(
        sequence_id=0,
        request=Request("alone", None, (), params),
        token_ids=[],
        num_prompt_tokens=0,
        metrics=RequestMetrics(arrival=0.0),
        seed=secrets.randbits(62) if params.seed is None else params.seed,
        stop_ids=frozenset(params.stop_token_ids),
        max_num_tokens=params.max_tokens,
        num_tracked=params.logprobs,
    )
