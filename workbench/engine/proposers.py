"""What a proposer must be, and what it is called.

Used by `workbench.engine.speculator`, before a proposer is taken and where one fails.
"""

from __future__ import annotations

from typing import Any

from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.speculation import Proposer


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
