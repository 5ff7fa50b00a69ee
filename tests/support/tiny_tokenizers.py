"""Small real tokenizers, made in a moment: one for each way that a decoder puts text together."""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
TEXTS = [
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
    "Hello world, hello there. The quick brown fox; naïve café, 日本語のテキスト, привет мир.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> Tokenizer:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen: rare characters are split between tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    # Added tokens that are text: one inside the byte alphabet's characters, one outside.
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("<tool→>")])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece-like BPE, as in Llama 2: spaces are ▁, rare characters are tokens of a byte."""
    return _byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


def byte_fallback_unstripped() -> Tokenizer:
    """As in Gemma: no space is put before the text, and none is taken away."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _byte_fallback(normalizers.Replace(" ", "▁"), decoders.Sequence(steps))


def _byte_fallback(normalizer: normalizers.Normalizer, decoder: decoders.Decoder) -> Tokenizer:
    words = ["▁hello", "▁world", "▁def", "▁return", "self", "the", "日", "本", "é", "▁"]
    letters = sorted({character for word in words for character in word})
    pieces = [*letters, *(w[:end] for w in words for end in range(2, len(w) + 1))]
    pieces = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [(w[:end], w[end]) for w in words for end in range(1, len(w))]
    merges = list(dict.fromkeys(merges))
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """A Unigram model with Metaspace, as in T5 and XLM-R: no bytes, unknown characters are lost."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


BUILDERS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "byte_fallback_unstripped": byte_fallback_unstripped,
    "metaspace": metaspace,
}


def wrap(tokenizer: Tokenizer, chat: bool = True) -> PreTrainedTokenizerFast:
    """Return it as transformers would load it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def save(tokenizer: Tokenizer, folder: Path, chat: bool = True) -> Path:
    """Write it as a checkpoint folder has it."""
    wrap(tokenizer, chat).save_pretrained(str(folder))
    return folder
