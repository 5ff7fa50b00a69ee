"""`StepPlan`: a step's work as the scheduler decided it, rows of sequences and what each computes.

`workbench.batch` has the same work as tensors. Nothing here knows of devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.describe import Described, rows_table
from workbench.draft import Draft
from workbench.request import Sequence, Status

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, repr=False)
class StepPlan(Described):
    """What one step runs. Written by the scheduler, read by everyone.

    starts[i] and num_new[i]: row i computes tokens starts[i] : starts[i] + num_new[i] of
    sequences[i]. The first `num_decodes` rows have one new token. `sampled` lists the rows whose
    last token is computed here, in order: each gets a new token. `copies`: (source, destination)
    blocks to copy before anything is written. `preempted`: sequences that lost their blocks for
    this plan. `ended`: sequences that ended without running in it (their time was up). `weighed`:
    rows of whose last token a policy wants to know where its attention goes. `drafts`: by row, what
    is verified in it; these rows follow the decodes, and compute a sequence's last token and the
    draft's. `unread` [S]: the rows' token ids on the device, in a batch of decodes whose tokens the
    host does not know yet (below 0: none could be drawn).
    """

    step: int
    sequences: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_new: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    num_decodes: int = 0
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    ended: list[Sequence] = field(default_factory=list)
    weighed: list[int] = field(default_factory=list)
    drafts: dict[int, Draft] = field(default_factory=dict)
    unread: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows: the length of the packed batch."""
        return sum(self.num_new)

    def __bool__(self) -> bool:
        """Whether there is anything to run."""
        return bool(self.sequences)

    def append(self, sequence: Sequence, num_new: int) -> None:
        """Add a row that computes the next `num_new` tokens of a sequence."""
        if sequence.num_computed + num_new == sequence.num_tokens:
            self.sampled.append(len(self.sequences))
        self.sequences.append(sequence)
        self.starts.append(sequence.num_computed)
        self.num_new.append(num_new)

    def draft(self, drafts: dict[int, Draft]) -> None:
        """Give decode rows a draft to verify, by row, and move them behind the other decodes."""
        count = self.num_decodes
        drafted = list(drafts)
        plain = [row for row in range(count) if row not in drafts]
        order = [*plain, *drafted, *range(count, len(self.sequences))]
        was_sampled = set(self.sampled)
        self.sampled = [new for new, old in enumerate(order) if old in was_sampled]
        self.sequences = [self.sequences[row] for row in order]
        self.starts = [self.starts[row] for row in order]
        self.num_new = [self.num_new[row] + len(drafts.get(row, ())) for row in order]
        self.num_decodes = len(plain)
        self.drafts = {len(plain) + i: drafts[row] for i, row in enumerate(drafted)}

    def only_decodes(self) -> StepPlan:
        """Return a plan of the rows that are decodes, for who arranges their inputs."""
        count = self.num_decodes
        rows = self.sequences[:count], self.starts[:count], self.num_new[:count]
        return StepPlan(self.step, *rows, list(range(count)), count, unread=self.unread)

    def behind_decodes(self) -> StepPlan:
        """Return a plan of the rows that are no decodes, with all that must precede them."""
        first = self.num_decodes
        rest = StepPlan(self.step, copies=self.copies)
        rest.sequences, rest.starts = self.sequences[first:], self.starts[first:]
        rest.num_new = self.num_new[first:]
        rest.sampled = [row - first for row in self.sampled if row >= first]
        return rest

    def drop_waiting(self) -> None:
        """Take out the rows of sequences that were preempted after they were planned."""
        assert not self.drafts, "nobody is preempted for a draft, nor after it"
        rows = [i for i, s in enumerate(self.sequences) if s.status is Status.RUNNING]
        if len(rows) == len(self.sequences):
            return
        was_sampled = set(self.sampled)
        self.sampled = [new for new, old in enumerate(rows) if old in was_sampled]
        self.num_decodes = sum(1 for row in rows if row < self.num_decodes)
        self.sequences = [self.sequences[row] for row in rows]
        self.starts = [self.starts[row] for row in rows]
        self.num_new = [self.num_new[row] for row in rows]

    def describe(self) -> dict[str, Any]:
        """Return the step in numbers; the table has a line for each row."""
        facts: dict[str, Any] = {
            "step": self.step,
            "rows": len(self.sequences),
            "tokens": self.num_tokens,
            "decodes": self.num_decodes,
            "samples": len(self.sampled),
        }
        more = {"drafts": self.drafts, "copies": self.copies, "preempted": self.preempted}
        return facts | {label: len(what) for label, what in more.items() if what}

    def _repr_html_(self) -> str:
        sampled = set(self.sampled)
        rows = [
            (i, s.request.request_id, f"{start}:{start + n}", n, "yes" if i in sampled else "")
            for i, (s, start, n) in enumerate(
                zip(self.sequences, self.starts, self.num_new, strict=True)
            )
        ]
        title = f"step {self.step}: {self.num_tokens} tokens in {len(rows)} rows"
        return rows_table(title, ("row", "request", "positions", "new tokens", "samples"), rows)
