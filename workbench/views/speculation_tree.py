"""`SpeculationTree`: the drafts of each step, what the model accepted of them, and how often.

Above, one draft as a tree: the proposer's probabilities, the accepted path, the rejected branches
and the token that the model added. Below, how often each position of a draft was accepted.
"""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

import traitlets

from workbench.views.draft_picture import draw_draft
from workbench.views.drafts import Draft, acceptance, drafts_of
from workbench.views.esm import compose
from workbench.views.run_view import RunView

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class SpeculationTree(RunView):
    """Shows the verified drafts of a run; see `View` for what it can be made from.

    Of several drafts in a step that of the shared `selected` sequence is shown, or the first.
    `drafts()` and `acceptance()` return what it shows as tables.
    """

    _esm = compose("speculation_tree")
    GROUPS = ("sequences", "drafts")

    drafts_old = traitlets.Bytes().tag(sync=True)
    drafts_new = traitlets.Bytes().tag(sync=True)

    def opening_step(self) -> int:
        """Return the first step that verified a draft."""
        columns = self.run.columns
        if self.live or not columns["draft_column"]:
            return self.step
        return int(columns["step_number"][columns["draft_column"][0]])

    def draft(self) -> Draft | None:
        """Return the draft shown; None where the step verified none."""
        found = [d for d in drafts_of(self.run) if d.step == self.step]
        chosen = [d for d in found if d.lane.sequence_id == self.selected]
        return next(iter(chosen or found), None)

    def drafts(self) -> DataFrame:
        """Return a table of all drafts: step, request, proposer, tokens, depth, accepted, added."""
        from pandas import DataFrame

        names = ("step", "request", "proposer", "tokens", "depth", "accepted", "added")
        rows = [
            (d.step, d.lane.name, d.proposer, len(d.token_ids), d.depth, len(d.path), d.bonus)
            for d in drafts_of(self.run)
        ]
        return DataFrame(rows, columns=list(names))

    def acceptance(self) -> DataFrame:
        """Return a table by draft position, from 1: drafts that deep, and how many were accepted
        there."""
        from pandas import DataFrame

        rows = acceptance(drafts_of(self.run))
        table = DataFrame(rows, columns=["tried", "accepted"], index=range(1, len(rows) + 1))
        table["share"] = table["accepted"] / table["tried"]
        return table.rename_axis("position")

    def summary(self) -> str:
        """Return what became of the draft shown."""
        draft = self.draft()
        if draft is None:
            return f"step {self.step} of {self.last_step}: no draft was verified"
        known = [p for p in draft.probabilities if not isnan(p)]
        sure = f", mean probability {sum(known) / len(known):.2f}" if known else ""
        return (
            f"step {self.step} of {self.last_step}: {draft.proposer} drafted "
            f"{len(draft.token_ids)} tokens for {draft.lane.name}{sure}; {len(draft.path)} accepted"
            " and one added by the model"
        )

    def draw(self, figure: Figure) -> None:
        """Draw the tree of the step shown, and acceptance by position."""
        draw_draft(figure, self.draft(), acceptance(drafts_of(self.run)), self.trace.text_of)
