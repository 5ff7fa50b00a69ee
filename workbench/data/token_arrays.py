"""Documents to one flat array of token ids on disk.

Called by the corpus builder; read by the trainer. The array is `uint16`, documents stand one after
the other as `<bos> … <eos>`, and nothing is padded or cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from workbench.data.tokenizer_training import BOS, EOS, load_tokenizer

TokenArray = np.ndarray[Any, np.dtype[np.uint16]]
_CHUNK = 512  # documents handed to a worker at once


def encode_documents(
    texts: Sequence[str], tokenizer_folder: Path, executor: Executor
) -> tuple[TokenArray, list[int]]:
    """All documents as one array, and each one's number of tokens, `<bos>` and `<eos>` included."""
    chunks = [list(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    folders = [str(tokenizer_folder)] * len(chunks)
    arrays: list[TokenArray] = []
    lengths: list[int] = []
    for raw, counts in executor.map(_encode_chunk, folders, chunks):
        arrays.append(np.frombuffer(raw, dtype=np.uint16))
        lengths += counts
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint16), lengths


def split_newlines(tokens: TokenArray, tokenizer: Tokenizer, share: float, seed: int) -> TokenArray:
    """Write some of the newline-with-indentation tokens as two tokens: newline, indentation.

    A prompt that ends in a newline ends in a bare newline token, which the tokenizer never puts in
    front of indentation by itself. Having seen `share` of the lines in two parts, the model knows
    how to go on from there.
    """
    vocab = tokenizer.get_vocab()
    space, newline = "Ġ", "Ċ"  # how the byte-level alphabet writes them
    first = np.arange(tokenizer.get_vocab_size(), dtype=np.uint16)
    second = np.zeros_like(first)
    for piece, token in vocab.items():
        match = re.fullmatch(f"({newline}+)({space}+)", piece)
        if match and match[1] in vocab and match[2] in vocab:
            first[token], second[token] = vocab[match[1]], vocab[match[2]]
    chance = np.random.default_rng(seed).random(len(tokens), dtype=np.float32)
    cut = (second[tokens] != 0) & (chance < share)
    spread = np.repeat(np.where(cut, first[tokens], tokens), 1 + cut)
    ends = np.cumsum(1 + cut) - 1
    spread[ends[cut]] = second[tokens[cut]]
    return spread


def write_tokens(tokens: TokenArray, path: Path) -> None:
    """Write the array as raw little-endian `uint16`."""
    tokens.astype("<u2").tofile(path)


def read_tokens(path: Path) -> TokenArray:
    """The array, memory-mapped and read-only."""
    return np.memmap(path, dtype="<u2", mode="r")


def _encode_chunk(folder: str, texts: list[str]) -> tuple[bytes, list[int]]:
    tokenizer = _worker_tokenizer(folder)
    eos = tokenizer.token_to_id(EOS)
    assert tokenizer.token_to_id(BOS) is not None
    rows = [np.array([*ids, eos], np.uint16) for ids in _encoded(tokenizer, texts)]
    return np.concatenate(rows).tobytes(), [len(row) for row in rows]


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    for text in texts:
        yield tokenizer.encode(text).ids


@lru_cache(maxsize=1)
def _worker_tokenizer(folder: str) -> Tokenizer:
    """One tokenizer a worker process."""
    return load_tokenizer(Path(folder))
