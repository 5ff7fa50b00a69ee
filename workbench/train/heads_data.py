"""Text for heads: windows of tokens, a function of seed and step, and greedy continuations.

What heads learn from is read or written in bulk (`heads_writing`); what they are measured against
is written through the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.build import build
from workbench.config import EngineConfig
from workbench.data.cleaning import Rejected, clean_source
from workbench.data.holdout import is_held_out, stable_hash
from workbench.data.sources import installed_files, stdlib_files
from workbench.errors import ConfigError
from workbench.models import DecoderLM
from workbench.sampling_params import SamplingParams

Texts = Sequence[str] | np.ndarray[Any, Any] | Tensor


class TextWindows:
    """Windows of `length` tokens over one stream of tokens [N], at random places.

    rows [R, at least length]: of each batch, `share` are beginnings of such rows instead. A batch
    is a function of its number alone, so that a resumed run goes on exactly.
    """

    def __init__(
        self,
        tokens: Tensor,
        length: int,
        seed: int,
        *,
        rows: Tensor | None = None,
        share: float = 0.5,
    ) -> None:
        """Raise `ConfigError` unless a window fits."""
        for field, available in (("texts", tokens), ("own_rows", rows)):
            if available is not None and available.shape[-1] < length:
                fix = "Give more text, or shorter windows."
                problem = f"tokens are too few for {length}"
                raise ConfigError(field, available.shape[-1], problem, fix)
        self.tokens, self.length, self.seed = tokens, length, seed
        self.rows, self.share = rows, share

    def batch(self, number: int, count: int) -> Tensor:
        """Return batch `number`: [count, length] int64."""
        source = np.random.default_rng((self.seed, number))
        num_own = 0 if self.rows is None else round(count * self.share)
        last = len(self.tokens) - self.length
        starts = torch.from_numpy(source.integers(0, last + 1, count - num_own))
        windows = self.tokens[starts.unsqueeze(1) + torch.arange(self.length)].long()
        if self.rows is None or not num_own:
            return windows
        chosen = torch.from_numpy(source.integers(0, len(self.rows), num_own))
        return torch.cat((windows, self.rows[chosen, : self.length].long()))


def token_stream(texts: Texts, model: DecoderLM) -> Tensor:
    """Return texts as one stream of token ids [N] int32, each ended by the model's end token.

    texts: strings, or ids as an array or tensor (a corpus's `train.bin`), which are taken as they
    are. Raises `ConfigError` where strings come without a tokenizer, or ids beyond the vocabulary.
    """
    if isinstance(texts, np.ndarray | Tensor):
        stream = torch.as_tensor(np.asarray(texts, dtype=np.int32))
    else:
        if model.tokenizer is None:
            fix = "Give token ids, or load the model from a folder with a tokenizer."
            raise ConfigError("texts", type(texts).__name__, "the model has no tokenizer", fix)
        ends = list(model.config.eos_token_ids[:1])
        ids = [i for text in texts for i in [*model.tokenizer.encode(text), *ends]]
        stream = torch.tensor(ids, dtype=torch.int32)
    if len(stream) and int(stream.max()) >= model.config.vocab_size:
        problem = f"the model has {model.config.vocab_size} tokens"
        raise ConfigError("texts", int(stream.max()), problem, "Use the model's own tokenizer.")
    return stream


def frequent_ids(stream: Tensor, count: int) -> Tensor:
    """Return the `count` most frequent token ids of a stream, ascending: a draft vocabulary.

    Tokens that never come are left out, so there may be fewer.
    """
    counts = torch.bincount(stream.long())
    best = counts.argsort(descending=True, stable=True)[:count]
    return best[counts[best] > 0].sort().values


def python_texts(max_bytes: int) -> list[str]:
    """Return Python files of this machine, cleaned, up to so many bytes in all, in a fixed order.

    Of the standard library and of permissively licensed packages, without the modules that the
    hold-out rule keeps from training: the prompt suite is made of those.
    """
    files = [*stdlib_files(), *installed_files()[0]]
    files.sort(key=lambda file: stable_hash(f"{file.origin.name}:{file.module}"))
    texts: list[str] = []
    size = 0
    for file in files:
        if size >= max_bytes:
            break
        if is_held_out(file.origin.name, file.module):
            continue
        try:
            texts.append(clean_source(file.path.read_bytes()))
        except Rejected:
            continue
        size += len(texts[-1])
    return texts


def continuations(
    model: DecoderLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    max_sequences: int = 64,
) -> list[list[int]]:
    """Return what the model goes on with behind each prompt of token ids; greedily at 0."""
    longest = max(map(len, prompts)) + max_tokens
    blocks = -(-longest // 16) * min(len(prompts), max_sequences)
    config = EngineConfig(max_sequences=max_sequences, num_blocks=blocks, seed=seed)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    with build(config, model=model) as engine:
        outputs = engine.generate([list(prompt) for prompt in prompts], params)
    return [list(output.outputs[0].token_ids) for output in outputs]
