"""`ask`: a proposer's answers, checked: it may be a user's, and return anything or raise.

Called by the engine's `Speculator`, which decides what becomes of a request whose proposer failed.
"""

from __future__ import annotations

from typing import Any

from workbench.draft import Draft, DraftError
from workbench.errors import ConfigError
from workbench.interrupts import exposed
from workbench.models import DecoderLM
from workbench.sample.user_code import last_line
from workbench.speculation.proposer import Candidate, ProposalContext, Proposer, ProposerFailed


def ask(proposer: Proposer, context: ProposalContext) -> list[Draft | ProposerFailed | None]:
    """Return a checked draft, None, or what was wrong, for each of the context's candidates."""
    candidates = context.candidates
    try:
        with exposed():
            answers: Any = proposer.propose(context)
    except Exception as error:  # noqa: BLE001 - user code
        return [ProposerFailed(name_of(proposer), f"raised {last_line(error)}")] * len(candidates)
    if not isinstance(answers, list | tuple) or len(answers) != len(candidates):
        got = len(answers) if isinstance(answers, list | tuple) else type(answers).__name__
        problem = f"returned {got} for {len(candidates)} candidates; return a list of as many"
        return [ProposerFailed(name_of(proposer), problem)] * len(candidates)
    vocab_size = context.model.config.vocab_size
    chains = any(group.window for group in context.cache.groups)
    pairs = zip(candidates, answers, strict=True)
    return [_checked(proposer, vocab_size, chains, *pair) for pair in pairs]


def _checked(
    proposer: Proposer, vocab_size: int, chains: bool, candidate: Candidate, answer: Any
) -> Draft | ProposerFailed | None:
    """Return an answer, or what is wrong with it; chains: whether it may be nothing else."""
    if answer is None:
        return None
    try:
        if not isinstance(answer, Draft):
            raise DraftError("draft", answer, "is no Draft", "Return a `Draft`, or None.")
        answer.check(vocab_size, candidate.max_tokens, candidate.max_depth)
        if chains and not answer.is_chain:
            problem = "is a tree, and layers with a window verify chains alone"
            raise DraftError("Draft.parents", answer.parents, problem, "Propose a chain.")
    except DraftError as error:
        return ProposerFailed(name_of(proposer), str(error))
    return answer


def check_proposer(proposer: Any, model: DecoderLM) -> tuple[str, ...]:
    """Return what a proposer needs; raise `ConfigError` if it is none, or that is not there."""
    if not callable(getattr(proposer, "propose", None)):
        fix = "Give an object with `propose(context)`, see `workbench.speculation.Proposer`."
        raise ConfigError("proposer", proposer, "has no `propose`", fix)
    needs = tuple(getattr(proposer, "needs", ()))
    known = ("", *model.activation_points) if needs else ()
    for point in needs:
        if point not in known:
            problem = "is no point of the model with a row for each token"
            raise ConfigError(f"proposer.needs of {name_of(proposer)}", point, problem, "")
    return needs


def name_of(proposer: Proposer) -> str:
    """Return what a proposer is called."""
    return str(getattr(proposer, "name", type(proposer).__name__))
