"""Token ids to text, one at a time: new text comes out as soon as it is certain.

Used by `IncrementalText` through `Tokenizer`. `ByteStream` is exact and quick for byte-level BPE;
`WindowStream` serves every other decoder by decoding a few tokens again. Neither knows of stop
strings, and neither ever gives out half a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
NUM_CONTEXT_TOKENS = 6
# Waiting for a character's last byte ends here. Real characters take 4 tokens at most; a longer
# wait means bytes that are no text, or U+FFFD itself, many times over.
MAX_PENDING_TOKENS = 64


class Detokenizer(Protocol):
    """Turns a stream of token ids into pieces of text."""

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is certain now, maybe none."""

    def flush(self) -> str:
        """Return what still waits, an incomplete character as U+FFFD. Nothing follows it."""

    def copy(self) -> Detokenizer:
        """Return an independent stream in the same state."""


class ByteStream:
    """For byte-level vocabularies: every token stands for bytes, and bytes go through UTF-8.

    bytes_of: a token's bytes, none for one that shows nothing. context: the tokens before the
    first; if they end inside a character, that character comes out whole.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], context: Sequence[int] = ()) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.decode(_last_bytes(bytes_of, context))

    def push(self, token_id: int) -> str:
        """Take one token and return the characters that it completes."""
        return self._utf8.decode(self._bytes_of(token_id))

    def flush(self) -> str:
        """Return U+FFFD for an incomplete character, or nothing."""
        return self._utf8.decode(b"", final=True)

    def copy(self) -> ByteStream:
        """Return an independent stream in the same state."""
        twin = ByteStream(self._bytes_of)
        twin._utf8.setstate(self._utf8.getstate())
        return twin


def _last_bytes(bytes_of: Callable[[int], bytes], token_ids: Sequence[int]) -> bytes:
    """Return enough of the end to know whether it is inside a character: three bytes or more."""
    tail = b""
    for token_id in reversed(token_ids):
        tail = bytes_of(token_id) + tail
        if len(tail) >= 3:
            break
    return tail


class WindowStream:
    """For any decoder: decodes a window of tokens and gives out what follows its context.

    The window is `num_context` tokens whose text is out already, needed because a token's text may
    depend on those before it (a first token loses its leading space, bytes join into a character),
    then the pending tokens. Where tokens spell bytes that are not UTF-8, complete characters among
    them are shown that a decode of the whole would replace.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        skipped_ids: frozenset[int],
        context: Sequence[int] = (),
    ) -> None:
        """decode: ids to text. skipped_ids: tokens that show nothing. context: tokens before."""
        self._decode, self._skipped_ids = decode, skipped_ids
        self._window = self._last_tokens(context)
        self._num_context = len(self._window)
        self._context_text = decode(self._window)

    def _last_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """Return a tail of the tokens that begins with a whole character, if any does."""
        shown = [token_id for token_id in token_ids if token_id not in self._skipped_ids]
        length = NUM_CONTEXT_TOKENS
        while length < len(shown) and REPLACEMENT in self._decode(shown[-length:]):
            length *= 2
        return shown[-length:]

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is certain now."""
        if token_id in self._skipped_ids:
            return ""
        self._window.append(token_id)
        text = self._pending_text()
        num_pending = len(self._window) - self._num_context
        waiting = text.endswith(REPLACEMENT) and num_pending < MAX_PENDING_TOKENS
        if waiting or not text:
            return ""
        del self._window[: self._num_context]
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)
        return text

    def flush(self) -> str:
        """Return the pending tokens' text as it is."""
        return self._pending_text()

    def copy(self) -> WindowStream:
        """Return an independent stream in the same state."""
        twin = WindowStream(self._decode, self._skipped_ids)
        twin._window, twin._num_context = list(self._window), self._num_context
        twin._context_text = self._context_text
        return twin

    def _pending_text(self) -> str:
        text = self._decode(self._window)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # Bytes that are no text have spoilt characters that are out already.
        return self._decode(self._window[self._num_context :])


def byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, got the characters
    from U+0100 on, so that no token holds a space or a control character.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}
