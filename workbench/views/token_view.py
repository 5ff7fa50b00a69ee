"""`TokenView`: a request's text token by token: how likely each was, what else, and how it came.

A token is shaded by how unlikely it was, marked where it was drafted or chosen, and pale while its
step has not been reached. Hover for the likeliest others; a click goes to the step that made it.
"""

from __future__ import annotations

from math import exp, isnan, log
from typing import TYPE_CHECKING

from workbench.errors import ConfigError
from workbench.views.esm import compose
from workbench.views.lane import Lane, Maker
from workbench.views.run_view import RunView
from workbench.views.token_picture import draw_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class TokenView(RunView):
    """Shows the tokens of one sequence; see `View` for what it can be made from.

    Which one is the shared `selected`, at first the first that came. Probabilities are there for
    requests with `SamplingParams(logprobs=…)`. `tokens()` returns them as a table.
    """

    _esm = compose("token_view")
    GROUPS = ("sequences",)
    PICTURE_INCHES = (9.0, 3.0)

    def opening_step(self) -> int:
        """Return the last step: all of the text."""
        return self.step if self.live else self.run.bounds[1]

    def lane(self) -> Lane | None:
        """Return the sequence shown; None while there is none."""
        lanes = self.run.lanes
        found = (lane for lane in reversed(lanes) if lane.sequence_id == self.selected)
        return next(found, lanes[0] if lanes else None)

    def tokens(self, request_id: str | None = None) -> DataFrame:
        """Return a table of a request's tokens (None: of the sequence shown), by position.

        step: that made it (0: there from the start). Raises `ConfigError` for an unknown request.
        """
        from pandas import DataFrame

        names = ("token_id", "text", "step", "maker", "probability")
        if request_id is None:
            lane = self.lane()
        else:
            found = [lane for lane in self.run.lanes if lane.request_id == request_id]
            if not found:
                known = ", ".join(dict.fromkeys(lane.request_id for lane in self.run.lanes))
                problem = "is not in this trace"
                raise ConfigError("request_id", request_id, problem, f"One of: {known or 'none'}.")
            lane = found[0]
        places = [] if lane is None else self.run.token_places(lane)
        columns = self.run.columns
        numbers = columns["step_number"]
        rows = []
        for place in places:
            column, logprob = columns["token_column"][place], columns["token_logprob"][place]
            rows.append(
                {
                    "token_id": columns["token_id"][place],
                    "text": self.trace.text_of(columns["token_id"][place]),
                    "step": numbers[column] if column >= 0 else 0,
                    "maker": Maker(columns["token_maker"][place]).name.lower(),
                    "probability": exp(logprob),
                }
            )
        return DataFrame(rows, columns=list(names)).rename_axis("position")

    def summary(self) -> str:
        """Return how far the sequence is at the step shown, and how likely its tokens were."""
        lane = self.lane()
        if lane is None:
            return "no request yet"
        places, columns = self.run.token_places(lane), self.run.columns
        column = self.run.column_of(self.step)
        at = -1 if column is None else column
        made = [place for place in places if 0 <= columns["token_column"][place] <= at]
        told = [columns["token_logprob"][place] for place in made]
        told = [value for value in told if not isnan(value)]
        text = (
            f"{lane.name} at step {self.step} of {self.last_step}: {lane.num_prompt_tokens} prompt"
            f" tokens, {len(made)} of {len(places) - lane.num_prompt_tokens} output tokens made"
        )
        if told:
            text += f", {-sum(told) / len(told) / log(2):.2f} bits of surprise a token"
        return text

    def draw(self, figure: Figure) -> None:
        """Draw the text up to the step shown, shaded, and the surprise of each token."""
        draw_tokens(
            figure, self.run, self.lane(), self.run.column_of(self.step), self.trace.text_of
        )
