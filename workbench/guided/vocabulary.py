"""`Vocabulary`: which bytes each token id stands for, as both grammar libraries need to know it.

Made once for each tokenizer by `GrammarCompiler`, and shipped to its worker process. One spelling
for both libraries: where they differ it is never because they read the tokens differently. Never
looks at text, and never runs a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError
from workbench.models.detokenize import byte_of_character
from workbench.models.tokenizer import Tokenizer

# A step of a decoder: the pieces of one token, text not yet turned into bytes, or bytes.
Pieces = list[str | bytes]
Step = Callable[[Pieces], Pieces]
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens[i]: the bytes of token i, none where it may never be part of a constrained text:
    special tokens, and ids past the tokenizer's last, which a padded head has. `eos_token_ids`
    end a text; their bytes are empty too. `vocab_size` is the width of the logits."""

    tokens: tuple[bytes, ...]
    eos_token_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        """Ids of the model's head."""
        return len(self.tokens)

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int] | None = None
    ) -> Vocabulary:
        """Return the vocabulary of a fast tokenizer for a head of `vocab_size` rows.

        eos_token_ids: None takes the tokenizer's. Raises `ConfigError` for a decoder whose tokens
        do not each stand for fixed bytes, and if there is no token to end a text with.
        """
        chosen = tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids
        eos = tuple(i for i in dict.fromkeys(chosen) if 0 <= i < vocab_size)
        if not eos:
            raise ConfigError(
                "eos_token_ids", tuple(chosen), "no token to end a guided text with", "Name one."
            )
        backend = tokenizer.hf.backend_tokenizer
        described = json.loads(backend.to_str())
        spell = _speller(described["decoder"])
        added = backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special} | set(eos)
        # The unknown token stands for no text, even where a tokenizer does not call it special.
        special |= {described["model"].get("unk_id"), tokenizer.hf.unk_token_id}
        special.add(backend.token_to_id(described["model"].get("unk_token") or ""))
        tokens = [b""] * vocab_size
        for token, i in backend.get_vocab(with_added_tokens=True).items():
            if i < vocab_size and i not in special:
                tokens[i] = spell(token)
        return cls(tuple(tokens), eos)


def _speller(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """Return the function from a token's name to its bytes, from a tokenizer.json's decoder."""
    if decoder is None:
        raise _unsupported("none")
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    steps = [_step(part) for part in parts]

    def spell(token: str) -> bytes:
        pieces: Pieces = [token]
        for step in steps:
            pieces = step(pieces)
        return b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces)

    return spell


def _step(decoder: dict[str, Any]) -> Step:
    """Return one step. What concerns only the start of the whole text does nothing here: a guided
    text follows a prompt, so that its first token is spelled like any other."""
    kind = decoder["type"]
    if kind == "ByteLevel":
        return _byte_level()
    if kind == "ByteFallback":
        return _byte_fallback
    if kind == "Metaspace":
        return _replace(decoder.get("replacement", "▁"), " ")
    if kind == "Replace" and "String" in decoder["pattern"]:
        return _replace(decoder["pattern"]["String"], decoder["content"])
    if kind == "Fuse" or (kind == "Strip" and decoder["stop"] == 0):
        return lambda pieces: pieces
    raise _unsupported(kind)


def _replace(old: str, new: str) -> Step:
    return lambda pieces: [p.replace(old, new) if isinstance(p, str) else p for p in pieces]


def _byte_fallback(pieces: Pieces) -> Pieces:
    matches = [BYTE_TOKEN.fullmatch(p) if isinstance(p, str) else None for p in pieces]
    return [bytes([int(m[1], 16)]) if m else p for p, m in zip(pieces, matches, strict=True)]


def _byte_level() -> Step:
    table = byte_of_character()

    def spell(piece: str | bytes) -> str | bytes:
        # A token with other characters was added as plain text.
        if isinstance(piece, bytes) or not all(c in table for c in piece):
            return piece
        return bytes(table[c] for c in piece)

    return lambda pieces: [spell(piece) for piece in pieces]


def _unsupported(kind: str) -> ConfigError:
    return ConfigError(
        "tokenizer",
        kind,
        "under this decoder a token does not stand for fixed bytes",
        "Guides need byte-level, byte-fallback or metaspace tokens.",
    )
