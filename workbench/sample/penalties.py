"""Penalties for tokens that a sequence has already: repetition, presence, frequency.

Only the tokens a sequence holds change, so a table of those is kept on the device, a row for each
penalised sequence, and a step writes into it what the last one has added. Called by `Processing`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from workbench.request import Sequence
from workbench.sample.following import Following
from workbench.sample.params import to_device
from workbench.sampling_params import SamplingParams

FEWEST_COLUMNS = 64


def penalize(
    values: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Return the logits of tokens that occur already, [U, W] float32.

    values: [U, W] float32; counts: [U, W], how often the output holds them (0: the prompt alone
    does). The penalties, [U, 1] float32: repetition divides positive logits and multiplies negative
    ones (Keskar et al. 2019, CTRL); presence is subtracted once from what the output holds,
    frequency for every occurrence in it (OpenAI's API). 1, 0 and 0 change nothing.
    """
    values = torch.where(values < 0, values * repetition, values / repetition)
    values = values - presence * (counts > 0)
    return values - frequency * counts


def penalized(params: SamplingParams) -> bool:
    """Whether `params` ask for any of the three."""
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    return penalties != (1.0, 0.0, 0.0)


class TokenCounts(Following):
    """The different tokens of a sequence, each with a column, and how often its output has them."""

    def __init__(self, num_prompt_tokens: int) -> None:
        super().__init__()
        self.num_prompt_tokens = num_prompt_tokens
        self.columns: dict[int, int] = {}  # token id -> column, counted from 0
        self.counts: Counter[int] = Counter()
        self.changed: list[int] = []  # what the last `follow` has taken in, each once

    def restart(self) -> None:
        """Forget every token."""
        self.columns, self.counts = {}, Counter()

    def extend(self, token_ids: list[int], start: int) -> None:
        """Count the tokens from `start` on."""
        columns = self.columns
        self.changed = list(dict.fromkeys(token_ids[start:]))
        for token_id in self.changed:
            columns.setdefault(token_id, len(columns))
        self.counts.update(token_ids[max(start, self.num_prompt_tokens) :])


class Penalties:
    """The penalties of a batch's rows that ask for any. `arrange` it, then `apply` it every step.

    `_table` is [2, U, W] int64: the ids of row u's different tokens, and how often its output has
    them; a column without a token repeats the first one's id. It is right while `_whole` says so:
    what an interrupt has left half written is written anew.
    """

    def __init__(self) -> None:
        self._followed: dict[Sequence, TokenCounts] = {}  # in order of the table's rows
        self._table = torch.zeros(2, 0, FEWEST_COLUMNS, dtype=torch.int64)
        self._whole = False

    def arrange(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> bool:
        """Take in a batch's sequences, in row order; return whether any is penalised."""
        places = [i for i, s in enumerate(sequences) if penalized(s.request.params)]
        if not places:
            self._followed, self._whole = {}, False
            return False
        rows = [sequences[place] for place in places]
        params = [sequence.request.params for sequence in rows]
        self._repetition = _column((p.repetition_penalty for p in params), device)
        self._presence = _column((p.presence_penalty for p in params), device)
        self._frequency = _column((p.frequency_penalty for p in params), device)
        self._offsets = _column((place * vocab_size for place in places), device, torch.int64)
        self._give_rows(rows, device)
        return True

    def apply(self, logits: Tensor, failed: dict[int, str]) -> None:
        """Penalise in place. logits: [R, V] float32, contiguous. It cannot fail."""
        width = self._update(logits.device)
        ids, counts = self._table[:, :, :width]
        # Every copy of the first token must get the same value: which write wins is then no matter.
        counts = torch.where(ids == ids[:, :1], counts[:, :1], counts)
        flat, where = logits.view(-1), self._offsets + ids
        flat[where] = penalize(
            flat[where], counts, self._repetition, self._presence, self._frequency
        )

    def _give_rows(self, rows: list[Sequence], device: torch.device) -> None:
        """Make the table's rows those of `rows`; what is known of a sequence moves along."""
        old, same_place = self._followed, self._table.device == device
        keep = self._whole and same_place
        self._whole = False
        known = {sequence: row for row, sequence in enumerate(old)} if keep else {}
        if known:  # a new sequence may take any row: it will be written from its start
            sources = torch.tensor([known.get(s, 0) for s in rows], dtype=torch.int64)
            self._table = self._table[:, to_device(sources, device)]
        else:
            shape = 2, len(rows), FEWEST_COLUMNS
            self._table = torch.zeros(shape, dtype=torch.int64, device=device)
        self._followed = {
            s: old[s] if s in known else TokenCounts(s.num_prompt_tokens) for s in rows
        }
        assert len(self._followed) == len(rows), "a sequence has one row"
        self._whole = True

    def _update(self, device: torch.device) -> int:
        """Write what is new since the last step; return how many columns are in use."""
        if not self._whole:
            self._followed = {s: TokenCounts(s.num_prompt_tokens) for s in self._followed}
        self._whole = False
        anew: list[tuple[int, int]] = []  # (row, first token) of rows read from their start
        cells: tuple[list[int], ...] = ([], [], [], [])  # row, column, token id, count of each
        width = 0
        for row, (sequence, followed) in enumerate(self._followed.items()):
            if followed.follow(sequence.token_ids):
                anew.append((row, sequence.token_ids[0]))
            columns, counts = followed.columns, followed.counts
            changed = followed.changed
            cells[0].extend([row] * len(changed))
            cells[1].extend([columns[i] for i in changed])
            cells[2].extend(changed)
            cells[3].extend([counts[i] for i in changed])
            width = max(width, len(columns))
        if width > self._table.shape[2]:
            more = self._table[:, :, :1].expand(-1, -1, 2 * width - self._table.shape[2])
            self._table = torch.cat([self._table, more], dim=2)
        if anew:
            rows, first = to_device(torch.tensor(anew), device).unbind(1)
            self._table[0, rows] = first[:, None]
        if cells[0]:
            table = to_device(torch.tensor(cells), device)
            self._table[:, table[0], table[1]] = table[2:]
        self._whole = True
        return width


def _column(
    values: Iterable[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    return to_device(torch.tensor(list(values), dtype=dtype), device)[:, None]
