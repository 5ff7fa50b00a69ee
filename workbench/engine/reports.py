"""Whether a model can report what a request asks for: prompt log-probabilities, activations.

Called when a request is added or forked, before anything is queued.
"""

from __future__ import annotations

import difflib

from workbench.errors import RequestError
from workbench.models import DecoderLM
from workbench.sampling_params import SamplingParams


def check_reports(params: SamplingParams, model: DecoderLM) -> None:
    """Raise `RequestError` for more tokens than there are, or for no point of the model."""
    num_top, vocab_size = params.prompt_logprobs, model.config.vocab_size
    if num_top is not None and num_top > vocab_size:
        problem = f"the model has only {vocab_size} tokens"
        raise RequestError("prompt_logprobs", num_top, problem, f"Ask for {vocab_size} or fewer.")
    known = model.activation_points if params.activations else ()
    for point in params.activations:
        if point not in known:
            near = difflib.get_close_matches(point, known, n=3) or known[:3]
            problem = "no point of the model with a row for each token"
            raise RequestError("activations", point, problem, f"Did you mean {list(near)}?")


def check_fork_reports(parent: SamplingParams, child: SamplingParams) -> None:
    """Raise `RequestError` if a fork asks for what nobody kept of the tokens that it shares."""
    if missing := [point for point in child.points if point not in parent.points]:
        asked = "hidden_states" if missing[0] == "" else "activations"
        value = True if missing[0] == "" else missing[0]
        raise _not_kept(asked, value)
    wanted, kept = child.prompt_logprobs, parent.prompt_logprobs
    if wanted is not None and (kept is None or kept < wanted):
        raise _not_kept("prompt_logprobs", wanted)


def _not_kept(field: str, value: object) -> RequestError:
    problem = "the forked request has not kept that of the tokens both share"
    return RequestError(field, value, problem, "Ask for it when the first one is added.")
