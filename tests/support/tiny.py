"""Tiny random checkpoints with a real tokenizer, written by transformers, and prompts for them.

Weights are large and biases random, so that greedy output is varied and a wrong window, a lost bias
or a wrong slot changes tokens. The tokenizer is a byte-level BPE trained here: real input.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

VOCAB = 320  # 256 bytes, the end token and some merges
EOS = 0
CONTEXT = 256
TEXTS = [
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n",
    "for index, value in enumerate(values):\n    total += value * index\n",
    "naïve café – “quoted” 日本語 🙂 text\n",
    "import os\nprint(os.getcwd())\n",
]
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": EOS,
}
# family -> (class prefix in transformers, what differs from SHAPE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (  # layer 0 sees everything, the others a window
        "Qwen2",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
    ),
}


def write_checkpoint(folder: Path, family: str) -> Path:
    """Write a random checkpoint of a family and the tokenizer to `folder`; return it."""
    import torch
    import transformers

    kind, changes = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:  # a loud embedding would drown the layers, and a tied head repeat its input
                parameter.copy_((0.03 if "embed" in name else 0.15) * noise)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """Return a fast byte-level BPE tokenizer of `VOCAB` tokens, trained on `TEXTS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


def with_eos(source: Path, target: Path, eos_token_id: int) -> Path:
    """Write to `target` the checkpoint of `source` with another end token; return it."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            os.link(path, target / path.name)
        else:
            shutil.copy(path, target / path.name)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((target / name).read_text())
        config["eos_token_id"] = eos_token_id
        (target / name).write_text(json.dumps(config))
    return target


def random_prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    """Return prompts of different lengths, 1 token among them, without the end token."""
    source = random.Random(seed)
    lengths = [1, *(source.randint(2, longest) for _ in range(count - 1))]
    source.shuffle(lengths)
    return [[source.randrange(1, VOCAB) for _ in range(length)] for length in lengths]
