"""`Sampler`: logits to tokens, one for each row. Called by the engine once a step.

Order: all of `Processing`, then temperature, top-k, top-p, min-p, each on what the one before has
left. A token depends only on its row of logits, its parameters, the sequence's tokens, its seed and
`num_output_tokens`: not on the batch. What is kept between steps is a cache and nothing else. A
batch of greedy rows costs one argmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.describe import Described
from workbench.errors import ConfigError, RequestError
from workbench.request import Sequence, TokenLogprobs
from workbench.results import Drawing, SampledTokens, Settled
from workbench.sample.alone import alone
from workbench.sample.candidates import candidates, draw_from
from workbench.sample.device_rows import DeviceRows, Draw
from workbench.sample.greedy import INVALID, argmax, likeliest
from workbench.sample.logprobs import token_logprobs
from workbench.sample.params import SamplingTensors, to_device
from workbench.sample.processing import Processing
from workbench.sample.random import uniforms
from workbench.sample.readback import Readback
from workbench.sample.user_code import BatchProcessor, name_of
from workbench.sampling_params import SamplingParams


class Sampling(NamedTuple):
    """A `Drawing`: `tokens` [R] int64, `INVALID` where a row had no distribution."""

    tokens: Tensor
    errors: dict[int, str]
    readback: Readback
    settle: Callable[[Tensor, dict[int, str], list[int]], SampledTokens]
    needs_host: str

    def wait(self) -> SampledTokens:
        """Return what calling the sampler would have."""
        return self.settle(self.tokens, self.errors, self.readback.read())


class Sampler(Described):
    """Chooses one token a row: greedy, or drawn after temperature, top-k, top-p and min-p.

    processors: functions `(logits [R, V] float32, sequences) -> logits` for the whole batch, called
    in order before anything else, in every step.
    """

    def __init__(self, processors: Iterable[BatchProcessor] = ()) -> None:
        """Raise `ConfigError` for a processor that is no function."""
        self.processors = tuple(processors)
        for processor in self.processors:
            if not callable(processor):
                fix = "Pass functions `(logits, sequences) -> logits`."
                raise ConfigError("processors", processor, "is not callable", fix)
        self._processing = Processing(self.processors)
        self._tensors: SamplingTensors | None = None
        self._rows: DeviceRows | None = None  # of `_tensors`, once a backend has asked for them

    def __call__(
        self, logits: Tensor, sequences: Iterable[Sequence | SamplingParams]
    ) -> SampledTokens:
        """Return a token for each row of logits [R, V] (any float dtype, any device).

        sequences: the R sequences that sample in this step, in row order; to try the sampler by
        itself, their parameters will do (see `alone`). Raises `RequestError` for other things, or
        another number of them. A row from which nothing
        can be drawn, because its logits are NaN or +inf, or all -inf, or because its own processor
        failed, has its reason in `errors` and no token. Raises `ProcessorFailed` for a processor of
        the whole batch. Log-probabilities are of the model's own distribution; those of a sequence
        with a chooser are processed, since that is what it chooses from (see `Processing`).
        """
        rows = [row if isinstance(row, Sequence) else alone(row) for row in sequences]
        if logits.dim() != 2 or len(rows) != len(logits):
            shown = f"{len(rows)} of them for logits {list(logits.shape)}"
            raise RequestError("sequences", shown, "rows do not match", "Give one for each row.")
        return self.begin(logits, rows).wait()

    def begin(
        self,
        logits: Tensor,
        sequences: list[Sequence],
        *,
        unread: int = 0,
        draw: Draw | None = None,
    ) -> Sampling:
        """Queue what calling does on the logits' device, and return it under way.

        unread: how many tokens of each sequence, drawn before, have not been appended to it yet;
        more than 0 only where the latest drawing for them had an empty `needs_host`. draw: a
        backend's own way to the same tokens, see `DeviceRows`.
        """
        tensors = self._tensors_for(logits, sequences)
        processed, errors = self._processing(logits, sequences)
        if draw is None or tensors.keys is None:
            tokens = self._choose(processed, tensors, unread)
        else:
            tokens = self._draw(draw, processed, tensors, unread)
        why = "" if self._processing.idle else "a row's logits are processed"
        why = why or tensors.needs_host(searching=draw is None)
        settle = partial(self._settle, logits, processed, tensors, self._processing.forced)
        return Sampling(tokens, errors, Readback(tokens), settle, why)

    def _draw(self, draw: Draw, logits: Tensor, tensors: SamplingTensors, unread: int) -> Tensor:
        """Return what `_choose` does, from a backend."""
        place = partial(to_device, device=tensors.device)
        if self._rows is None:
            self._rows = DeviceRows.of(tensors.sequences, tensors.vocab_size, place)
        indices = torch.tensor([s.num_output_tokens + unread for s in tensors.sequences])
        ranked = any(group.ranked for group in tensors.groups)
        drawn = draw(logits, **self._rows._asdict(), indices=place(indices), ranked=ranked)
        return drawn[0]

    def with_probabilities(
        self, logits: Tensor, sequences: list[Sequence]
    ) -> tuple[SampledTokens, Tensor]:
        """Return what calling does, and what `probabilities` does, from one processing."""
        tensors = self._tensors_for(logits, sequences)
        processed, errors = self._processing(logits, sequences)
        tokens = self._choose(processed, tensors)
        asked = logits, processed, tensors, self._processing.forced
        sampled = self._settle(*asked, tokens, errors, tokens.tolist())
        return sampled, self._distributions(processed, tensors, sampled.errors)

    def _settle(
        self,
        logits: Tensor,
        processed: Tensor,
        tensors: SamplingTensors,
        forced: frozenset[int],
        tokens: Tensor,
        errors: dict[int, str],
        token_ids: list[int],
    ) -> SampledTokens:
        """Return what was drawn, now that the host knows the tokens."""
        if INVALID in token_ids:
            for row in [i for i, t in enumerate(token_ids) if t == INVALID and i not in errors]:
                rows = logits[row], processed[row]
                errors[row] = self._processing.explain(*rows, tensors.sequences[row])
        logprobs = None
        if tensors.logprob_rows:
            logprobs = self._logprobs(logits, processed, tokens, tensors, errors)
        return SampledTokens(token_ids, logprobs, errors, forced=forced)

    def probabilities(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return the distribution each row is drawn from, [R, V] float64: everything applied.

        A greedy row has all its probability on one token; a row from which nothing can be drawn is
        NaN throughout. Raises as calling does.
        """
        tensors = self._tensors_for(logits, sequences)
        processed, errors = self._processing(logits, sequences)
        return self._distributions(processed, tensors, errors)

    def _distributions(
        self, logits: Tensor, tensors: SamplingTensors, errors: Iterable[int]
    ) -> Tensor:
        best = argmax(logits)[:, None]
        result = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
        result.scatter_(1, best, 1.0)
        for group in tensors.groups:
            weights, token_ids, _ = candidates(logits, group)
            if token_ids is not None:
                shape = (len(group.indices), logits.shape[1])
                weights = weights.new_zeros(shape).scatter_(1, token_ids, weights)
            result[group.indices] = weights.double() / weights.sum(dim=1, keepdim=True)
        result[~logits.gather(1, best)[:, 0].isfinite()] = torch.nan
        result[list(errors)] = torch.nan
        return result

    def describe(self) -> dict[str, Any]:
        """Return the order of what is applied, and what the last batch was made of."""
        stages = [*map(name_of, self.processors), "processing", "temperature", "top-k", "top-p"]
        facts = {"order": ", ".join([*stages, "min-p"])}
        if self._tensors is not None:
            num_rows, num_greedy = len(self._tensors.sequences), self._tensors.num_greedy
            facts["last batch"] = f"{num_greedy} greedy, {num_rows - num_greedy} sampled"
        return facts

    def _tensors_for(self, logits: Tensor, sequences: list[Sequence]) -> SamplingTensors:
        assert logits.shape[0] == len(sequences), "one row of logits for each sequence"
        if self._tensors is None or not self._tensors.fits(sequences, logits):
            self._tensors = self._rows = (
                None  # until both are arranged: an interrupt may land in between
            )
            vocab_size, device = logits.shape[1], logits.device
            self._processing.arrange(sequences, vocab_size, device)
            self._tensors = SamplingTensors.of(sequences, vocab_size, device)
        return self._tensors

    def _choose(self, logits: Tensor, tensors: SamplingTensors, unread: int = 0) -> Tensor:
        """Return a token for each row, [R] int64, `INVALID` where there was nothing to choose."""
        if tensors.num_greedy:
            tokens = likeliest(logits)
        else:
            tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
        if tensors.keys is None:
            return tokens
        uniform, start = self._uniforms(tensors, tensors.keys, unread), 0
        for group in tensors.groups:
            end = start + len(group.indices)
            drawn = draw_from(candidates(logits, group), uniform[start:end])
            start = end
            tokens = drawn if group.rows is None else tokens.index_copy_(0, group.rows, drawn)
        return tokens

    def _uniforms(self, tensors: SamplingTensors, keys: Tensor, unread: int) -> Tensor:
        """Return the numbers that decide this step's draws, group after group, on the device."""
        rows = [tensors.sequences[i] for group in tensors.groups for i in group.indices]
        # Read each time: an interrupted step, a rewind or a draft need not add one token each.
        indices = torch.tensor([sequence.num_output_tokens + unread for sequence in rows])
        # Hashed on the CPU, where these few small operations cost no kernel launches.
        return to_device(uniforms(keys, indices), tensors.device)

    def _logprobs(
        self,
        logits: Tensor,
        processed: Tensor,
        tokens: Tensor,
        tensors: SamplingTensors,
        errors: dict[int, str],
    ) -> list[TokenLogprobs | None]:
        """Return what rows report, None for others and those in `errors`, which may grow by some
        whose distribution was mended by processing alone."""
        result: list[TokenLogprobs | None] = [None] * len(tensors.sequences)
        asking = [row for row in tensors.logprob_rows if row not in errors]
        choosing = [row for row in asking if tensors.sequences[row].chooser is not None]
        if processed is logits:  # and what beams choose from is the model's own
            choosing = []
        for rows in ([row for row in asking if row not in choosing], choosing):
            if not rows:
                continue
            wanted = [tensors.sequences[i].num_tracked or 0 for i in rows]
            index = to_device(torch.tensor(rows), logits.device)
            if rows is choosing:  # turned to log-probabilities before they were processed
                logprobs = processed[index]
            else:
                logprobs = torch.log_softmax(logits[index].float(), dim=-1)
            entries = token_logprobs(logprobs, tokens[index], wanted)
            for row, entry in zip(rows, entries, strict=True):
                if math.isnan(entry.logprob):
                    errors[row] = "logprobs: the model's own distribution has NaN or +inf"
                else:
                    result[row] = entry
        return result


def begin(
    sampler: Sampler, logits: Tensor, sequences: list[Sequence], unread: int, draw: Draw | None
) -> Drawing:
    """Begin to draw with a sampler, or just call one of another kind; see `Sampler.begin`."""
    if isinstance(sampler, Sampler) and type(sampler).__call__ is Sampler.__call__:
        return sampler.begin(logits, sequences, unread=unread, draw=draw)
    return Settled(sampler(logits, sequences), "the sampler is a user's own")
