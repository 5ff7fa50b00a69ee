"""`Ticket`: one submission on its way: what was asked for, and where its answer goes.

Made by `AsyncEngine`, then touched by the engine's thread alone. Where the answer goes is a
`Mailbox` (a stream) or an `Answer` (a reply with the whole output).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workbench.async_engine.mailbox import Mailbox
from workbench.async_engine.reply import Reply
from workbench.async_engine.waiters import Waiter
from workbench.engine.requests import RequestRecord
from workbench.request import FinishReason, Prompt, RequestOutput, Sequence, TokenLogprobs
from workbench.sampling_params import SamplingParams


class Answer(NamedTuple):
    """A reply that is given the whole output at the end."""

    reply: Reply[RequestOutput]

    @property
    def abandoned(self) -> bool:
        """Whether nobody will ever take it."""
        return self.reply.abandoned


@dataclass(slots=True, eq=False)
class Ticket:
    """One submission.

    options: further keywords of `Engine.add`. wait: whether it may stand in line for a place.
    record: the engine's, from when it was accepted. ended: its answer was given, or is unwanted.
    """

    prompt: Prompt
    params: SamplingParams | None
    options: dict[str, Any]
    wait: bool
    sink: Mailbox | Answer
    record: RequestRecord | None = None
    ended: bool = False
    _told: dict[int, int] = field(default_factory=dict)  # tokens put into the mailbox, by branch

    @property
    def request_id(self) -> str | None:
        """The request's id, if it was accepted or if one was asked for."""
        if self.record is not None:
            return self.record.request.request_id
        return self.options["request_id"]  # type: ignore[no-any-return]

    @property
    def live(self) -> bool:
        """Whether tokens are passed on as they come: a stream whose branches are its outputs.

        Beams and the branches of `best_of` are ranked at the end; nothing is known of them before.
        """
        if self.record is None or not isinstance(self.sink, Mailbox):
            return False
        params = self.record.request.params
        return params.beam_width is None and params.num_branches == params.n

    def pass_on(self, sequence: Sequence, reason: FinishReason | None) -> Waiter | None:
        """Put what is new of a branch into the mailbox; return whoever waits for it."""
        assert isinstance(self.sink, Mailbox)
        told = self._told.get(sequence.index, 0)
        token_ids = sequence.token_ids[sequence.num_prompt_tokens + told :]
        if not token_ids and reason is None:
            return None  # made again after a restore
        self._told[sequence.index] = told + len(token_ids)
        logprobs: list[TokenLogprobs] = []
        if sequence.request.params.logprobs is not None and sequence.logprobs:
            logprobs = sequence.logprobs[told:]
        return self.sink.put(sequence.index, token_ids, logprobs, reason)

    def finish(self, output: RequestOutput) -> Waiter | None:
        """Give the answer; return whoever waits for it."""
        self.ended = True
        if isinstance(self.sink, Mailbox):
            return self.sink.finish(output)
        self.sink.reply.answer(output)
        return None

    def fail(self, error: BaseException) -> Waiter | None:
        """Give an error instead; return whoever waits for it."""
        self.ended = True
        if isinstance(self.sink, Mailbox):
            return self.sink.fail(error)
        self.sink.reply.refuse(error)
        return None
